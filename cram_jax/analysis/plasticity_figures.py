"""Importance, learning rate and memory window over a sequence, in one figure; heads are told apart by line style."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from cram_jax.analysis.metaplasticity import Plasticity

STYLES = ("-", "--", "-.", ":")


def draw(layers: list[Plasticity], path: Path, changes_at: int | None = None) -> None:
    """A row a layer; lines are medians over a head's synapses, bands from a tenth to nine tenths of them.

    Args:
      changes_at: a token to mark: where a sequence turns from writing to asking, say.
    """
    figure, axes = plt.subplots(len(layers), 3, figsize=(12, 2.8 * len(layers)), constrained_layout=True, squeeze=False)
    for row, (of_layer, one) in enumerate(zip(layers, axes, strict=True)):
        for values_TxHx3, axis, name in (
            (of_layer.importance_TxHx3, one[0], "importance J + prior"),
            (of_layer.learning_rate_TxHx3, one[1], "learning rate 1 / (J + prior)"),
        ):
            for head, (low_T, middle_T, high_T) in enumerate(np.transpose(values_TxHx3, (1, 2, 0))):
                place, shade = np.arange(len(middle_T)), str(0.7 * head / max(1, values_TxHx3.shape[1]))
                style = STYLES[head % len(STYLES)]
                axis.plot(place, middle_T, style, color=shade, lw=1.2, label=f"head {head}")
                axis.fill_between(place, low_T, high_T, color=shade, alpha=0.08, lw=0)
            axis.set(title=f"{name}, layer {row}", yscale="log")
        for head, window_T in enumerate(np.transpose(of_layer.window_TxH)):
            shade = str(0.7 * head / max(1, of_layer.window_TxH.shape[1]))
            one[2].plot(np.arange(len(window_T)), window_T, STYLES[head % len(STYLES)], color=shade, lw=1.2)
        one[2].set(title=f"memory window (tokens), layer {row}", yscale="log")
        for axis in one:
            axis.set(xlabel="token")
            axis.grid(alpha=0.2)
            if changes_at is not None:
                axis.axvline(changes_at, color="0.6", lw=0.8, zorder=0)
        one[0].legend(fontsize=6, frameon=False, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
