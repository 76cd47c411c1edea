"""Eq 14: the chance to attend by exposure, with the curves fitted to it; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cram_jax.analysis import power_law

STYLES = {"power_law": "k-", "exponential": "k--", "logistic": "k:"}


def draw(result: dict, path: Path) -> None:
    """A panel for each of `entries`, as experiments/exposure.py makes them: `data`, `parameters`, `goodness`,
    `exponent`."""
    entries = result["entries"]
    figure, axes = plt.subplots(
        1, len(entries), figsize=(4.6 * len(entries), 3.8), squeeze=False, constrained_layout=True
    )
    for axis, (label, found) in zip(axes[0], entries.items(), strict=True):
        k = np.array(found["data"]["k"])
        share = 100 * np.divide(found["data"]["episodic"], found["data"]["count"])
        axis.plot(k + 1, share, "o", color="0.6", ms=4, label=f"{found['seeds']} seeds")
        fine = np.geomspace(1, k.max() + 1, 200) - 1
        for name, style in STYLES.items():
            goodness = f"{name.replace('_', ' ')}: {found['goodness'][name]:.2f} explained"
            axis.plot(
                fine + 1, 100 * power_law.curve(name, fine, found["parameters"][name]), style, lw=1, label=goodness
            )
        axis.set(
            xscale="log", xlabel="times asked for before, and 1", title=f"{label}: exponent {found['exponent']:.2f}"
        )
        axis.set(ylim=(-2, 105))
        axis.legend(fontsize=7, frameon=False)
        axis.grid(alpha=0.2)
    axes[0, 0].set(ylabel="queries that choose episodic memory (%)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
