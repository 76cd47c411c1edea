"""Loads the last state of a run directory, for experiments that analyse a trained model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner, TrainState
from lib import runs


class Trained(NamedTuple):
    """Attributes: summary of the run; config, its settings; learner and run, built from them; last step and state."""

    summary: dict
    config: ConfigDict
    learner: Learner
    run: RunConfig
    step: int
    state: TrainState


def load(workdir: Path, build: Callable[[ConfigDict], tuple[Learner, RunConfig]], make: str) -> Trained:
    """Loads a finished run.

    Args:
      workdir: directory of the run.
      build: function `build` of the main that trained it.
      make: command that trains such a run, for the error message.

    Raises:
      ValueError: if the directory holds no finished run, or no checkpoint of it.
    """
    summary = workdir / "summary.json"
    if not summary.exists():
        raise ValueError(f"--run={workdir} holds no finished run; this makes one: {make}")
    config = ConfigDict(json.loads((workdir / "config.json").read_text()))
    learner, run = build(config)
    last = runs.last_state(learner, config.seed, workdir, config.data.get("patterns", 0))
    return Trained(json.loads(summary.read_text()), config, learner, run, *last)
