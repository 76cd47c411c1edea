"""Measures time and memory of skipped attention and of the scans on this machine: `make bench` runs all parts.

python experiments/bench.py [--part=attention] [--run=runs/srcd]

| part | what is measured | result |
|---|---|---|
| training_step | a training step with and without skipping, from the last state of --run | skipping |
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
from lib import gather, launch, stream_runs, trained
from lib.bench import attention, safety, scans, stream, training_step
from lib.figures import catalogue

# Trains what the part training_step starts from
TRAIN = "python experiments/srcd.py --config=experiments/configs/srcd.py:paper --workdir=runs/srcd"


class Part(NamedTuple):
    """Attributes: result, its name; question that it answers; measure, a function from flags to the result's data."""

    result: str
    question: str
    measure: Callable[[SimpleNamespace], dict]


def step_of_run(args) -> dict:
    """Measures the part training_step."""
    found = trained.load(Path(args.run), srcd.build, make=TRAIN)
    config = found.config.copy_and_resolve_references()
    config.model = "transformer"
    return training_step.measure(found, srcd.build(config)[0], args.rounds)


def of_the_demo(args) -> dict:
    """Measures the part safety."""
    config = streams.get_config("demo")
    return safety.measure(*stream_runs.build(config), config.seed, args.rounds)


PARTS = {  # training_step comes first: if its trained run is missing, no time is lost
    "training_step": Part(
        "skipping", "What does skipping change in a training step: its time, and nothing else?", step_of_run
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
        found = part.measure(args)
        before = f"{TRAIN} && " if part.measure is step_of_run else ""
        command = f"{before}python experiments/bench.py --part={name}"
        print(f"{name}:\n{json.dumps(found, indent=1)}")
        result = gather.result(part.result, part.question, command, gather.made_here(), data=found)
        catalogue.leave(result, Path(args.results) / part.result)


if __name__ == "__main__":
    launch.run(
        main,
        takes="20 minutes for all parts, two CPU cores",
        part=launch.Flag("all", "What to measure.", ("all", *PARTS)),
        run=launch.Flag("runs/srcd", "Finished run of experiments/srcd.py, for the part training_step."),
        rounds=launch.Flag(9, "Number of repetitions of each measurement; the median is reported."),
        results="runs",
    )
