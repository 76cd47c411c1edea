"""What comparisons share: every model is trained at every rate with every seed, its rate chosen on validation data."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from cram_jax.training.metrics import read
from cram_jax.training.settings import claim_workdir
from lib import gather, summary

Train = Callable[[ConfigDict, Path], dict]


def once(train: Train, config: ConfigDict, workdir: Path) -> dict | None:
    """A run's summary; trained if there is none yet. None where it diverged.

    Raises:
      ValueError: where the directory holds a run with other settings.
    """
    claim_workdir(workdir, config)
    done, diverged = workdir / "summary.json", workdir / "diverged"
    if done.exists():
        return json.loads(done.read_text())
    if not diverged.exists():
        try:
            return train(config, workdir)
        except FloatingPointError as error:
            diverged.write_text(f"{error}\n")
    return None


def rated(config: ConfigDict, rate: float, seed: int) -> ConfigDict:
    """The same settings with another learning rate and seed."""
    config = config.copy_and_resolve_references()
    config.optimizer.learning_rate, config.seed = rate, seed
    return config


def parted(text: str) -> tuple[int, int]:
    """(i, n) of --part.

    Raises:
      ValueError: unless it is i/n with i from 0 to n - 1.
    """
    numbers = text.split("/")
    if len(numbers) != 2 or not all(one.isdigit() for one in numbers) or not int(numbers[0]) < int(numbers[1]):
        raise ValueError(f"--part must be i/n with i from 0 to n - 1, such as 0/2 and 1/2, got {text!r}")
    return int(numbers[0]), int(numbers[1])


def check_code(workdirs: list[Path]) -> None:
    """Before the first of these runs is trained: finished ones must be of one code, and it must be this one if any is
    left.

    Raises:
      ValueError: where they are not, naming the directories by commit.
    """
    done, left = {}, 0
    for workdir in workdirs:
        if (summary_file := workdir / "summary.json").exists():
            done.setdefault(tuple(json.loads(summary_file.read_text())["trained_by"]), []).append(str(workdir))
        else:
            left += not (workdir / "diverged").exists()
    now = summary.versions()["commit"]
    if len(done) > 1 or (left and done and now is not None and (now,) not in done):
        by = "; ".join(f"{', '.join(commits)} {' '.join(dirs)}" for commits, dirs in sorted(done.items()))
        raise ValueError(
            f"runs to compare must be trained by one code: this is {now}, {left} runs are left, and done are, by "
            f"commit, {by}. Go on from their commit, or name another directory for the runs"
        )


def one_code(runs: list[dict]) -> list[str]:
    """The commits that trained all of these runs.

    Raises:
      ValueError: where different code trained some of them.
    """
    code = {tuple(run["trained_by"]) for run in runs}
    if len(code) > 1:
        raise ValueError(f"runs were trained by different code, so they do not compare: {sorted(code)}")
    return list(*code)


def compare(
    train: Train,
    base: ConfigDict,
    entries: dict[str, ConfigDict],
    runs: Path,
    rates: dict[str, list[float]],
    seeds: int,
    chosen_by: str,
    lower: bool = False,
    more: Callable[[ConfigDict, Path], dict] = lambda config, workdir: {},
) -> tuple[dict, list[dict]]:
    """(entries of a result by label, with `chosen`: the learning rate, whether it is the lowest or highest tried, and
    what each was chosen by; the summaries of all runs).

    Args:
      train: runs, or goes on with, one run in a directory: its summary.
      base: the result's settings. entries: those of each label; each run is in a directory of its own below `runs`.
      rates: by label. The choice is by the mean over seeds, since one seed may begin to learn late or never; a rate at
        which one diverged is never chosen. At an edge of those tried, a better one may lie beyond.
      chosen_by: the summary's number that chooses, on data that is not reported.
      lower: whether a lower one is the better.
      more: what to add to a run's summary, from its settings and directory.

    Raises:
      ValueError: where runs were trained by different code, or a model diverged at every rate.
    """
    worst, best_of = (math.inf, min) if lower else (-math.inf, max)
    out, trained = {}, []
    at = lambda label, rate, seed: runs / label.replace(", ", "_").replace(" ", "_") / f"rate_{rate:g}_seed_{seed}"
    check_code([at(label, rate, seed) for label in entries for rate in rates[label] for seed in range(seeds)])
    for label, config in entries.items():

        def run(rate: float, seed: int, config=config, label=label) -> dict | None:
            settings, workdir = rated(config, rate, seed), at(label, rate, seed)
            found = once(train, settings, workdir)
            if found is not None:
                trained.append(found)
            return found and found | more(settings, workdir)

        tried = {rate: [run(rate, seed) for seed in range(seeds)] for rate in rates[label]}
        values = {rate: [one[chosen_by] if one else worst for one in found] for rate, found in tried.items()}
        best = best_of(values, key=lambda rate: float(np.mean(values[rate])))
        if None in tried[best]:
            raise ValueError(f"{label} diverged at all of the rates {rates[label]}; give lower ones")
        configs = [gather.portable(rated(config, best, seed)) for seed in range(seeds)]
        lines = [read(at(label, best, seed) / "metrics.jsonl") for seed in range(seeds)]
        scores = {f"{rate:g}": by_seed for rate, by_seed in values.items()}
        chosen = {"learning_rate": best, "at_edge": best in (min(values), max(values)), chosen_by: scores}
        found = gather.entry(tried[best], configs, lines, changed(base, configs[0]))
        out[label] = found | {"chosen": chosen}
    one_code(trained)
    return out, trained


def changed(base: ConfigDict, settings: dict) -> dict:
    """What these settings have otherwise than the base, or beside it, by dotted names."""
    base = gather.portable(base)
    return gather.difference({name: value for name, value in base.items() if name in settings}, settings)
