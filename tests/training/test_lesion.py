"""Lesions count what they say: right answers without attention that are wrong once a memory is gone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import learner as learning
from cram_jax.training import lesion
from cram_jax.training.learner import Learner

LEARNER = Learner(
    task=SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20)),
    model=Stack(CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=8)), depth=1),
)
STATE = learning.init(LEARNER, 0, 10)


class Batch(NamedTuple):
    answer_BxT: jax.Array
    is_new_BxT: jax.Array


def test_shares_lost_by_hand(monkeypatch):
    # Given 8 tokens: a query of a new binding, one that attends, one answered wrong, no query, and four that count
    batch = Batch(jnp.array([[1, 1, 1, -1, 1, 1, 1, 1]]), jnp.array([[True] + [False] * 7]))
    attended_BxT = np.array([[False, True] + [False] * 6])
    right = {
        "whole": [[True, True, False, True, True, True, True, True]],
        "semantic": [[False, False, False, False, True, False, False, True]],
        "feed_forward": [[False, False, False, False, True, True, True, False]],
    }

    def answers(learner, state, batch):
        semantic, feed_forward = (jax.tree.leaves(getattr(state.params.model, part)) for part in lesion.PARTS)
        gone = lambda leaves: not any(np.any(leaf) for leaf in leaves)
        which = "semantic" if gone(semantic) else "feed_forward" if gone(feed_forward) else "whole"
        return np.array(right[which]), attended_BxT

    monkeypatch.setattr(lesion, "answers", answers)
    ones = STATE._replace(params=jax.tree.map(jnp.ones_like, STATE.params))
    out = lesion.share_lost(LEARNER, ones, [batch, batch])
    assert out["recurring_unattended_queries"] == 8
    np.testing.assert_allclose(out["recurring_lost_without_semantic"], 2 / 4)
    np.testing.assert_allclose(out["recurring_lost_without_feed_forward"], 1 / 4)


def test_answers_are_those_that_metrics_count():
    batch = LEARNER.task.batch("held_out", 0, 0, 64, 8)
    right_BxT, attended_BxT = lesion.answers(LEARNER, STATE, batch)
    metrics = learning.evaluate_step(LEARNER, STATE, batch, jax.random.key(0))
    asked_BxT = batch.answer_BxT >= 0
    assert metrics["retrieval_accuracy"] == (jnp.sum(right_BxT & asked_BxT), jnp.sum(asked_BxT))
    assert jnp.all(attended_BxT)  # before the release
