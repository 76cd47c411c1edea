"""How redundant attention becomes while a transformer learns; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

STYLES = ("-", "--", "-.", ":")


def draw(result: dict, path: Path) -> None:
    """Eq 1 by layer over training, and that of each head at the end.

    Args:
      result: `looks`, after so many steps each, as experiments/redundancy.py makes them.
    """
    looks = result["looks"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    steps = [look["step"] for look in looks]
    for layer in range(len(looks[0]["layers"])):
        r = [look["layers"][layer]["mean"] for look in looks]
        style = STYLES[layer % len(STYLES)]
        left.plot(steps, r, ls=style, marker="o", ms=3, color="k", lw=1, label=f"R of layer {layer}")
    left.plot(steps, [look["mean"] for look in looks], color="0.6", lw=3, label="R, mean of layers", zorder=0)
    left.plot(steps, [look["explained"] for look in looks], color="0.6", lw=3, ls=":", label="R squared, mean")
    left.set(xlabel="training step", ylabel="redundancy (1: a linear probe tells it all)", title="By layer")
    heads = np.array(looks[-1]["heads"])
    for layer, row in enumerate(heads):
        right.plot([layer] * len(row), row, "k_", ms=14)
        right.plot(layer, looks[-1]["layers"][layer]["mean"], "o", color="0.5", ms=6)
    right.plot([], [], "k_", ms=10, label="a head by itself")
    right.plot([], [], "o", color="0.5", label="the layer's sum")
    for level in (0.5, 0.8):
        right.axhline(level, color="0.7", lw=0.8, ls=":", label="the paper's levels" if level == 0.5 else None)
    right.set(xlabel="layer", xticks=range(len(heads)), ylabel="R", title=f"By head, step {steps[-1]}")
    right.set(xlim=(-0.6, len(heads) - 0.4), ylim=(min(0, heads.min() - 0.05), 1.15))
    left.legend(fontsize=7, frameon=False)
    right.legend(fontsize=7, frameon=False, loc="upper right", ncols=3)  # above all that is measured
    for axis in (left, right):
        axis.grid(alpha=0.2)
    figure.suptitle("one seed", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
