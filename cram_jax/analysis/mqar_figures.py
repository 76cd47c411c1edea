"""The recall comparison in one figure; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def draw(models: dict, chance: float, path: Path) -> None:
    """Accuracy of each model, every seed a point, with the state it carries, convolutions apart.

    Args:
      models: by label `accuracy`, `state_bytes` and `runs`, as experiments/mqar_grid.py makes them.
      chance: accuracy of saying any of a sequence's values.
    """
    ranked = sorted(models.items(), key=lambda item: item[1]["accuracy"])
    place = np.arange(len(ranked))
    figure, axis = plt.subplots(figsize=(7, 0.4 * len(ranked) + 1.2), constrained_layout=True)
    axis.barh(place, [100 * model["accuracy"] for _, model in ranked], color="0.8", label="mean")
    for i, (_, model) in enumerate(ranked):
        seeds = [100 * run["accuracy"] for run in model["runs"]]
        axis.plot(seeds, [i] * len(seeds), "k|", ms=10, label="a seed" if i == 0 else None)
    axis.axvline(100 * chance, color="0.4", ls=":", label="any value of the sequence")
    axis.set_yticks(place, [f"{label} ({model['state_bytes']} B)" for label, model in ranked])
    axis.set(xlabel="accuracy of values asked for (%)", xlim=(0, 101), title="Associative recall, by model (its state)")
    axis.legend(fontsize=7, frameon=False, loc="lower right")
    axis.grid(alpha=0.2, axis="x")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def conversion(ways: dict, pairs: int, path: Path) -> None:
    """Accuracy while fine-tuning, a line a seed.

    Args:
      ways: by name `runs`, each with a `curve` (experiments/collect.py), as experiments/conversion.py makes them.
    """
    figure, axis = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for (way, found), style in zip(ways.items(), (dict(color="0.55", ls="--"), dict(color="k", ls="-")), strict=True):
        for i, run in enumerate(found["runs"]):
            curve = run["curve"]
            label = None if i else way
            axis.plot(curve["step"], [100 * accuracy for accuracy in curve["held_out/accuracy"]], label=label, **style)
    axis.set(xlabel="step of fine-tuning", ylabel="accuracy (%)", title=f"A trained Mamba-2 on {pairs} pairs")
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
