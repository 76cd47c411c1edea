"""Retrieval and attention of what a comparison lists, side by side; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

PANELS = {
    "retrieval_accuracy": "all queries answered right (%)",
    "retrieval_accuracy_new": "queries of new bindings answered right (%)",
    "attention_tokens_end": "tokens that attend (%)",
}

PERCENT = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


def draw(result: dict, path: Path) -> None:
    """A row an entry, a mark a seed, a point for their mean; the title is the file's name.

    Args:
      result: `entries`, by label `runs`, each with the numbers of PANELS that it has, and `mean`, as
        experiments/compare.py makes them; its settings, if there are any, say how long sequences are. Where no entry
        routes there is no panel of attention.
    """
    entries = result["entries"]
    attends = np.array([found["mean"].get("attention_tokens_end") is not None for found in entries.values()])
    panels = dict(list(PANELS.items())[: 3 if any(attends) else 2])
    place = np.arange(len(entries))[::-1]
    size = (12, 0.28 * len(entries) + 1.5)
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, constrained_layout=True)
    for axis, (name, label) in zip(axes, panels.items(), strict=True):
        for y, found in zip(place, entries.values(), strict=True):
            seeds = [100 * run[name] for run in found["runs"] if run.get(name) is not None]
            if seeds:
                axis.plot(seeds, [y] * len(seeds), "k|", ms=9, clip_on=False)
                axis.plot(np.mean(seeds), y, "o", color="0.5", ms=4, zorder=0)
        low, high = axis.get_xlim()
        if high > 100:  # no share is more
            axis.set_xlim(min(low, 99.5), 100 + 0.02 * (100 - min(low, 99.5)))
        axis.set(xlabel=label)
        axis.grid(alpha=0.2)
    if any(attends):
        floor = [found["mean"].get("realised_new_share") for found in entries.values()]
        _with_floor(
            axes[2],
            [(100 * share, y) for share, y, routed in zip(floor, place, attends, strict=True) if share and routed],
        )
        for y in place[~attends]:  # all tokens attend, or there is no attention
            axes[2].text(
                0.98, y, "no router", transform=axes[2].get_yaxis_transform(), ha="right", va="center", fontsize=7
            )
    axes[0].set_yticks(place, list(entries), fontsize=8)
    axes[0].set_ylim(-0.7, len(entries) - 0.3)
    length = f", {result['config']['run']['length']} events" if "config" in result else ""
    title = f"{path.stem.replace('_', ' ')}{length}: a mark for each seed, a point for their mean"
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _with_floor(axis, marks: list[tuple]) -> None:
    """Adds the least there is, as (percent, place), and takes a logarithmic axis where shares lie far apart."""
    if marks:
        axis.plot(*zip(*marks, strict=True), "kx", ms=4, label="least possible: queries of new bindings")
    axis.legend(fontsize=7, frameon=False)
    low, high = axis.get_xlim()
    if high <= 5 * max(low, 0.1):
        return
    axis.set_xscale("log")
    axis.minorticks_off()
    low = max(min(x for line in axis.lines for x in line.get_xdata()) / 2, PERCENT[0])
    ticks = [tick for tick in PERCENT if low <= tick <= high]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_xlim(low, high)
