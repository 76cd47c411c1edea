"""What comparisons share: each model's learning rate is chosen on validation data, then seeds run at that rate."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cram_jax.training.settings import claim_workdir

Train = Callable[[ConfigDict, Path], dict]


def once(train: Train, config: ConfigDict, workdir: Path) -> dict:
    """A run's summary; trained if there is none yet.

    Raises:
      ValueError: where the directory holds a run with other settings.
    """
    claim_workdir(workdir, config)
    done = workdir / "summary.json"
    return json.loads(done.read_text()) if done.exists() else train(config, workdir)


def rated(config: ConfigDict, rate: float, seed: int) -> ConfigDict:
    """The same settings with another learning rate and seed."""
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate, config.seed = rate, seed
    return config


def compare(
    train: Train, entries: dict[str, ConfigDict], runs: Path, rates: list[float], seeds: int, score: str, chosen_by: str
) -> dict:
    """By label: the rate chosen, what it was chosen by, the runs at it, and their score's mean and deviation.

    Args:
      train: runs, or goes on with, one run in a directory: its summary.
      entries: settings by label; each run is in a directory of its own below `runs`.
      rates: the choice among them is made with seed 0.
      score: the summary's number to report. chosen_by: the one that chooses, on data that is not reported. Accuracies
        are the better the higher, bits the better the lower.
    """
    better = min if "bits" in chosen_by else max
    out = {}
    for label, config in entries.items():
        folder = runs / label.replace(", ", "_").replace(" ", "_")
        run = lambda rate, seed, config=config, folder=folder: once(
            train, rated(config, rate, seed), folder / f"rate_{rate:g}_seed_{seed}"
        )
        tried = {rate: run(rate, 0)[chosen_by] for rate in rates}
        best = better(tried, key=tried.get)
        found = [run(best, seed) for seed in range(seeds)]
        scores = np.array([one[score] for one in found])
        out[label] = {
            "learning_rate": best,
            chosen_by: {f"{rate:g}": value for rate, value in tried.items()},
            score: float(scores.mean()),
            f"{score}_sd": float(scores.std(ddof=1)) if seeds > 1 else None,
            "runs": found,
        }
    return out
