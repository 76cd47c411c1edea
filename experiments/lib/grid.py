"""What comparisons share: each run is trained once, only runs of one code are compared, and how rates are chosen."""

import json
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cram_jax.training.machine import versions
from cram_jax.training.metrics import read
from cram_jax.training.settings import claim_workdir
from lib import gather
from lib.summary import Column

log = logging.getLogger(__name__)

Train = Callable[[ConfigDict, Path], dict]  # one run, or what is left of it, in a directory: its summary
RATE = "optimizer.learning_rate"
WHOLE = "0/1"  # the --part that is all


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
      question: what it answers. takes: its runs, and how long they take.
      variant: of the config file experiments/configs/`config`.py. main: experiments/`main`.py trains a run.
      seeds: of each entry. entries: by label, the settings that differ, by dotted names.
      rates: learning rates to choose from; () where the settings say it.
      chosen_by: number of a run's summary that chooses the rate. lower: whether a lower one is the better.
      columns: of the table that is printed.
      kept: numbers of each run that the result keeps; all by default. Means and deviations are kept of all.
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
    """Attributes: entry that it belongs to; seed; settings; directory; learning rate, where several are tried."""

    label: str
    seed: int
    config: ConfigDict
    workdir: Path
    rate: float | None = None


def plan(
    changes: dict[str, dict], seeds: Iterable[int], rates: Iterable[float], runs: Path, settings: Callable
) -> list[Run]:
    """All runs of a comparison, seed by seed, each in a directory of its own.

    Args:
      changes: by label, the settings that differ, by dotted names.
      rates: learning rates to try for each entry that has none of its own; () for no choice.
      settings: gives a run's settings from its seed and changes.
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
    """A label as the name of a directory."""
    return "".join(letter if letter.isalnum() else "_" for letter in label)


def part(text: str) -> slice:
    """Which things a process with this --part takes: the i-th of n, and every n-th after it.

    Raises:
      ValueError: unless it is i/n with i from 0 to n - 1.
    """
    numbers = text.split("/")
    if len(numbers) != 2 or not all(one.isdigit() for one in numbers) or not int(numbers[0]) < int(numbers[1]):
        raise ValueError(f"--part must be i/n with i from 0 to n - 1, such as 0/2 and 1/2, got {text!r}")
    return slice(int(numbers[0]), None, int(numbers[1]))


def train(one: Train, todo: list[Run]) -> list[dict | None]:
    """The summaries of these runs; None for one that diverged. Those that are finished are not trained again.

    Raises:
      ValueError: where a directory holds a run with other settings, or other code trained some of the runs.
    """
    check_code([run.workdir for run in todo])
    out = []
    for i, run in enumerate(todo):
        log.info("run %d of %d: %s, seed %d, in %s", i + 1, len(todo), run.label, run.seed, run.workdir)
        out.append(once(one, run.config, run.workdir))
    one_code(out)
    return out


def one_code(done: list[dict | None]) -> None:
    """Raises ValueError where different code trained some of these runs, given by their summaries."""
    code = {tuple(summary["trained_by"]) for summary in done if summary}
    if len(code) > 1:
        raise ValueError(f"runs were trained by different code, so they do not compare: {sorted(code)}")


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


def check_code(workdirs: list[Path]) -> None:
    """Before the first of these runs is trained: the finished ones must be of one code, which must be this one if any
    run is left.

    Raises:
      ValueError: where they are not, naming the directories by commit.
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
    """The entries of a result, by label. Where several rates were tried, `chosen` says which was taken and why.

    Args:
      done: what `train` gives for the runs.
      changes: by label, the settings that differ from the result's.
      chosen_by: the summary's number that chooses a rate, on data that is not reported. The choice is by the mean over
        seeds, since one seed may begin to learn late or never. A rate at which one run diverged is never chosen.
      lower: whether a lower one is the better.
      kept: of each run, the numbers to keep; all by default.

    Raises:
      ValueError: where a run diverged at each of several rates.
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
    """The best rate, whether it is the lowest or highest tried (a better one may lie beyond), and the score of each."""
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
    """An entry of the runs that did not diverge, beside the number of those that did."""
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
