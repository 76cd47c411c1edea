"""Lesions count what they say: right answers without attention that are wrong once a memory is gone."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import lesion

from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import step as training
from cram_jax.training.step import Learner

LEARNER = Learner(
    task=SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20)),
    model=Stack((CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=8)),)),
)
STATE = training.init(LEARNER, 0, 10)


class Batch(NamedTuple):
    answer_BxT: jax.Array
    is_new_BxT: jax.Array


def test_shares_lost_by_hand(monkeypatch):
    # Given 8 tokens: a new query, a recurring one that attends, one answered wrong, no query, and four that count
    batch = Batch(jnp.array([[1, 1, 1, -1, 1, 1, 1, 1]]), jnp.array([[True] + [False] * 7]))
    attended_BxT = np.array([[True, True] + [False] * 6])
    right = {
        (): [[True, True, False, True, True, True, True, True]],
        ("semantic",): [[True, False, False, False, True, False, False, True]],
        ("feed_forward",): [[False, False, False, False, True, True, True, False]],
        lesion.PARTS: [[False, False, False, False, True, False, False, False]],
    }

    def answers(learner, state, batch):
        gone = lambda part: not any(np.any(leaf) for leaf in jax.tree.leaves(getattr(state.params.model[0], part)))
        return np.array(right[tuple(part for part in lesion.PARTS if gone(part))]), attended_BxT

    monkeypatch.setattr(lesion, "answers", answers)
    ones = STATE._replace(params=jax.tree.map(jnp.ones_like, STATE.params))
    out = lesion.share_lost(LEARNER, ones, [batch, batch])
    lost = lambda group: [out[f"{group}_lost_without_{name}"] for name in lesion.lesions(1)]
    # semantic memory, feed-forward networks, semantic memory of the only layer, all of the layers
    assert lost("recurring") == [2 / 4, 1 / 4, 2 / 4, 3 / 4]
    assert lost("new") == [0, 1, 0, 1]
    assert out["recurring_unattended_queries"] == 8
    assert out["recurring_lost_without_semantic_holder"] == 2 / 4 and out["new_lost_without_semantic_holder"] == 0


@pytest.mark.parametrize(("layer", "lesioned"), [(1, (0, 1)), (2, (1, 0)), (None, None)])
def test_a_lesion_of_one_layer_leaves_the_others(layer, lesioned):
    # Given three repeats of a pattern of two layers, whose layers are counted through the network
    (own,) = STATE.params.model
    ones = jax.tree.map(lambda x: jnp.ones((3, *x.shape[1:])), own)
    state = STATE._replace(params=STATE.params._replace(model=(ones, ones)), consolidation=((), ()))
    found = lesion.without(state, ("semantic",), layer).params.model
    is_all = lambda value: np.array(
        [[np.all(place.semantic.up_RxD[repeat] == value) for place in found] for repeat in range(3)]
    )
    assert np.all(is_all(0) != is_all(1)) and all(np.all(place.router.in_DxF == 1) for place in found)
    assert np.argwhere(is_all(0)).tolist() == [list(lesioned)] if lesioned else np.all(is_all(0))


def test_a_memory_that_is_solved_recalls_nothing_and_is_as_sure_as_before():
    learner = dataclasses.replace(LEARNER, model=Stack((PosteriorCRAMConfig(D=16, F=16),)))
    state = training.init(learner, 0, 10)
    full = jax.tree.map(jnp.ones_like, state.consolidation[0])
    (after,) = lesion.without(state._replace(consolidation=(full,)), ("semantic",)).consolidation
    assert not np.any(after.memory.up_SxFxD)
    same = after._replace(memory=after.memory._replace(up_SxFxD=full.memory.up_SxFxD))
    jax.tree.map(np.testing.assert_array_equal, same, full)


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="parts must be among .*'semantic'.*got .'head'"):
        lesion.without(STATE, ("head",))


def test_without_its_layers_a_model_reads_its_embedding():
    # Given a batch, and a state in which no weight is zero
    batch = LEARNER.task.batch("held_out", 0, 0, 32, 2)
    lively = STATE._replace(params=jax.tree.map(lambda x: x + 0.1, STATE.params))
    silent = lesion.without(lively, lesion.PARTS)

    @jax.jit
    def logits(state):
        """Returns the logits of the whole model, and of its read-out alone."""
        x_BxTxD, gap_BxT = LEARNER.task.embed(state.params.task, batch)
        y_BxTxD, _ = LEARNER.model.apply(state.params.model, state.consolidation, x_BxTxD, gap_BxT=gap_BxT)
        return [LEARNER.task.read(state.params.task, z_BxTxD, batch)[0] for z_BxTxD in (y_BxTxD, x_BxTxD)]

    # Working memory still adds the token it read, which the last norm takes out again
    np.testing.assert_allclose(*logits(silent), atol=1e-4)


def test_a_model_whose_routes_are_drawn_can_be_lesioned():
    # Given a router by chance, then the same dice are thrown for the whole model and for a lesioned one
    chance = lambda layer: dataclasses.replace(
        layer, routing=dataclasses.replace(layer.routing, decide="random", budget=0.5)
    )
    learner = dataclasses.replace(LEARNER, model=LEARNER.model.replace(chance))
    released = STATE._replace(consolidation=learner.model.release(STATE.consolidation))
    batch = learner.task.batch("held_out", 0, 0, 32, 4)
    _, attended_BxT = lesion.answers(learner, released, batch)
    assert 0.2 < attended_BxT.mean() < 0.8
    np.testing.assert_array_equal(
        attended_BxT, lesion.answers(learner, lesion.without(released, ("semantic",)), batch)[1]
    )


def test_answers_are_those_that_metrics_count():
    batch = LEARNER.task.batch("held_out", 0, 0, 64, 8)
    right_BxT, attended_BxT = lesion.answers(LEARNER, STATE, batch)
    metrics = training.evaluate_step(LEARNER, STATE, batch, jax.random.key(0))
    asked_BxT = batch.answer_BxT >= 0
    assert metrics["retrieval_accuracy"] == (jnp.sum(right_BxT & asked_BxT), jnp.sum(asked_BxT))
    assert jnp.all(attended_BxT)  # before the release
