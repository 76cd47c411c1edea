"""What a training needs on TPUs that are not here: memory, traffic, and the least time of a step.

python experiments/plan_run.py --task=srcd --config=experiments/configs/srcd.py:paper --topology=v5e:4x4 --largest

The real training step is compiled for these chips by their own compiler, which runs on Linux on x86 without a TPU
(`pip install libtpu`). Nothing is trained. --config.run.batch=N sets the sequences of a whole batch. --largest doubles
it until a chip cannot hold its part.

"memory" is what the compiler reserves on one chip. The times are what a chip takes at least, by the numbers that its
maker states, if it does nothing else. The compiler counts operations: those in our kernels are not among them, and a
loop over layers (`rolled`) counts as one layer. That is no measurement.
"""

import dataclasses

import mqar
import srcd
import text
from lib import launch, stream_runs, summary

from cram_jax.training import plan

TASKS = {
    "srcd": srcd.build,
    "streams": stream_runs.build,
    "mqar": mqar.build,
    "text": lambda config: text.build(text.opened(config, ())),
}


def table(found: plan.Plan, rolled: bool) -> list[tuple[str, str]]:
    """Returns the printed rows. In a rolled network the compiler counts one layer only, which they say."""
    once = ", with one layer for all" if rolled else ""
    chip, size, ms = found.chip, lambda n: f"{n / 1e6:,.1f} MB", lambda seconds: f"{1000 * seconds:,.3f} ms"
    sent = [f"{kind}: {size(n)}" for kind, n in found.sent.items()]
    share = found.memory / chip.memory
    return [
        ("chips that train", f"{found.chips}"),
        ("parameters of the model", f"{found.parameters:,}"),
        ("sequences on a chip; tokens of the whole batch", f"{found.rows}; {found.tokens:,}"),
        ("memory of a chip", f"{size(found.memory)}, {share:.1%} of {chip.memory / 1e9:.0f} GB"),
        ("  state of the training", size(found.state)),
        ("  its part of the batch", size(found.batch)),
        ("  all between", size(found.working)),
        (f"results of sending{once}", "  ".join(sent) or "none"),
        (f"calls of our kernels{once}", f"{found.kernels}"),
        *((f"least time for what is {what}{once}", ms(seconds)) for what, seconds in found.times.items()),
        ("compiled in", f"{found.seconds:.1f} s"),
    ]


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
    learner, run = TASKS[args.task](args.config)
    here = plan.devices(args.topology)
    found = plan.plan(learner, run, here)
    title = (
        f"{args.task}, {args.config.model}, one training step on {found.chips} {here[0].device_kind} of {args.topology}"
    )
    summary.show(title, table(found, learner.model.rolled))
    if not found.fits:
        raise ValueError(f"a chip's memory does not hold this; try config.run.batch={run.batch // 2}, or more chips")
    if args.largest:
        print(f"largest batch, by doubling: {largest(learner, run, here)} sequences")


if __name__ == "__main__":
    launch.run(
        main,
        config="srcd.py:paper",
        task=launch.Flag("srcd", "The experiment that the config is of.", tuple(TASKS)),
        topology=launch.Flag("v5e:2x2", "Chips in the compiler's words: v5e:4x4, v5p:4x4x4, v6e:16x16, ..."),
        largest=launch.Flag(False, "Also find the largest batch that fits, by doubling config.run.batch."),
        takes="10 to 60 seconds for each batch that is compiled, one CPU core",
    )
