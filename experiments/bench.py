"""Measures time and memory of skipped attention and of the scans on this machine: `make bench` runs all parts that
need no trained run, and those whose run is there.

python experiments/bench.py [--part=attention]

| part | what is measured | result |
|---|---|---|
| training_step | a training step with and without skipping, from the last state of a run | skipping |
| single_table | the same of two runs of compare.py, with and without consolidation | single_table_step |
| attention | time against the share of tokens that attend, with and without gradient | kernels_attention |
| kept | time of attention with 15% of the keys kept, and with all of them | kernels_kept |
| memory | memory of the compiled programs against length, for skipped and dense attention | kernels_memory |
| stream | time of a token against context length, for CRAM and for dense attention with a cache | kernels_stream |
| scans | time and memory of the recurrent scans | kernels_scans |
| safety | what a run pays for its checks, digests and lock | safety |

Each part writes its result, and a figure if it has one, to a folder with the result's name below --results.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import srcd
from configs import streams
from configs.comparisons import SINGLE_TABLE
from lib import gather, launch, stream_runs, trained
from lib.bench import attention, safety, scans, stream, training_step
from lib.figures import catalogue

SRCD, BOTH = "runs/srcd", "runs/single_table"
TRAIN = f"python experiments/srcd.py --config=experiments/configs/srcd.py:paper --workdir={SRCD}"
COMPARE = f"python experiments/compare.py --name=single_table --runs={BOTH}"


class Part(NamedTuple):
    """Attributes:
    result: its name.
    question: that it answers.
    measure: function from flags to the result's data.
    trained: command that trains what is measured; "" where nothing trained is needed.
    run: where it trains that, by default.
    """

    result: str
    question: str
    measure: Callable[[SimpleNamespace], dict]
    trained: str = ""
    run: str = ""


def step_of_run(args) -> dict:
    """Measures the part training_step."""
    found = trained.load(Path(args.run or SRCD), srcd.build, make=TRAIN)
    config = found.config.copy_and_resolve_references()
    config.model = "transformer"
    return training_step.measure(found, srcd.build(config)[0], args.rounds)


def step_of_both(args) -> dict:
    """Measures the part single_table."""
    folder = Path(args.run or BOTH)
    load = lambda name: trained.load(folder / name / "seed_0", srcd.build, make=COMPARE)
    return training_step.beside({name: load(name) for name in SINGLE_TABLE}, args.rounds)


def of_the_demo(args) -> dict:
    """Measures the part safety."""
    config = streams.get_config("demo")
    return safety.measure(*stream_runs.build(config), config.seed, args.rounds)


PARTS = {
    "training_step": Part(
        "skipping",
        "What does skipping change in a training step: its time, and nothing else?",
        step_of_run,
        TRAIN,
        SRCD,
    ),
    "single_table": Part(
        "single_table_step",
        "What does consolidation cost or save on the clock, where one memory serves all sequences?",
        step_of_both,
        COMPARE,
        BOTH,
    ),
    "attention": Part(
        "kernels_attention",
        "How does the time of skipped attention fall with the share of tokens that attend?",
        lambda args: attention.times(args.rounds),
    ),
    "kept": Part(
        "kernels_kept",
        "What does skipped attention gain where few keys are kept?",
        lambda args: attention.kept(args.rounds),
    ),
    "memory": Part(
        "kernels_memory",
        "How much memory does skipped attention need beside dense attention?",
        lambda args: attention.memory(),
    ),
    "stream": Part(
        "kernels_stream",
        "Does a token cost the same however long the context is?",
        lambda args: stream.stream(args.rounds),
    ),
    "scans": Part(
        "kernels_scans",
        "How fast are the recurrent scans, and how much memory do they need?",
        lambda args: scans.scans(args.rounds),
    ),
    "safety": Part("safety", "What does a run pay for its checks, digests and lock?", of_the_demo),
}


def main(args) -> None:
    for name in PARTS if args.part == "all" else [args.part]:
        part = PARTS[name]
        if args.part == "all" and part.run and not Path(args.run or part.run).exists():
            print(f"{name}: left out, as {args.run or part.run} does not exist. This makes it: {part.trained}")
            continue
        found = part.measure(args)
        command = f"{part.trained and part.trained + ' && '}python experiments/bench.py --part={name}"
        print(f"{name}:\n{json.dumps(found, indent=1)}")
        result = gather.result(part.result, part.question, command, gather.made_here(), data=found)
        catalogue.leave(result, Path(args.results) / part.result)


if __name__ == "__main__":
    launch.run(
        main,
        takes="20 minutes for all parts, two CPU cores",
        part=launch.Flag("all", "What to measure.", ("all", *PARTS)),
        run=launch.Flag(
            "",
            f"Where the finished runs are: by default {SRCD} for the part training_step, {BOTH} for single_table.",
        ),
        rounds=launch.Flag(9, "Number of repetitions of each measurement; the median is reported."),
        results="runs",
    )
