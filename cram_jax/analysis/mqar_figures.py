"""The recall comparison in one figure; readable in greyscale."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def draw(result: dict, path: Path) -> None:
    """Accuracy of each model, every seed a mark, with the state it carries, convolutions apart.

    Args:
      result: `config`, and `models`, by label `accuracy`, `state_bytes` and `runs`, as experiments/mqar_grid.py makes
        them.
    """
    data = result["config"]["data"]
    title = f"{data['pairs']} pairs in {data['length']} tokens, by model (its state)"
    chance = 1 / data["pairs"]  # of saying any of a sequence's values
    ranked = sorted(result["models"].items(), key=lambda item: item[1]["accuracy"])
    place = np.arange(len(ranked))
    figure, axis = plt.subplots(figsize=(7, 0.4 * len(ranked) + 1.4), constrained_layout=True)
    axis.barh(place, [100 * model["accuracy"] for _, model in ranked], color="0.8", label="mean")
    for i, (_, model) in enumerate(ranked):
        seeds = [100 * run["accuracy"] for run in model["runs"]]
        axis.plot(seeds, [i] * len(seeds), "k|", ms=10, label="a seed" if i == 0 else None)
    axis.axvline(100 * chance, color="0.4", ls=":", label="any value of the sequence")
    axis.set_yticks(place, [f"{label} ({model['state_bytes']} B)" for label, model in ranked])
    axis.set(xlabel="accuracy of values asked for (%)", xlim=(0, 101), title=title)
    figure.legend(fontsize=8, frameon=False, ncols=3, loc="outside lower right")
    axis.grid(alpha=0.2, axis="x")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def conversion(result: dict, path: Path) -> None:
    """Accuracy while fine-tuning, a line a seed.

    Args:
      result: `config`, and `ways`, by name `runs`, each with a `curve` (experiments/collect.py), as
        experiments/conversion.py makes them.
    """
    ways, tune = result["ways"], result["config"]["tune"]
    figure, axis = plt.subplots(figsize=(6, 4), constrained_layout=True)
    for (way, found), style in zip(ways.items(), (dict(color="0.55", ls="--"), dict(color="k", ls="-")), strict=True):
        for i, run in enumerate(found["runs"]):
            curve = run["curve"]
            shape = dict(marker="os^Dv"[i % 5], ms=4, label=f"{way}, seed {run['seed']}")
            axis.plot(curve["step"], [100 * accuracy for accuracy in curve["held_out/accuracy"]], **shape, **style)
    axis.set(xlabel="step of fine-tuning", ylabel="accuracy of values asked for, held-out (%)")
    axis.set(title=f"A trained Mamba-2 on {tune['pairs']} pairs in {tune['length']} tokens")
    axis.legend(fontsize=8, frameon=False)
    axis.grid(alpha=0.2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
