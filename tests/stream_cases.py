"""The experiments on streams as small as tests need them."""

from unittest import mock

import jax
from configs import streams as streams_config
from lib import deployment, gather, stream_runs

from cram_jax.training import loop
from cram_jax.training import step as training

LENGTH, SIZE = 32, 3  # events in a visit, fresh streams
SETTINGS = {
    "run.steps": 20, "run.log_every": 20, "run.checkpoint_every": 20, "run.length": LENGTH, "run.batch": 4,
    "run.held_out_tokens": 128, "run.final_tokens": 128, "data.srcd.patterns": 6, "data.universe": 40,
    "posterior_cram.semantic.features": 32, "price.start": 5, "price.plateau": 1.0, "joined": (4,), "longer": 1,
    "deployment.streams": SIZE, "deployment.visits": 20, "deployment.change.visit": 10, "deployment.change.visits": 20,
}  # fmt: skip
ENTRIES = streams_config.ENTRIES


def configured(label: str):
    """Settings of an entry, as small as those of the commands here."""
    config = streams_config.get_config("tiny")
    config.update_from_flattened_dict(SETTINGS)
    config = stream_runs.settings(config, ENTRIES[label], 0)
    config.depth = 1  # half the time to compile
    return config


def trained_for(label: str, steps: int):
    """(learner that reads single visits, state) after a few steps."""
    config = configured(label)
    learner, settings = stream_runs.build(config)
    state = training.init(learner, 0, 0, loop.streams(learner, settings))
    for i in range(steps):
        batch = learner.task.batch("train", 0, i, settings.length, settings.batch)
        fresh_B = None if config.carried else learner.task.fresh("train", i, settings.batch)
        state, _ = training.train_step(learner, state, batch, fresh_B)
    return stream_runs.deployed_learner(config, ENTRIES[label]), state


def reader_of(label: str, learner):
    return ENTRIES[label].reader(learner, configured(label).deployment)


def visited(reader, params, progress, index):
    """(progress, counts) after one visit of fresh streams."""
    batch = reader.learner.task.batch("held_out", 0, index, LENGTH, progress.asked_BxP.shape[0])
    return deployment.visit(reader, params, progress, batch, index, jax.random.key(index))


def gathering(deployed):
    """The mains take counts from `deployed`, and no directory says who made them."""
    made = {"made_by": lambda *args: gather.made_by([]), "deployed": deployed}
    return mock.patch.multiple(stream_runs, **made)
