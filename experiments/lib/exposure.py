"""Eq 14 of CRAM: fits of the probability that a query attends after k exposures of its pattern.

Each of SOURCES is fitted twice: to all exposures, and only to those after the last exposure at which every query
attended. Until the release every query attends by design, and no power law can fit that.
"""

import numpy as np

from cram_jax.analysis import power_law
from lib import results

SOURCES = (  # (result of experiments/compare.py, label of an entry)
    ("recurrence", "70% recur"),
    ("recurrence", "100% recur"),
    ("ablations", "semantic rate x 10"),
    ("table_1", "cram"),
)
FROM = tuple(dict.fromkeys(name for name, _ in SOURCES))
RIDGE, KNOWN_BELOW = "semantic.ridge", "routing.known_below"
QUESTION = "Does the chance to attend fall as a power of exposure, and does a pattern stop attending at its own time?"


def pooled(runs: list[dict]) -> dict[str, list]:
    """Returns the sum of several seeds' counts, bin by bin; bins without a query are left out."""
    total: dict[float, np.ndarray] = {}
    for run in runs:
        for k, *counts in zip(run["k"], run["count"], run["episodic"], strict=True):
            total[k] = total.get(k, np.zeros(2)) + counts
    ordered = sorted(k for k, (count, _) in total.items() if count)
    return {
        "k": ordered,
        **{name: [float(total[k][i]) for k in ordered] for i, name in enumerate(("count", "episodic"))},
    }


def one(data: dict) -> power_law.PowerLawFit:
    """Fits Eq 14 to these counts."""
    return power_law.fit(data["k"], np.divide(data["episodic"], data["count"]), data["count"])


def once_free(data: dict) -> dict | None:
    """Fits Eq 14 only to exposures after the last at which every query attended; None if fewer than 4 bins are left."""
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
    """Fits Eq 14 to all seeds together, and to each seed alone for the spread of the exponent."""
    data, each = pooled(runs), [one(pooled([run])) for run in runs]
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
    """Shows whether patterns stop attending together or each at its own time, over all seeds.

    Returns:
      width: number of steps in which attending queries of a pattern fall from 90% to 10%; median over patterns.
      width_of_mean: the same number for the mean over patterns, averaged over seeds.
      settled: two steps. For nine of ten patterns, attention fell below one half between them.
      patterns: number of patterns for which it fell below one half.
    """
    settled = np.array([step for run in runs for step in run["settled"] if step is not None])
    widths = [width for run in runs for width in run["widths"] if width is not None]
    return {
        "width": float(np.median(widths)),
        "width_of_mean": float(np.mean([run["width_of_mean"] for run in runs if run["width_of_mean"] is not None])),
        "settled": np.quantile(settled, (0.05, 0.95)).tolist(),
        "patterns": len(settled),
    }


def derived(weight: float, ridge: float, exposures: list[float]) -> float:
    """Returns the exponent of the posterior's standard deviation after k writes, (1 + k w / lambda)^-1/2.

    It is fitted as Eq 14 is, over the same exposures. Nothing is forgotten, and a pattern's address is its own.
    """
    k = np.asarray(exposures)
    return power_law.fit(k, (1 + k * weight / ridge) ** -0.5).exponent


def compute(sources=SOURCES) -> dict:
    """Returns the result's data: the fits, by label.

    Args:
      sources: pairs of a result's name and the label of an entry.
    """
    fits = {}
    for name, label in sources:
        source = results.load(name)
        found = source["entries"][label]
        runs = found["exposures"]
        fit = fitted(runs) | {"from": [name, label], "seeds": len(runs)}
        if found.get("patterns"):
            fit["transitions"] = transitions(found["patterns"])
        if weight := found.get("deployed", {}).get("posterior_cram.learning.first"):
            ridge, below = (_setting(source, found, f"posterior_cram.{name}") for name in (RIDGE, KNOWN_BELOW))
            fit |= {
                "exponent_derived": derived(weight, ridge, fit["data"]["k"]),
                "known_after": ridge * (1 / below - 1) / weight,  # writes until u = lambda / (lambda + k w) is below
            }
        variant = source["data"].get("variant")
        fits[f"{label} ({variant})" if variant else label] = fit
    return fits


def _setting(source: dict, entry: dict, name: str) -> float:
    """A setting of an entry as it was deployed."""
    changed = entry["settings"] | entry["deployed"]
    return changed[name] if name in changed else results.at(source, f"config.{name}")


def in_streams() -> dict:
    """Returns the fits for fixed models in fresh streams, for slow and fast consolidation."""
    return compute([("streams_speeds", label) for label in results.load("streams_speeds")["entries"]])


def table(data: dict) -> list[tuple[str, str]]:
    """Returns the printed table: rows of (what, number)."""
    explained = lambda goodness: "  ".join(f"{name} {value:.3f}" for name, value in goodness.items())
    rows = []
    for label, found in data.items():
        low, high = found["interval"]
        gamma = f"gamma {found['exponent']:.2f} ({low:.2f} to {high:.2f})"
        rows.append((label, f"{gamma}  explained: {explained(found['goodness'])}"))
        if free := found["once_free"]:
            gamma = f"gamma {free['exponent']:.2f}"
            rows.append((f"... from {free['first_k']:.0f} on", f"{gamma}  explained: {explained(free['goodness'])}"))
    return rows
