"""Lesions count what they say: right answers without attention that are wrong once a memory is gone."""

from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.training import lesion
from cram_jax.training.learner import Learner, Params, TrainState


class Model(NamedTuple):
    semantic: jax.Array
    feed_forward: jax.Array


class Batch(NamedTuple):
    answer_BxT: jax.Array
    is_new_BxT: jax.Array
    source_BxT: jax.Array  # which memory answers: 0 both, 1 semantic only, 2 feed-forward only, 3 none
    attended_BxT: jax.Array


class Fake:
    """Task and model in one: answers 1 where the memory that knows is there, 0 elsewhere."""

    def embed(self, params, batch):
        return batch, None

    def apply(self, model, consolidation, batch, gap_BxT):
        has_semantic, has_feed_forward = model.semantic > 0, model.feed_forward > 0
        knows = jnp.stack([has_semantic | has_feed_forward, has_semantic, has_feed_forward, has_semantic & False])
        routes = SimpleNamespace(attended_BxT=batch.attended_BxT[None])
        return knows[batch.source_BxT], SimpleNamespace(routes=routes)

    def read(self, params, y_BxT, batch):
        return jax.nn.one_hot(y_BxT.astype(int), 2), None


def test_shares_lost_by_hand():
    # Given 8 tokens: a query of a new binding, one that attends, one answered wrong, no query, and four that count
    batch = Batch(
        answer_BxT=jnp.array([[1, 1, 1, -1, 1, 1, 1, 1]]),
        is_new_BxT=jnp.array([[True, False, False, False, False, False, False, False]]),
        source_BxT=jnp.array([[1, 1, 3, 1, 0, 1, 1, 2]]),
        attended_BxT=jnp.array([[False, True, False, False, False, False, False, False]]),
    )
    learner = object.__new__(Learner)  # the real ones' names, without their checks
    for part in ("task", "model"):
        object.__setattr__(learner, part, Fake())
    unused = dict.fromkeys(TrainState._fields, ())
    state = TrainState(**unused | {"params": Params((), Model(jnp.ones(()), jnp.ones(())))})
    out = lesion.share_lost(learner, state, [batch, batch])
    assert out["recurring_unattended_queries"] == 8
    np.testing.assert_allclose(out["recurring_lost_without_semantic"], 2 / 4)
    np.testing.assert_allclose(out["recurring_lost_without_feed_forward"], 1 / 4)
