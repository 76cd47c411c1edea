"""Importance, learning rate and memory window over a sequence."""

import numpy as np
from matplotlib.figure import Figure

from lib.figures import style


@style.drawer()
def draw(result: dict) -> Figure:
    """A row a layer; lines are medians over a head's synapses, bands from a tenth to nine tenths of them.

    Args:
      result: whose `data` has `layers`, each what `metaplasticity.Plasticity` holds, by name and as lists;
        `changes_at`, the token where the sequence turns from writing to asking; `seed` and `accuracy` of the model.
    """
    data = result["data"]
    figure, axes = style.panels(len(data["layers"]), 3, 2.2 * len(data["layers"]) + 0.6)
    for row, (layer, one) in enumerate(zip(data["layers"], axes, strict=True)):
        _quantiles(one[0], np.array(layer["importance_TxHx3"]))
        _quantiles(one[1], np.array(layer["learning_rate_TxHx3"]))
        for head, window_T in enumerate(np.array(layer["window_TxH"]).T):
            one[2].plot(np.arange(len(window_T)), window_T, **_line(head))
        titles = ("importance J + prior", "learning rate 1 / (J + prior)", "memory window (tokens)")
        for axis, title in zip(one, titles, strict=True):
            axis.set(xlabel="token", title=f"layer {row + 1}", ylabel=title, yscale="log")
            axis.axvline(data["changes_at"], color=style.BLACK, ls=":", lw=1.0, label="first query")
            axis.minorticks_off()
    style.under_all(figure)
    named = f"{style.spelled(result['config']['model'])}, seed {data['seed']}"
    about = f"{named}, which recalls {100 * data['accuracy']:.1f}%"
    style.headline(figure, result, f"{about} (lines: median of a head's synapses; bands: from 10% to 90% of them)")
    return figure


def _line(head: int) -> dict:
    return style.SERIES[head % len(style.SERIES)] | {"marker": "", "label": f"head {head + 1}"}


def _quantiles(axis, values_TxHx3: np.ndarray) -> None:
    for head, (low_T, middle_T, high_T) in enumerate(np.transpose(values_TxHx3, (1, 2, 0))):
        axis.plot(np.arange(len(middle_T)), middle_T, **_line(head))
        color, ls = _line(head)["color"], _line(head)["ls"]
        axis.fill_between(np.arange(len(middle_T)), low_T, high_T, color=color, alpha=0.15, lw=0)
        for edge_T in (low_T, high_T):  # bands overlap: outlines tell them apart
            axis.plot(np.arange(len(edge_T)), edge_T, color=color, ls=ls, lw=0.6)
