"""Eq 14 of CRAM: how the chance to attend falls with exposure, and which curve it follows.

python experiments/exposure.py RESULT.json LABEL [RESULT.json LABEL ...]

Reads entries of results of experiments/compare.py, fits each, and writes experiments/results/exposure.json and .png.
"""

import json
import sys
from pathlib import Path

import numpy as np

from cram_jax.analysis import exposure_figures, power_law, summary
from cram_jax.training.metrics import strict

TARGET = Path("experiments/results/exposure")


def pooled(runs: list[dict]) -> dict[str, list]:
    """The counts of several seeds added up, bin by bin."""
    total: dict[float, np.ndarray] = {}
    for run in runs:
        for k, *counts in zip(run["k"], run["count"], run["episodic"], strict=True):
            total[k] = total.get(k, np.zeros(2)) + counts
    ordered = sorted(total)
    return {
        "k": ordered,
        **{name: [float(total[k][i]) for k in ordered] for i, name in enumerate(("count", "episodic"))},
    }


def fitted(runs: list[dict]) -> dict:
    """Eq 14's fit over all seeds, and the exponents of each by itself."""
    one = lambda data: power_law.fit(data["k"], np.divide(data["episodic"], data["count"]), data["count"])
    data, each = pooled(runs), [one(run) for run in runs]
    together = one(data)
    exponents = [fit.exponent for fit in each]
    spread = float(np.std(exponents, ddof=1)) if len(each) > 1 else None
    return {
        "exponent": together.exponent,
        "interval": together.interval,
        "goodness": {"power_law": together.goodness, **together.alternatives},
        "parameters": together.parameters,
        "exponent_by_seed": exponents,
        "exponent_sd": spread,
        "data": data,
    }


def main(*arguments: str) -> None:
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    entries = {}
    for path, label in pairs:
        result = json.loads(Path(path).read_text())
        runs = result["entries"][label]["exposures"]
        entries[f"{label} ({result['variant']})"] = fitted(runs) | {"from": [path, label], "seeds": len(runs)}
    out = strict({"entries": entries, **summary.versions()})
    TARGET.with_suffix(".json").write_text(json.dumps(out) + "\n")
    exposure_figures.draw(out, TARGET.with_suffix(".png"))
    rows = []
    for label, found in entries.items():
        low, high = found["interval"]
        goodness = "  ".join(f"{name} {value:.3f}" for name, value in found["goodness"].items())
        rows.append((label, f"gamma {found['exponent']:.2f} ({low:.2f} to {high:.2f})  explained: {goodness}"))
    summary.show("Eq 14: chance to attend by exposure", rows)


if __name__ == "__main__":
    if len(sys.argv) < 3 or len(sys.argv) % 2 == 0:
        sys.exit("usage: python experiments/exposure.py RESULT.json LABEL [RESULT.json LABEL ...]")
    main(*sys.argv[1:])
