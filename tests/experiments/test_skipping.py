"""Skipping compared with not skipping, on a state that has something to skip."""

import dataclasses

import jax
import jax.numpy as jnp
import skipping

from cram_jax.functional import consolidation
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import learner as learning
from cram_jax.training.learner import Learner

CFG = CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=16, write_bias=-2.0))
LEARNER = Learner(
    task=SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20)),
    model=Stack(dataclasses.replace(CFG, routing=RoutingConfig(audit_gain=0.0)), depth=1),
)


def test_steps_that_skip_and_steps_that_mask_agree():
    # Given a released state whose router sends nobody to attention, so that audits are all there is
    state = learning.init(LEARNER, 0, 10)
    state = state._replace(consolidation=consolidation.release(state.consolidation))
    router = state.params.model.router
    away = router._replace(out_FxD=router.out_FxD.at[..., 1].add(-1.0))
    state = state._replace(params=state.params._replace(model=state.params.model._replace(router=away)))
    batches = [LEARNER.task.batch("train", 0, i, 256, 2) for i in range(3)]
    out = skipping.agreement(LEARNER, state, batches)
    assert out["steps"] == 3 and out["largest_relative_difference"] < 1e-4
    # ... on short lists: well below the eighth and the quarter of all places that they have
    assert 0 < out["attention_tokens_training"] < 0.06 and 0 < out["kept_share_training"] < 0.2


def test_the_floor_has_no_episodic_path():
    # Given one state, a step with and a step without: the latter gives the path's parameters no gradient at all
    state = learning.init(LEARNER, 0, 10)
    batch = LEARNER.task.batch("train", 0, 0, 256, 2)
    moments = lambda step: step(state, batch)[0].opt_state[1][0].mu.model.episodic
    with_path = moments(skipping.compiled_step(LEARNER, state, batch))
    with skipping.no_episodic():
        without = moments(skipping.compiled_step(LEARNER, state, batch))
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(with_path))
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(without))
