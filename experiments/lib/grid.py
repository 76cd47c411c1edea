"""Comparisons of many runs: plans and trains them, checks that one commit trained all, and chooses learning rates."""

import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cram_jax.training.files import read
from cram_jax.training.machine import versions
from cram_jax.training.settings import claim_workdir
from lib import gather
from lib.summary import Column

log = logging.getLogger(__name__)

Train = Callable[[ConfigDict, Path], dict]  # trains or resumes one run in a directory, and returns its summary
RATE = "optimizer.learning_rate"
WHOLE = "0/1"  # the --part that is everything


class Comparison(NamedTuple):
    """Definition of a comparison.

    Attributes:
      question: the question that it answers.
      takes: number of runs, and how long they take.
      variant: variant of the config file.
      seeds: seeds of each entry.
      entries: for each label, the settings that differ, by dotted names.
      config: experiments/configs/`config`.py is the config file.
      main: experiments/`main`.py trains a run.
      rates: learning rates to choose from; () to use the rate in the settings.
      chosen_by: name of the number in a run's summary by which the rate is chosen.
      lower: True if a lower number is better.
      columns: columns of the printed table.
      kept: numbers of each run that the result keeps; () for all. Means and deviations are kept for all numbers.
    """

    question: str
    takes: str
    variant: str
    seeds: range
    entries: dict[str, dict]
    config: str = "srcd"
    main: str = "srcd"
    rates: tuple[float, ...] = ()
    chosen_by: str = ""
    lower: bool = False
    columns: tuple[Column, ...] = (
        Column("queries answered right", "retrieval_accuracy"),
        Column("... of new bindings", "retrieval_accuracy_new"),
        Column("events that attend", "attention_tokens_end"),
    )
    kept: tuple[str, ...] = (
        "seed", "retrieval_accuracy", "retrieval_accuracy_new", "attention_tokens_end", "router_released_step",
        "transition_step", "realised_query_share", "realised_new_share", "dynamics_mse_excess", "training_teraflops",
        "total_flops", "commit", "machine",
    )  # fmt: skip


class Run(NamedTuple):
    """Attributes: label of its entry; seed; settings; directory; learning rate, or None if only one is tried."""

    label: str
    seed: int
    config: ConfigDict
    workdir: Path
    rate: float | None = None


def plan(
    changes: dict[str, dict], seeds: Iterable[int], rates: Iterable[float], runs: Path, settings: Callable
) -> list[Run]:
    """Returns all runs of a comparison, seed by seed, each with its own directory.

    Args:
      changes: for each label, the settings that differ, by dotted names.
      rates: learning rates to try for each entry that does not set one; () to try none.
      settings: returns a run's settings from its seed and changes.
    """
    out = []
    for seed in seeds:
        for label, changed in changes.items():
            for rate in (None,) if RATE in changed or not rates else rates:
                config = settings(seed, changed if rate is None else changed | {RATE: rate})
                name = f"seed_{seed}" if rate is None else f"rate_{rate:g}_seed_{seed}"
                out.append(Run(label, seed, config, runs / folder(label) / name, rate))
    return out


def folder(label: str) -> str:
    """Returns the name of a label's directory."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def part(text: str) -> slice:
    """Returns the slice of a list that --part=i/n selects: every n-th item from the i-th on.

    Raises:
      ValueError: unless the text is i/n with i from 0 to n - 1.
    """
    numbers = text.split("/")
    if len(numbers) != 2 or not all(one.isdigit() for one in numbers) or not int(numbers[0]) < int(numbers[1]):
        raise ValueError(f"--part must be i/n with i from 0 to n - 1, such as 0/2 and 1/2, got {text!r}")
    return slice(int(numbers[0]), None, int(numbers[1]))


def train(one: Train, todo: list[Run]) -> list[dict | None]:
    """Trains all runs that are not finished. Returns the summaries of all runs, with None for a run that diverged.

    Raises:
      ValueError: if a directory holds a run with other settings, or different code trained some of the runs.
    """
    check_code([run.workdir for run in todo])
    out = []
    for i, run in enumerate(todo):
        log.info("run %d of %d: %s, seed %d, in %s", i + 1, len(todo), run.label, run.seed, run.workdir)
        out.append(once(one, run.config, run.workdir))
    one_code(out)
    return out


def one_code(done: list[dict | None]) -> None:
    """Raises ValueError if different code trained these runs.

    Args:
      done: the summaries of the runs; None for one that diverged.
    """
    code = {tuple(summary["trained_by"]) for summary in done if summary}
    if len(code) > 1:
        raise ValueError(f"runs were trained by different code, so they do not compare: {sorted(code)}")


def once(train: Train, config: ConfigDict, workdir: Path) -> dict | None:
    """Trains a run unless it is finished. Returns its summary, or None if it diverged.

    Raises:
      ValueError: if the directory holds a run with other settings.
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


