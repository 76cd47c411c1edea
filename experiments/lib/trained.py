"""The last state of a run directory, for what looks at a trained model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cram_jax.training import step as training
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner, TrainState


class Trained(NamedTuple):
    """Attributes: summary, of the run; config, its settings; learner, run, made of them; step and state, the last."""

    summary: dict
    config: ConfigDict
    learner: Learner
    run: RunConfig
    step: int
    state: TrainState


def load(workdir: Path, build: Callable[[ConfigDict], tuple[Learner, RunConfig]], make: str) -> Trained:
    """A finished run.

    Args:
      build: of the main that trained it.
      make: the command that trains one, for the error.

    Raises:
      ValueError: if the directory holds no finished run with a checkpoint.
    """
    saves, summary = workdir / "checkpoints", workdir / "summary.json"
    if not (summary.exists() and saves.exists()):
        raise ValueError(f"--run={workdir} holds no finished run; this makes one: {make}")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    learner, run = build(config)
    restored = Checkpoints(saves).restore(training.init(learner, config.seed, config.data.get("patterns", 0)))
    if restored is None:
        raise ValueError(f"--run={workdir} holds no checkpoint; train again: {make}")
    return Trained(json.loads(summary.read_text()), config, learner, run, *restored)
