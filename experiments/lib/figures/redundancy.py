"""How redundant attention becomes while a transformer learns."""

import numpy as np
from matplotlib.figure import Figure

from cram_jax.analysis.redundancy import SHARES
from lib.figures import style


@style.drawer()
def draw(result: dict) -> Figure:
    """Eq 1 by layer over training, and that of each head at the end.

    Args:
      result: whose `data` has `looks`, after so many steps each.
    """
    looks = result["data"]["looks"]
    figure, axes = style.panels(1, 2, 3.6)
    (left, right), steps = axes.flat, [look["step"] for look in looks]
    for layer, line in zip(range(len(looks[0]["layers"])), style.SERIES, strict=False):
        left.plot(steps, [look["layers"][layer]["mean"] for look in looks], label=f"R, layer {layer + 1}", **line)
    mean = {"color": "0.6", "lw": 3, "zorder": 1}
    left.plot(steps, [look["mean"] for look in looks], label="R, mean of layers", **mean)
    left.plot(steps, [look["explained"] for look in looks], ls=":", label="variance explained, mean", **mean)
    left.set(xlabel="training step", ylabel="redundancy R; variance explained", ylim=(0, 1))
    heads = np.array(looks[-1]["heads"])
    for layer, row in enumerate(heads):
        one = layer == 0
        right.plot([layer + 1] * len(row), row, "_", color=style.BLUE, ms=14, label="one head" if one else None)
        total = looks[-1]["layers"][layer]["mean"]
        right.plot(layer + 1, total, "o", color=style.BLACK, ms=5, label="all heads of the layer" if one else None)
    right.set(xlabel=f"layer, after {steps[-1]} steps", xticks=range(1, len(heads) + 1), ylabel="redundancy R")
    right.set(xlim=(0.4, len(heads) + 0.6), ylim=(min(0, heads.min() - 0.05), 1))
    for share, which in zip(SHARES, ("lower", "upper"), strict=True):
        style.level(right, share, f"the paper's {which} level: {share}")
    style.below(left, ncols=2)
    style.below(right)
    style.headline(figure, result, "A transformer on text, one seed; R = 1: the probe gives everything")
    return figure