def check_code(workdirs: list[Path]) -> None:
    """Checks before training that one commit trained all finished runs: the current one, if any run is left to train.

    Raises:
      ValueError: if not. The message lists the directories by commit.
    """
    done, left = {}, 0
    for workdir in workdirs:
        if (summary_file := workdir / "summary.json").exists():
            done.setdefault(tuple(json.loads(summary_file.read_text())["trained_by"]), []).append(str(workdir))
        else:
            left += not (workdir / "diverged").exists()
    now = versions()["commit"]
    if len(done) > 1 or (left and done and now is not None and (now,) not in done):
        by = "; ".join(f"{', '.join(commits)} {' '.join(dirs)}" for commits, dirs in sorted(done.items()))
        raise ValueError(
            f"runs to compare must be trained by one code. This is {now}. {left} runs are left. Finished, by commit: "
            f"{by}. Go on from their commit, or name another directory for the runs"
        )


def entries(
    todo: list[Run],
    done: list[dict | None],
    changes: dict[str, dict],
    *,
    chosen_by: str = "",
    lower: bool = False,
    kept: tuple[str, ...] = (),
) -> dict[str, dict]:
    """Returns the entries of a result, by label. If several learning rates were tried, `chosen` names the best.

    Args:
      todo: the runs.
      done: their summaries, as `train` returns them.
      changes: for each label, the settings that differ from the result's.
      chosen_by: name of the number in a summary by which a rate is chosen. It is measured on data that is not reported.
        Its mean over seeds decides, because a single seed may begin to learn late or never. A rate at which a run
        diverged is never chosen.
      lower: True if a lower number is better.
      kept: numbers of each run to keep; all by default.

    Raises:
      ValueError: if runs diverged at every rate.
    """
    out = {}
    for label, changed in changes.items():
        found = [(run, summary) for run, summary in zip(todo, done, strict=True) if run.label == label]
        choice = {}
        if found[0][0].rate is not None:
            choice = {"chosen": _choose(label, found, chosen_by, lower)}
            rate = choice["chosen"]["learning_rate"]
            changed, found = changed | {RATE: rate}, [one for one in found if one[0].rate == rate]
        out[label] = _entry(found, changed, kept) | choice
    return out


def _choose(label: str, found: list[tuple[Run, dict | None]], chosen_by: str, lower: bool) -> dict:
    """The best rate, the scores of all, and `at_edge`: True if it is the lowest or highest, so a better may exist."""
    worst, best_of = (math.inf, min) if lower else (-math.inf, max)
    scores: dict[float, list[float]] = {}
    for run, summary in found:
        scores.setdefault(run.rate, []).append(summary[chosen_by] if summary else worst)
    best = best_of(scores, key=lambda rate: float(np.mean(scores[rate])))
    if worst in scores[best]:
        raise ValueError(f"{label} diverged at all of the rates {list(scores)}; give lower ones")
    tried = {f"{rate:g}": by_seed for rate, by_seed in scores.items()}
    return {"learning_rate": best, "at_edge": best in (min(scores), max(scores)), chosen_by: tried}


def _entry(found: list[tuple[Run, dict | None]], settings: dict, kept: tuple[str, ...]) -> dict:
    """An entry of the runs that did not diverge, with the number of those that did."""
    finished = [(run, summary) for run, summary in found if summary]
    if not finished:
        return {"settings": settings, "runs": [], "mean": {}, "sd": {}, "missing": {}, "diverged": len(found)}
    configs = [gather.portable(run.config) for run, _ in finished]
    lines = [read(run.workdir / "metrics.jsonl") for run, _ in finished]
    out = gather.entry([summary for _, summary in finished], configs, lines, settings)
    slim = lambda numbers: {name: value for name, value in numbers.items() if "_layer_" not in name}
    few = lambda run: {name: run[name] for name in kept or run if name in run}
    out |= {"runs": list(map(few, out["runs"])), "diverged": len(found) - len(finished)}
    return out | {part: slim(out[part]) for part in ("mean", "sd", "missing")}
