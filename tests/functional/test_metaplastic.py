"""Blocks with a recurrent memory: importance that is 0 is no importance, and can be learned from there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import mamba2, palimpsa
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.metaplastic import make_metaplastic
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.recurrence import causal_conv, importance, init_importance
from cram_jax.models.stack import Stack

B, T, D = 2, 20, 8
PLAIN = [
    (mamba2, Mamba2Config(D=D, heads=4, head_dim=4, state=3, groups=2)),
    (palimpsa, PalimpsaConfig(D=D, F=16, heads=2, key_dim=3, value_dim=4, rank=0)),
]
EACH = pytest.mark.parametrize(("functions", "cfg"), PLAIN, ids=["mamba2", "palimpsa"])


def tokens(T=T):
    return jax.random.normal(jax.random.key(1), (B, T, D))


@EACH
def test_the_twin_is_the_same_function_with_a_gradient_to_leave_it(functions, cfg):
    # Given a trained stack, as far as its weights are off their initial values
    stack = Stack((cfg,), 2)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), stack.init(jax.random.key(0))
    )
    loss = lambda stack: lambda params: jnp.sum(jnp.sin(stack.apply(params, stack.init_state(), tokens())[0]))
    # When it becomes metaplastic
    twin_params, twin_cfg = make_metaplastic(params[0], cfg, rank=2)
    twin_params, twin = (twin_params,), Stack((twin_cfg,), 2)
    # Then outputs are equal, but for float32's rounding (6e-8 a product) in another scan; the 1e-7 that is meant of the
    # functions themselves is shown in float64 below
    run = lambda stack, params: jax.jit(lambda p: stack.apply(p, stack.init_state(), tokens())[0])(params)
    want, got = run(stack, params), run(twin, twin_params)
    assert np.linalg.norm(got - want) <= 2e-7 * np.linalg.norm(want)
    # And each head can gain importance, while what was there has the gradient it had
    (before,), (after,) = jax.jit(jax.grad(loss(stack)))(params), jax.jit(jax.grad(loss(twin)))(twin_params)
    assert np.all(np.abs(after.importance.scale_H) > 1e-4)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after._replace(importance=())), strict=True):
        assert np.linalg.norm(new - old) <= 1e-5 * np.linalg.norm(old)


@EACH
def test_the_twin_is_exact_in_float64(functions, cfg, x64):
    stack = Stack((cfg,), 2)
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), stack.init(jax.random.key(0))
    )
    twin = make_metaplastic(params[0], cfg)
    run = lambda params, cfg: jax.jit(lambda p: Stack((cfg,), 2).apply((p,), ((),), tokens())[0])(params)
    np.testing.assert_allclose(run(*twin), run(params[0], cfg), rtol=0, atol=1e-13)


def test_what_is_metaplastic_is_not_converted_again():
    cfg = PalimpsaConfig(rank=3)
    with pytest.raises(ValueError, match="metaplastic already: PalimpsaConfig.rank is 3"):
        make_metaplastic(palimpsa.init(jax.random.key(0), cfg), cfg)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        make_metaplastic(palimpsa.init(jax.random.key(0), cfg), cfg, rank=0)


def test_importance_is_never_negative_and_can_come_back():
    params = init_importance(jax.random.key(0), D, 2, 3, 4)._replace(scale_H=jnp.array([-0.5, 0.0, 2.0]))
    beta_BxTxHxV = importance(params, tokens())
    assert np.all(beta_BxTxHxV[..., :2, :] == 0) and np.all(beta_BxTxHxV[..., 2, :] > 0)
    gradient = jax.grad(lambda params: jnp.sum(importance(params, tokens())))(params)
    assert np.all(gradient.scale_H > 0)


def test_the_delta_rule_recalls_what_was_written_last(x64):
    # Given two writes under one key, in full and without decay
    k_BxTxHxK = jnp.array([1.0, 0.0]) * jnp.ones((1, 2, 1, 2))
    v_BxTxHxV, one = jnp.array([[3.0], [5.0]])[None, :, None], jnp.ones((1, 2, 1))
    o, state = palimpsa._delta_scan(k_BxTxHxK, k_BxTxHxK, v_BxTxHxV, one, 0 * one, None, None)
    # Then the second has replaced the first, where a sum would hold both
    np.testing.assert_allclose(o[0, :, 0, 0] * np.sqrt(2), [3, 5], rtol=1e-15)
    np.testing.assert_allclose(state[0, 0], [[5, 0]], rtol=1e-15)


def test_the_convolution_is_the_sum_over_its_window():
    x_BxTxX, weight_WxX = tokens(7), jax.random.normal(jax.random.key(2), (4, D))
    want = np.zeros((B, 7, D))
    for t in range(7):
        for back in range(min(4, t + 1)):
            want[:, t] += x_BxTxX[:, t - back] * weight_WxX[3 - back]
    np.testing.assert_allclose(causal_conv(x_BxTxX, weight_WxX, None), want, rtol=0, atol=1e-6)


@EACH
def test_products_in_bfloat16_leave_residual_decays_and_state_alone(functions, cfg):
    half = dataclasses.replace(cfg, compute_dtype="bfloat16")
    params = functions.init(jax.random.key(0), cfg)
    y, rounded = (jax.jit(lambda p, c=c: functions.apply(p, (), tokens(), cfg=c)[0])(params) for c in (cfg, half))
    # bfloat16 has 8 bits: 0.4% a product, a few of them after each other
    assert rounded.dtype == jnp.float32 and 1e-4 < np.linalg.norm(rounded - y) / np.linalg.norm(y) < 0.02
    cache = functions.init_cache(half, B)
    assert cache.past_BxWxX.dtype == jnp.bfloat16 and cache.state.dtype == jnp.float32


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (Mamba2Config, {"heads": 3, "groups": 2}, "groups must divide heads.*groups=2.*heads=3"),
        (Mamba2Config, {"rank": -1}, "rank must be at least 0, got -1"),
        (Mamba2Config, {"spread": "wide"}, "spread must be one of .*got 'wide'"),
        (PalimpsaConfig, {"delta": True}, "delta=True needs rank=0, got rank=8"),
        (PalimpsaConfig, {"key_dim": 0}, "PalimpsaConfig.key_dim must be at least 1, got 0"),
        (PalimpsaConfig, {"F": -1}, "must be at least 0, got rank=8, F=-1"),
        (PalimpsaConfig, {"compute_dtype": "float16"}, "compute_dtype must be one of"),
    ],
)
def test_settings_out_of_range_are_named(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)
