"""Eq 14 of CRAM: how the chance to attend falls with exposure, and which curve it follows.

python experiments/exposure.py [RESULT LABEL ...]

Reads entries of results of experiments/compare.py, SOURCES by default, fits each, and leaves result and figure in
runs/exposure. Each is fitted twice: to all exposures, and to those from which on some query chose otherwise. Up to the
release every query attends by design, which no power law can follow.
"""

import shlex
import sys
from pathlib import Path

import numpy as np
from lib import gather, results
from lib.figures import exposure as exposure_figures

from cram_jax.analysis import power_law

SOURCES = (
    "recurrence", "70% recur", "recurrence", "100% recur", "ablations", "semantic rate x 10", "table_1", "cram",
)  # fmt: skip
TARGET = Path("runs/exposure")
QUESTION = "Does the chance to attend fall as a power of exposure, and does a pattern stop attending at its own time?"


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


def one(data: dict) -> power_law.PowerLawFit:
    """Eq 14's fit to these counts."""
    return power_law.fit(data["k"], np.divide(data["episodic"], data["count"]), data["count"])


def once_free(data: dict) -> dict | None:
    """The fit to the exposures after the last at which every query attended; None where fewer than 4 bins are left."""
    every = np.flatnonzero(np.equal(data["episodic"], data["count"]))
    first = every[-1] + 1 if every.size else 0
    left = {name: values[first:] for name, values in data.items()}
    if len(left["k"]) < 4:
        return None
    found = one(left)
    goodness = {"power_law": found.goodness, **found.alternatives}
    return {
        "first_k": left["k"][0],
        "bins": len(left["k"]),
        "exponent": found.exponent,
        "interval": found.interval,
        "goodness": goodness,
    }


def fitted(runs: list[dict]) -> dict:
    """Eq 14's fits over all seeds, and the exponents of each by itself."""
    data, each = pooled(runs), [one(run) for run in runs]
    together = one(data)
    exponents = [fit.exponent for fit in each]
    spread = float(np.std(exponents, ddof=1)) if len(each) > 1 else None
    return {
        "exponent": together.exponent,
        "interval": together.interval,
        "goodness": {"power_law": together.goodness, **together.alternatives},
        "parameters": together.parameters,
        "once_free": once_free(data),
        "exponent_by_seed": exponents,
        "exponent_sd": spread,
        "data": data,
    }


def transitions(runs: list[dict]) -> dict:
    """Whether patterns stop attending together or each at its own time, over seeds, in steps.

    Returns:
      width: from 90% to 10% of a pattern's queries attending, median of all patterns. width_of_mean: of their mean, by
      seed averaged. settled: between which steps nine of ten patterns fell below a half. patterns: how many those are
      of, since some never fell.
    """
    settled = np.array([step for run in runs for step in run["settled"] if step is not None])
    widths = [width for run in runs for width in run["widths"] if width is not None]
    return {
        "width": float(np.median(widths)),
        "width_of_mean": float(np.mean([run["width_of_mean"] for run in runs if run["width_of_mean"] is not None])),
        "settled": np.quantile(settled, (0.05, 0.95)).tolist(),
        "patterns": len(settled),
    }


def main(*arguments: str) -> None:
    pairs = list(zip(arguments[::2], arguments[1::2], strict=True))
    fits = {}
    for name, label in pairs:
        source = results.load(name)
        found = source["entries"][label]
        runs = found["exposures"]
        fit = fitted(runs) | {"from": [name, label], "seeds": len(runs)}
        if found.get("patterns"):
            fit["transitions"] = transitions(found["patterns"])
        fits[f"{label} ({source['data']['variant']})"] = fit
    command = shlex.join(["python", "experiments/exposure.py", *arguments])
    notes = ["Computed from runs of several commits, which the results it comes from name."]
    made = gather.made_here(notes, **{"from": list(dict.fromkeys(name for name, _ in pairs))})
    result = gather.result("exposure", QUESTION, command, made, data=fits)
    results.write(TARGET, result)
    exposure_figures.draw(result, TARGET)
    rows = []
    for label, found in fits.items():
        low, high = found["interval"]
        goodness = "  ".join(f"{name} {value:.3f}" for name, value in found["goodness"].items())
        rows.append((label, f"gamma {found['exponent']:.2f} ({low:.2f} to {high:.2f})  explained: {goodness}"))
        if free := found["once_free"]:
            goodness = "  ".join(f"{name} {value:.3f}" for name, value in free["goodness"].items())
            rows.append((f"... from {free['first_k']:.0f} on", f"gamma {free['exponent']:.2f}  explained: {goodness}"))
    summary.show("Eq 14: chance to attend by exposure", rows)


if __name__ == "__main__":
    if len(sys.argv) % 2 == 0:
        sys.exit("usage: python experiments/exposure.py [RESULT LABEL ...]")
    main(*(sys.argv[1:] or SOURCES))
