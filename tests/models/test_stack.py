"""A stack keeps the contract of its layers, whatever they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_jax.functional.jamba import JambaConfig
from cram_jax.functional.working_memory import WorkingConfig

from cram_jax.functional import consolidation
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.functional.seqboat import SeqBoatConfig
from cram_jax.models.stack import Stack

B, T, D = 2, 24, 8
LAYERS = [
    CRAMConfig(
        D=D,
        F=16,
        episodic=EpisodicConfig(heads=2, head_dim=4, memory=6),
        routing=RoutingConfig(evaluation_audit_rate=0.3),
    ),
    AttentionConfig(D=D, F=16, heads=2, head_dim=4, context=T),
    AttentionConfig(D=D, F=16, heads=2, head_dim=4, context=T, rotary=True),
    Mamba2Config(D=D, heads=4, head_dim=4, state=3, groups=2),
    Mamba2Config(D=D, heads=2, head_dim=4, state=3, groups=2, rank=2, norm_groups=2),
    PalimpsaConfig(D=D, heads=2, key_dim=3, value_dim=4, rank=0),
    PalimpsaConfig(D=D, heads=2, key_dim=3, value_dim=4, rank=0, delta=True),
    PalimpsaConfig(D=D, F=16, heads=2, key_dim=3, value_dim=4, rank=2),
    JambaConfig(
        mamba=Mamba2Config(D=D, heads=2, head_dim=4, state=3),
        attention=AttentionConfig(D=D, F=16, heads=2, head_dim=4, context=T),
        recurrent=2,
        before=1,
    ),
    SeqBoatConfig(
        AttentionConfig(D=D, F=16, heads=2, head_dim=4), memory=5, working=WorkingConfig(body="gated_scan", width=8)
    ),
]
EVERY = pytest.mark.parametrize("layer", LAYERS, ids=lambda cfg: type(cfg).__name__)


def network(layer, depth=3):
    """A stack with its parameters moved off their initial values, its router released where it has one."""
    stack = Stack(layer, depth)
    params = stack.init(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.1 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    states = stack.init_state()
    return stack, jax.tree.unflatten(tree, moved), consolidation.release(states) if stack.consolidates else states


def sequence():
    x, gap = jax.random.split(jax.random.key(2))
    return jax.random.normal(x, (B, T, D)), 1 + jax.random.exponential(gap, (B, T))


@EVERY
def test_streaming_equals_the_whole_sequence(x64, layer):
    stack, params, states = network(layer)
    x_BxTxD, gap_BxT = sequence()
    key = jax.random.key(3)
    whole_BxTxD, _ = jax.jit(lambda x, g: stack.apply(params, states, x, gap_BxT=g, key=key))(x_BxTxD, gap_BxT)

    # In two pieces, the caches written in place
    stream = jax.jit(lambda c, x, g: stack.rollout(params, states, c, x, gap_BxT=g, key=key)[:2], donate_argnums=0)
    first_BxTxD, caches = stream(stack.init_cache(B), x_BxTxD[:, :10], gap_BxT[:, :10])
    second_BxTxD, _ = stream(caches, x_BxTxD[:, 10:], gap_BxT[:, 10:])
    # float64: what differs is the order of sums
    streamed_BxTxD = jnp.concatenate([first_BxTxD, second_BxTxD], axis=1)
    np.testing.assert_allclose(streamed_BxTxD, whole_BxTxD, atol=1e-10, rtol=0)


@EVERY
def test_the_future_has_no_gradient(layer):
    stack, params, states = network(layer)
    x_BxTxD, gap_BxT = sequence()
    at = 11
    run = lambda x: jnp.sum(stack.apply(params, states, x, gap_BxT=gap_BxT)[0][:, at] ** 2)
    gradient_BxTxD = jax.jit(jax.grad(run))(x_BxTxD)
    np.testing.assert_array_equal(gradient_BxTxD[:, at + 1 :], 0)
    assert np.all(np.abs(gradient_BxTxD[:, at]).max(axis=-1) > 0)


@EVERY
def test_a_stack_is_its_layers_one_after_the_other(layer):
    stack, params, states = network(layer)
    x_BxTxD, gap_BxT = sequence()
    stacked_BxTxD, _ = jax.jit(lambda x: stack.apply(params, states, x, gap_BxT=gap_BxT))(x_BxTxD)
    apply = jax.jit(lambda p, s, x: stack.functions.apply(p, s, x, cfg=layer, gap_BxT=gap_BxT)[0])
    for index in range(stack.depth):
        take = lambda tree, index=index: jax.tree.map(lambda leaf: leaf[index], tree)
        x_BxTxD = apply(take(params), take(states), x_BxTxD)
    # float32: compiled together or apart, sums may be fused differently
    np.testing.assert_allclose(stacked_BxTxD, x_BxTxD, atol=2e-5, rtol=1e-5)


def test_a_layer_of_another_kind_is_refused(unchecked):
    with pytest.raises(TypeError, match="layer must be one of .*CRAMConfig.*, got dict"):
        Stack({"D": 8})
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        Stack(LAYERS[0], 0)
