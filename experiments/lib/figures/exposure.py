"""Eq 14: the chance to attend by exposure, with the curves fitted to it."""

import numpy as np
from matplotlib.figure import Figure

from cram_jax.analysis import power_law
from lib.figures import style

CURVES = {
    "power_law": ("power law", style.ORANGE, "--"),
    "exponential": ("exponential", style.BLACK, ":"),
    "logistic": ("logistic", style.RED, "-"),
}


@style.drawer()
def draw(result: dict) -> Figure:
    """A panel for each fit.

    Args:
      result: whose `data` has by label `data`, `parameters`, `goodness`, `exponent`, `interval` and `seeds`; and
        `known_after`, if the exposures are derived after which a pattern is known.
    """
    fits = result["data"]
    rows = -(-len(fits) // 2)
    figure, axes = style.panels(rows, 2, 3.3 * rows)
    for axis, (label, found) in zip(axes.flat, fits.items(), strict=False):
        k = np.array(found["data"]["k"])
        share = 100 * np.divide(found["data"]["episodic"], found["data"]["count"])
        measured = {"color": style.BLUE, "mfc": "none", "zorder": 3}
        axis.plot(k + 1, share, "o", label=f"measured, {found['seeds']} seeds together", **measured)
        fine = np.geomspace(1, k.max() + 1, 200) - 1
        for name, (said, color, ls) in CURVES.items():
            fitted = 100 * power_law.curve(name, fine, found["parameters"][name])
            said = f"{said} (explains {100 * found['goodness'][name]:.0f}% of the variance)"
            axis.plot(fine + 1, fitted, color=color, ls=ls, label=said)
        if "known_after" in found:
            after = found["known_after"] + 1
            axis.axvline(after, color=style.BLACK, lw=0.8, label="derived: known from here on, if nothing fades")
        low, high = found["interval"]
        title = f"{style.spelled(label)}: exponent {found['exponent']:.2f} ({low:.2f} to {high:.2f})"
        axis.set(xscale="log", xlabel="earlier queries of the pattern + 1", ylim=(-3, 105), title=title)
        axis.set_ylabel("queries that choose\nepisodic memory (%)")
        style.below(axis)
    for axis in axes.flat[len(fits) :]:
        axis.remove()
    style.headline(figure, result)
    return figure
