"""What a training needs on chips that are not here: memory, traffic, and the least time of a step.

python experiments/plan_run.py --task=srcd --config=experiments/configs/srcd.py:paper --topology=v5e:4x4 --largest

The real training step is compiled for these chips by their own compiler, which runs on Linux on x86 without one
(`pip install libtpu` for TPUs, `make .venv-aot-gpu/installed` for GPUs). Nothing is trained. --config.run.batch=N sets
the sequences of a whole batch. --largest doubles it until a chip cannot hold its part.

"memory" is what the compiler reserves on one chip. The times are what a chip takes at least, by the numbers that its
maker states, if it does nothing else. At these rates a step takes the longest of them where they overlap in full, and
their sum where nothing overlaps. What our kernels compute is not counted. That is no measurement.

--rows=N gives each chip N sequences, however many chips there are, and a part of all parameters. With --result=NAME
all topologies become a result, which is drawn over the number of chips.
"""

import dataclasses
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

import mqar
import srcd
import text
from lib import gather, launch, results, stream_runs, summary
from lib.figures import catalogue

from cram_jax.training import chips, plan

TASKS = {
    "srcd": srcd.build,
    "streams": stream_runs.build,
    "mqar": mqar.build,
    "text": lambda config: text.build(text.opened(config, ())),
}
QUESTION = "What would a training step of this model take at least, on chips that nobody had to rent?"


def table(found: plan.Plan) -> list[tuple[str, str]]:
    """Returns the printed rows."""
    chip, size, ms = found.chip, lambda n: f"{n / 1e6:,.1f} MB", lambda seconds: f"{1000 * seconds:,.3f} ms"
    sent = [f"{kind}: {size(n)}" for kind, n in found.costs.sent.items()]
    share = found.memory / chip.memory
    return [
        ("chips that train", f"{found.chips}"),
        ("parameters of the model", f"{found.parameters:,}"),
        ("sequences on a chip; tokens of the whole batch", f"{found.rows}; {found.tokens:,}"),
        ("memory of a chip", f"{size(found.memory)}, {share:.1%} of {chip.memory / 1e9:.0f} GB"),
        ("  state of the training", size(found.state)),
        ("  its part of the batch", size(found.batch)),
        ("  all between", size(found.working)),
        ("results of sending", "  ".join(sent) or "none"),
        ("calls of our kernels", f"{found.kernels}"),
        *((f"least time for what is {what}", ms(seconds)) for what, seconds in found.times.items()),
        ("compiled in", f"{found.seconds:.1f} s, of the processor {found.processor_seconds:.1f} s"),
    ]


def data(found: plan.Plan) -> dict:
    """Returns a plan as numbers of a result."""
    return {
        "chip": found.chip._asdict(),
        **{
            name: getattr(found, name) for name in ("chips", "parameters", "rows", "tokens", "memory", "state", "batch")
        },
        "working": found.working,
        "memory_share": found.memory / found.chip.memory,
        **found.costs._asdict(),
        "sends": found.sends,
        "kernels": found.kernels,
        "least_seconds": {what.replace(" ", "_"): seconds for what, seconds in found.times.items()},
        "compile_seconds": found.seconds,
        "processor_seconds": found.processor_seconds,
    }


def largest(learner, run, here: list) -> int:
    """Returns the largest batch that fits, of `run.batch` times powers of two; 0 if that itself does not."""
    fits, run = 0, dataclasses.replace(run, curriculum=())
    while _fits(learner, run, here):
        fits = run.batch
        print(f"a batch of {fits} sequences fits", flush=True)
        run = dataclasses.replace(run, batch=2 * run.batch)
    return fits


def _fits(*what) -> bool:
    try:
        return plan.plan(*what).fits
    except plan.TooLarge:
        return False


def main(args) -> None:
    plans = {}
    for topology in args.topology:
        here = chips.devices(topology)
        if args.rows:
            args.config.run.batch, args.config.run.mesh = args.rows * len(here), f"data:1,fsdp:{len(here)}"
        learner, run = TASKS[args.task](args.config)
        found = plan.plan(learner, run, here)
        title = f"{args.task}, {args.config.model}, one training step on {found.chips} {here[0].device_kind}"
        summary.show(f"{title} of {topology}", table(found))
        if not found.fits:
            hint = f"try config.run.batch={run.batch // 2}, or more chips"
            raise ValueError(f"a chip's memory does not hold this; {hint}")
        if args.largest:
            print(f"largest batch, by doubling: {largest(learner, run, here)} sequences")
        plans[topology] = data(found)
        if args.result:
            keep(args, plans, here[0].platform)
    if args.result:
        catalogue.leave(results.load(args.result, args.results), Path(args.results) / args.result)


def keep(args, plans: dict[str, dict], platform: str) -> None:
    """Writes the result of the plans so far."""
    made = gather.made_here(
        ["Counted by the compiler of these chips, without one of them. Nothing was trained or timed."]
    )
    compiler = "libtpu" if platform == "tpu" else "jax-cuda12-plugin"
    made["versions"][compiler] = version(compiler)
    command = f"python {shlex.join(sys.argv)}"
    found = gather.result(args.result, QUESTION, command, made, config=args.config, data=plans)
    results.write(Path(args.results) / args.result, found)


if __name__ == "__main__":
    launch.run(
        main,
        config="srcd.py:paper",
        task=launch.Flag("srcd", "The experiment that the config is of.", tuple(TASKS)),
        topology=launch.Flag(
            ["v5e:2x2"], "Chips in the compiler's words: v5e:4x4, v5p:4x4x4, v6e:16x16, ... May be repeated."
        ),
        rows=launch.Flag(0, "Sequences on each chip; 0 for those of config.run.batch."),
        largest=launch.Flag(False, "Also find the largest batch that fits, by doubling config.run.batch."),
        result=launch.Flag("", "Name of a result of all these plans; without one they are printed only."),
        results="runs",
        takes="10 to 60 seconds for each batch that is compiled, one CPU core; a billion parameters 3 to 9 minutes",
    )
