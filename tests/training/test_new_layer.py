"""A layer that the library does not know works beside CRAM: in stacks, training, counts, streams, consolidation."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.layer import Layer, LayerAux, Operations
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import optimizer, step
from cram_jax.training.consolidate import consolidate
from cram_jax.training.controller import PriceConfig
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.step import Learner

T, B = 32, 4


class MeanParams(NamedTuple):
    """Attributes: a matrix that decays, one that does not, and a scale."""

    in_DxD: jax.Array
    still_DxD: jax.Array
    scale_D: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Mean(Layer):
    """The mean of all tokens so far."""

    D: int = 16
    no_decay: ClassVar = ("still_*",)

    def init(self, key):
        draw = lambda key: 0.1 * jax.random.normal(key, (self.D, self.D))
        return MeanParams(*map(draw, jax.random.split(key)), jnp.ones(self.D))

    def init_cache(self, batch):
        return jnp.zeros((), jnp.int32), jnp.zeros((batch, self.D))

    def mix(self, params, state, x_BxTxD, gap_BxT, *, key, train, segment_BxT):
        mean_BxTxD = jnp.cumsum(x_BxTxD, axis=1) / jnp.arange(1, x_BxTxD.shape[1] + 1)[:, None]
        return params.scale_D * (mean_BxTxD @ (params.in_DxD + params.still_DxD)), LayerAux()

    def mix_token(self, params, state, cache, x_BxD, gap_B, *, key):
        seen, total_BxD = cache[0] + 1, cache[1] + x_BxD
        mixed_BxD = params.scale_D * (total_BxD / seen @ (params.in_DxD + params.still_DxD))
        return mixed_BxD, (seen, total_BxD), LayerAux()

    def operations(self, shape, routes, train):
        return Operations(0.0, (3 if train else 1) * 2.0 * self.D**2 * shape[0] * shape[1])


CRAM = CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=8))
LEARNER = Learner(
    task=SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20)),
    model=Stack((Mean(), CRAM)),
    optimizer=OptimizerConfig(warmup=1, steps=20, rates=(("model.0.scale_D", 2.0),)),
    price=PriceConfig(start=1, plateau=1.0),
)


def batch(index: int):
    return LEARNER.task.batch("train", 0, index, T, B)


@pytest.fixture(scope="module")
def trained():
    """(fresh parameters, the state after three steps, the last report)."""
    state = step.init(LEARNER, 0, 10)
    before = jax.tree.map(np.asarray, state.params)
    for i in range(3):
        state, report = step.train_step(LEARNER, state, batch(i))
    return before, state, report


def test_it_is_trained_counted_and_released(trained):
    before, state, report = trained
    assert all(np.any(old != new) for old, new in zip(before.model[0], state.params.model[0], strict=True))
    assert report["skipped"][0] == 0 and np.isfinite(report["loss"][0])
    assert state.consolidation[0] == () and np.all(state.consolidation[1].released)
    # Layers are numbered among those that decide who attends
    assert "attention_layer_0" in report and "attention_layer_1" not in report
    # Of what was executed, attention and total, its own share is known
    one = batch(0)
    run = jax.jit(lambda p, s: step.forward(LEARNER, p, s, one, None, False)[1:])
    metrics, (_, aux) = run(state.params, state.consolidation)
    of_cram = CRAM.operations((B, T), jax.tree.map(lambda leaf: leaf[0], aux.routes), False)
    np.testing.assert_allclose(metrics["total_flops"][0], of_cram.total + 2 * 16**2 * B * T, rtol=1e-6)
    np.testing.assert_allclose(metrics["attention_flops"][0], of_cram.attention, rtol=1e-6)


def test_its_own_patterns_are_followed(trained):
    _, state, _ = trained
    decays = optimizer.decays(LEARNER.optimizer, LEARNER.model, state.params).model[0]
    assert decays == MeanParams(True, False, False)
    lines = optimizer.describe(LEARNER.optimizer, LEARNER.model, state.params)
    assert (
        lines[1] == f"rate x 2 (model.0.scale_D): 1 of {len(jax.tree.leaves(state.params))} parameters: model.0.scale_D"
    )


def test_it_streams(trained):
    _, state, _ = trained
    x_BxTxD, gap_BxT = LEARNER.task.embed(state.params.task, batch(5))
    run = (state.params.model, state.consolidation)
    whole_BxTxD, _ = jax.jit(lambda x: LEARNER.model.apply(*run, x, gap_BxT=gap_BxT))(x_BxTxD)
    rollout = jax.jit(lambda c, x: LEARNER.model.rollout(*run, c, x, gap_BxT=gap_BxT)[0])
    np.testing.assert_allclose(rollout(LEARNER.model.init_cache(B), x_BxTxD), whole_BxTxD, atol=1e-4)  # float32 sums


def test_consolidation_leaves_it_alone(trained):
    _, state, _ = trained
    taught, losses = consolidate(LEARNER, state, [batch(6)], jax.random.key(0))
    assert np.all(np.isfinite(losses))
    jax.tree.map(np.testing.assert_array_equal, taught.params.model[0], state.params.model[0])
    assert np.any(taught.params.model[1].semantic.up_RxD != state.params.model[1].semantic.up_RxD)
