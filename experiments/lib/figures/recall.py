"""Associative recall: models side by side, and a trained model that is fine-tuned."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lib.figures import style


@style.drawer()
def models(result: dict) -> Figure:
    """Accuracy of each model, every seed a mark, with the state that it carries, convolutions apart.

    Args:
      result: with an entry a model, whose mean has `accuracy` and `state_bytes`.
    """
    data = result["config"]["data"]
    ranked = sorted(result["entries"].items(), key=lambda item: item[1]["mean"]["accuracy"])
    place = np.arange(len(ranked))
    figure, axes = style.panels(1, 1, 0.2 * len(ranked) + 1.5)
    axis = axes[0, 0]
    axis.barh(place, [100 * found["mean"]["accuracy"] for _, found in ranked], color=style.SKY, label="mean of seeds")
    for i, (_, found) in enumerate(ranked):
        seeds = [100 * run["accuracy"] for run in found["runs"]]
        axis.plot(seeds, [i] * len(seeds), "|", color=style.BLACK, ms=10, label="a seed")
    chance = 100 / data["pairs"]
    style.moment(axis, chance, f"guessing a value of the sequence: {chance:g}%", color=style.BLACK, ls=":", zorder=3)
    axis.set_yticks(place, [f"{style.spelled(label)} ({_size(found)})" for label, found in ranked])
    axis.set(xlabel="held-out values asked for that are named right (%)", xlim=(0, 101))
    axis.grid(False, axis="y")
    style.under_all(figure)
    about = f"{data['pairs']} pairs in sequences of {data['length']} tokens; in brackets the state that a model carries"
    style.headline(figure, result, about)
    return figure


def _size(found: dict) -> str:
    size = found["mean"]["state_bytes"]
    return f"{size / 1000:.1f} kB" if size >= 10_000 else f"{size:.0f} B"


WAYS = {"as it is": style.SERIES[1], "metaplastic": style.SERIES[0]}


@style.drawer()
def conversion(result: dict) -> Figure:
    """Accuracy while fine-tuning, and what the metaplastic way gains in the end, seed by seed.

    Args:
      result: with entries as WAYS names them, each with `curves`; `data` has the `gain` by seed.
    """
    tune = result["config"]["tune"]
    figure, axes = style.panels(1, 2, 3.3, width_ratios=(2, 1))
    (left, right), marks = axes.flat, "os^Dv"
    for way, line in WAYS.items():
        for curve, marker in zip(result["entries"][way]["curves"], marks, strict=False):
            left.plot(curve["step"], 100 * np.array(curve["held_out/accuracy"]), **line | {"marker": marker})
    left.set(xlabel="step of fine-tuning", ylabel="held-out values named right (%)")
    lines = [Line2D([], [], label=way, **line | {"marker": ""}) for way, line in WAYS.items()]
    seeds = [run["seed"] for run in result["entries"]["as it is"]["runs"]]
    grey = {"color": style.GREY, "ls": ""}
    style.below(left, ncols=3, handles=lines + [
        Line2D([], [], marker=marker, label=f"seed {seed}", **grey) for marker, seed in zip(marks, seeds, strict=False)
    ])  # fmt: skip
    for seed, gain, marker in zip(seeds, result["data"]["gain"], marks, strict=False):
        right.plot(seed, 100 * gain, marker, color=style.BLUE)
        right.annotate(f"{100 * gain:+.1f}", (seed, 100 * gain), (6, 0), textcoords="offset points", va="center")
    style.level(right, 0, "", color=style.BLACK, ls="-", lw=0.8)
    right.set(xlabel="seed", xticks=seeds, ylabel="metaplastic over as it is,\nat the end (percentage points)")
    right.set_xlim(min(seeds) - 0.5, max(seeds) + 0.7)
    right.margins(y=0.2)
    about = f"A trained Mamba-2 is fine-tuned on {tune['pairs']} pairs in sequences of {tune['length']} tokens"
    style.headline(figure, result, about)
    return figure
