"""Importance, learning rate and memory window over a sequence, in one figure; heads are told apart by line style."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

STYLES = ("-", "--", "-.", ":")


def draw(result: dict, path: Path) -> None:
    """A row a layer; lines are medians over a head's synapses, bands from a tenth to nine tenths of them.

    Args:
      result: `layers`, each what `metaplasticity.Plasticity` holds, by name and as lists; `changes_at`, the token where
        the sequence turns from writing to asking; `config`, `seed` and `accuracy` of the model, as
        experiments/plasticity.py makes them.
    """
    layers, changes_at = result["layers"], result["changes_at"]
    figure, axes = plt.subplots(
        len(layers), 3, figsize=(12, 2.8 * len(layers) + 0.4), constrained_layout=True, squeeze=False
    )
    for row, (of_layer, one) in enumerate(zip(layers, axes, strict=True)):
        for values_TxHx3, axis, name in (
            (np.array(of_layer["importance_TxHx3"]), one[0], "importance J + prior"),
            (np.array(of_layer["learning_rate_TxHx3"]), one[1], "learning rate 1 / (J + prior)"),
        ):
            for head, (low_T, middle_T, high_T) in enumerate(np.transpose(values_TxHx3, (1, 2, 0))):
                place, shade = np.arange(len(middle_T)), str(0.7 * head / max(1, values_TxHx3.shape[1]))
                style = STYLES[head % len(STYLES)]
                axis.plot(place, middle_T, style, color=shade, lw=1.2, label=f"head {head}")
                axis.fill_between(place, low_T, high_T, color=shade, alpha=0.08, lw=0)
            axis.set(title=f"{name}, layer {row}", yscale="log")
        window_TxH = np.array(of_layer["window_TxH"])
        for head, window_T in enumerate(window_TxH.T):
            shade = str(0.7 * head / max(1, window_TxH.shape[1]))
            one[2].plot(np.arange(len(window_T)), window_T, STYLES[head % len(STYLES)], color=shade, lw=1.2)
        one[2].set(title=f"memory window (tokens), layer {row}", yscale="log")
        for axis in one:
            axis.set(xlabel="token")
            axis.grid(alpha=0.2)
            axis.axvline(changes_at, color="0.6", lw=0.8, zorder=0, label="from here on, queries")
        one[0].legend(fontsize=6, frameon=False, ncols=2)
    named = f"{result['config']['model']}, seed {result['seed']}, which recalls {100 * result['accuracy']:.1f}%"
    figure.suptitle(f"{named}; over a head's synapses: their median, and a tenth to nine tenths", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
