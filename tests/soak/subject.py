"""A training for `soak.py` to attack: python tests/soak/subject.py NAME WORKDIR STEPS SAVES_EVERY FAILING.

FAILING is the share of reads of checkpoints that fail, as if the disk had an error that comes and goes.
"""

import errno
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

from lib import launch, runs
from ml_collections import ConfigDict

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.tasks.streams import StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.tasks.text_task import TextTask
from cram_jax.training import checkpoints
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.settings import to_config
from cram_jax.training.step import Learner

SEED, PATTERNS = 0, 6
DATA = SRCDConfig(length=32, patterns=PATTERNS, answers=4)
READS = EpisodicConfig(heads=1, head_dim=8, memory=32)
TEXT = tuple(str(Path(__file__).with_name(name)) for name in ("subject.py", "soak.py"))
SUBJECTS = {
    "srcd": lambda: (SRCDTask(DATA), CRAMConfig(D=8, F=8, episodic=READS)),
    "streams": lambda: (
        StreamsTask(StreamsConfig(DATA, universe=40, lifetimes=(2, 5))),
        PosteriorCRAMConfig(D=8, F=8, episodic=READS, semantic=PosteriorConfig(features=16)),
    ),
    "text": lambda: (TextTask(TEXT, 0.3), AttentionConfig(D=8, F=8, heads=1, head_dim=8)),
}


def fail_to_read(share: float) -> None:
    """From now on, this share of the reads of checkpoints fails."""
    read = checkpoints._touch

    def fails(folder: Path) -> None:
        if random.random() < share:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(folder))
        read(folder)

    checkpoints._touch = fails


def main(args) -> None:
    if args.failing:
        fail_to_read(args.failing)
    task, layer = SUBJECTS[args.name]()
    learner = Learner(
        task, Stack((layer,)), OptimizerConfig(warmup=1, steps=args.steps), price=PriceConfig(start=1, plateau=1.0)
    )
    run = RunConfig(
        steps=args.steps, length=32, batch=4, log_every=2, checkpoint_every=args.saves_every,
        held_out_tokens=128, probe_batches=0, final_tokens=128,
    )  # fmt: skip
    config = ConfigDict({"seed": SEED, "model": args.name, "run": to_config(run)})
    workdir, patterns = Path(args.workdir), PATTERNS if args.name != "text" else 0
    state, lines = runs.train(config, learner, run, workdir, patterns)
    runs.report(workdir, args.name, runs.finish(learner, run, SEED, state, lines), [("steps", str(int(state.step)))])


if __name__ == "__main__":
    with launch.explained():
        launch.quiet()
        name, workdir, steps, saves_every, failing = sys.argv[1:]
        main(
            SimpleNamespace(
                name=name, workdir=workdir, steps=int(steps), saves_every=int(saves_every), failing=float(failing)
            )
        )
