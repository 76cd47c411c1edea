"""Scores and attention on the targets of a transfer, side by side; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

MARKS = {"from scratch": "o", "frozen": "s", "head alone": "^"}


def draw(targets: dict, path: Path) -> None:
    """A row of panels a target: score, and tokens that attend; a row in them a model and way, a mark a seed.

    Args:
      targets: by what they are called, model and way, as experiments/transfer.py makes them.
    """
    rows = sum(len(ways) for ways in next(iter(targets.values())).values())
    size = (9, (0.26 * rows + 0.9) * len(targets))
    figure, axes = plt.subplots(len(targets), 2, figsize=size, squeeze=False, constrained_layout=True)
    for (left, right), (called, models) in zip(axes, targets.items(), strict=True):
        entries = [(model, way, found) for model, ways in models.items() for way, found in ways.items()]
        place = np.arange(len(entries))[::-1]
        for axis, name, factor in ((left, "score", 1), (right, "attention_tokens_end", 100)):
            for y, (_, way, found) in zip(place, entries, strict=True):
                axis.plot([factor * run[name] for run in found["runs"]], [y] * len(found["runs"]), "k|", ms=9)
                axis.plot(factor * found[name], y, MARKS[way], color="0.6", ms=5, zorder=0)
            axis.grid(alpha=0.2)
            axis.set_ylim(-0.6, len(entries) - 0.4)
        left.set_yticks(place, [f"{model}, {way}" for model, way, _ in entries], fontsize=7)
        left.set_title(called, fontsize=8, loc="left")
        left.set_xlabel("score: accuracy; of records, area under the ROC curve", fontsize=8)
        right.set_yticks(place, [])
        right.set_xlabel("tokens that attend (%)", fontsize=8)
    figure.suptitle("Transfer from SRCD: a mark for each seed, a grey sign for their mean", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
