"""A training in streams that is killed and resumed ends bit for bit as one that was not, memories included."""

import jax
import numpy as np
import pytest

from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.streams import StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training import loop, step
from cram_jax.training.checkpoints import Checkpoints, to_host
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.step import Learner

ROWS, SAVED, STEPS, PATTERNS = 4, 3, 6, 6
LAYER = PosteriorCRAMConfig(
    D=8, F=8, episodic=EpisodicConfig(heads=1, head_dim=8, memory=32), semantic=PosteriorConfig(features=16)
)
LEARNER = Learner(
    StreamsTask(StreamsConfig(SRCDConfig(length=32, patterns=PATTERNS, answers=4), universe=40, lifetimes=(2, 5))),
    Stack((LAYER,)),
    OptimizerConfig(warmup=1, steps=STEPS),
    price=PriceConfig(start=1, plateau=1.0),
)
RUN = RunConfig(
    steps=STEPS, length=32, batch=ROWS, log_every=SAVED, checkpoint_every=SAVED, held_out_tokens=128, probe_batches=0
)


class PowerCut(Exception):
    pass


def cut_at(index: int):
    """`StreamsTask.batch` that fails when it makes that training batch."""
    make = StreamsTask.batch

    def batch(self, split, seed, at, length, size):
        if (split, at) == ("train", index):
            raise PowerCut
        return make(self, split, seed, at, length, size)

    return batch


def test_a_killed_training_in_streams_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    # Given a training that ends without warning at its fifth step, two after its save
    with monkeypatch.context() as cut, pytest.raises(PowerCut):
        cut.setattr(StreamsTask, "batch", cut_at(SAVED + 1))
        loop.train(LEARNER, RUN, 0, tmp_path / "cut", PATTERNS)
    # when streams were in the middle of their lives, with memories, and one began
    like = step.init(LEARNER, 0, PATTERNS, ROWS)
    at, saved = Checkpoints(tmp_path / "cut" / "checkpoints").restore(like)
    _, visit_B = LEARNER.task.rows("train", SAVED, ROWS)
    holds_B = np.any(saved.consolidation[0].memory.sums.A_SxFxF[0] != 0, axis=(1, 2, 3))
    assert at == SAVED and np.any(visit_B == 0) and np.all(holds_B[visit_B > 0]) and np.sum(visit_B > 0) > 1
    # When it is resumed, and another one runs through
    state, lines = loop.train(LEARNER, RUN, 0, tmp_path / "cut", PATTERNS)
    whole, wanted = loop.train(LEARNER, RUN, 0, tmp_path / "whole", PATTERNS)
    # Then they end with the same bits: parameters, memories, the price, counts, and what the memories are worth
    assert state.step == STEPS and np.all(state.consolidation[0].retrievals.released)
    np.testing.assert_equal(to_host(state), to_host(whole))
    kept = lambda line: {name: v for name, v in line.items() if name.startswith(("train/", "held_out/"))}
    np.testing.assert_equal([kept(line) for line in lines], [kept(line) for line in wanted])
    # and the memories are not what they were at the save
    moved = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), state.consolidation[0].memory.sums, saved.consolidation[0].memory.sums
    )
    assert all(moved)
