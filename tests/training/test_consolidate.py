"""Consolidation after training: what it teaches, what it leaves alone, and that it never looks at answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import step
from cram_jax.training.consolidate import attentive, consolidate
from cram_jax.training.step import Learner

TASK = SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20))
LEARNER = Learner(TASK, Stack((CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=4)),), 2))


def batches(count: int):
    return [TASK.batch("train", 0, i, 32, 4) for i in range(count)]


@pytest.fixture(scope="module")
def state():
    return step.init(LEARNER, 0, 10)


def test_the_semantic_memory_learns_what_is_retrieved_and_nothing_else_moves(state):
    taught, losses = consolidate(LEARNER, state, batches(60), jax.random.key(1), rate=1e-2)
    assert losses.shape == (60,) and np.mean(losses[-10:]) < 0.8 * np.mean(losses[:5])
    moved = lambda old, new: any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (old, new)), strict=True))
    for name in state.params.model[0]._fields:
        old, new = (getattr(s.params.model[0], name) for s in (state, taught))
        assert moved(old, new) == (name in ("semantic", "familiarity")), name
    assert not moved(state.params.task, taught.params.task) and not moved(state.opt_state, taught.opt_state)
    assert moved(state.consolidation[0]._replace(released=0), taught.consolidation[0]._replace(released=0))


def test_answers_are_not_looked_at(state):
    blind = [
        batch._replace(
            answer_BxT=jnp.where(batch.answer_BxT >= 0, 0, -1), target_BxT=jnp.full_like(batch.target_BxT, jnp.nan)
        )
        for batch in batches(3)
    ]
    want, got = (consolidate(LEARNER, state, seen, jax.random.key(1))[0] for seen in (batches(3), blind))
    jax.tree.map(np.testing.assert_array_equal, want._replace(key=0), got._replace(key=0))


def test_every_token_retrieves_from_all_events_so_far(state):
    one = batches(1)[0]
    learner = attentive(LEARNER, 32)
    released = state._replace(consolidation=learner.model.release(state.consolidation))
    _, _, aux = step.forward(learner, released.params, released.consolidation, one, jax.random.key(0), train=False)
    routes = aux[0].routes
    assert np.all(routes.attended_BxT) and np.all(routes.kept_BxT) and learner.model.layers[0].episodic.memory == 32


def test_what_cannot_be_consolidated_is_named(state):
    with pytest.raises(ValueError, match="needs at least one batch, got none"):
        consolidate(LEARNER, state, [], jax.random.key(0))
    dense = Learner(TASK, Stack((AttentionConfig(D=16, F=16),)))
    with pytest.raises(ValueError, match="needs a model with a semantic memory, got .*AttentionConfig"):
        consolidate(dense, state, batches(1), jax.random.key(0))
