"""Every working memory keeps the contract of `working.Body`: a new one joins by being listed in `working.BODIES`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import B, D, T, moved, sequence

from cram_jax.functional import working
from cram_jax.functional.working import Body, WorkingConfig, ct_ode

EACH = pytest.mark.parametrize(
    "cfg", [WorkingConfig(body=body, width=16) for body in working.BODIES], ids=lambda c: c.body
)
CARRYING = [
    cfg for cfg in (WorkingConfig(body=body, width=16) for body in working.BODIES) if working.init_cache(cfg, 1).size
]


def memory(cfg: WorkingConfig):
    return moved(working.init(jax.random.key(0), D, cfg))


@EACH
def test_a_body_has_all_that_the_contract_names(cfg):
    assert isinstance(working.body(cfg), Body)
    cache = working.init_cache(cfg, B)
    assert cache.shape == (B, working.body(cfg).numbers(cfg)) and not np.any(cache)


@EACH
def test_streaming_equals_the_whole_sequence(x64, cfg):
    params, (x_BxTxD, gap_BxT) = memory(cfg), sequence()
    whole = jax.jit(lambda x, g: working.apply(params, x, g, None, cfg))(x_BxTxD, gap_BxT)

    def one(cache, now):
        f_BxD, cache, magnitude_B = working.step(params, cache, *now, cfg)
        return cache, (f_BxD, magnitude_B)

    stream = jax.jit(lambda x, g: jax.lax.scan(one, working.init_cache(cfg, B), (x.swapaxes(0, 1), g.T))[1])
    streamed = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), stream(x_BxTxD, gap_BxT))
    # float64: what differs is the order of sums
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12, rtol=0), streamed, whole)


@EACH
def test_a_batch_of_no_sequences_keeps_the_shape_of_the_cache(cfg):
    params, cache = memory(cfg), working.init_cache(cfg, 0)
    f_BxD, after, _ = working.step(params, cache, jnp.zeros((0, D)), jnp.zeros(0), cfg)
    assert f_BxD.shape == (0, D) and after.shape == cache.shape


@EACH
def test_the_future_has_no_gradient(cfg):
    params, (x_BxTxD, gap_BxT), at = memory(cfg), sequence(), 11
    read = lambda x, g: sum(jnp.sum(part[:, at] ** 2) for part in working.apply(params, x, g, None, cfg))
    of_x_BxTxD, of_gap_BxT = jax.jit(jax.grad(read, argnums=(0, 1)))(x_BxTxD, gap_BxT)
    np.testing.assert_array_equal(of_x_BxTxD[:, at + 1 :], 0)
    np.testing.assert_array_equal(of_gap_BxT[:, at + 1 :], 0)
    assert np.all(np.any(of_x_BxTxD[:, at] != 0, axis=-1)) and np.all(of_gap_BxT[:, at] != 0)
    assert np.any(of_x_BxTxD[:, :at] != 0) == (cfg in CARRYING)


@EACH
def test_packed_sequences_equal_separate_ones(x64, cfg):
    params, (x_BxTxD, gap_BxT) = memory(cfg), sequence()
    run = jax.jit(lambda x, g, s: working.apply(params, x, g, s, cfg))
    cut = 9
    packed = run(x_BxTxD, gap_BxT, jnp.broadcast_to(jnp.arange(T) >= cut, (B, T)).astype(jnp.int32))
    # What follows a part changes nothing, so both parts have one shape
    for start, end in ((0, cut), (cut, T)):
        alone = run(jnp.roll(x_BxTxD, -start, axis=1), jnp.roll(gap_BxT, -start, axis=1), None)
        near = lambda p, a, start=start, end=end: np.testing.assert_allclose(
            p[:, start:end], a[:, : end - start], atol=1e-12, rtol=0
        )
        jax.tree.map(near, packed, alone)


@EACH
def test_the_magnitude_is_that_of_the_dynamics_and_the_token_passes_by_them(cfg):
    params, (x_BxTxD, gap_BxT) = memory(cfg), sequence()
    f_BxTxD, magnitude_BxT = working.apply(params, x_BxTxD, gap_BxT, None, cfg)
    _, h_BxTxW = working.body(cfg).apply(params, x_BxTxD, gap_BxT, None, cfg)
    assert h_BxTxW.shape == (B, T, cfg.width) and np.any(f_BxTxD != x_BxTxD)
    np.testing.assert_allclose(magnitude_BxT, np.sqrt(np.mean(np.square(h_BxTxW), axis=-1)), rtol=1e-5)
    silent = params._replace(out_WxD=jnp.zeros_like(params.out_WxD))
    np.testing.assert_array_equal(working.apply(silent, x_BxTxD, gap_BxT, None, cfg)[0], x_BxTxD)


@EACH
def test_no_gap_and_a_very_long_one_have_finite_gradients(cfg):
    params, (x_BxTxD, _) = memory(cfg), sequence()
    read = lambda p, x, g: sum(jnp.sum(jnp.sin(part)) for part in working.apply(p, x, g, None, cfg))
    slope = jax.jit(jax.grad(read, argnums=(0, 1, 2)))
    for gap in (0.0, 1e9):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slope(params, x_BxTxD, jnp.full((B, T), gap))))


@pytest.mark.parametrize("cfg", CARRYING, ids=lambda cfg: cfg.body)
def test_a_longer_gap_forgets_more(cfg):
    # Given one write, and another token after gaps of different length
    params, (x_BxTxD, _) = working.init(jax.random.key(0), D, cfg), sequence()
    h_BxTxW = jax.jit(lambda x, g: working.body(cfg).apply(params, x, g, None, cfg)[1])
    # When the first token is there, and when it is another, then the second shows what is left of the difference
    held = []
    for gap in (1.0, 10.0, 1000.0):
        gap_BxT = jnp.full((B, 2), gap).at[:, 0].set(1.0)
        one, other = (
            h_BxTxW(jnp.stack([first, x_BxTxD[:, 1]], axis=1), gap_BxT)[:, 1]
            for first in x_BxTxD[:, 2:4].swapaxes(0, 1)
        )
        held.append(np.linalg.norm(one - other))
    assert held[0] > held[1] > held[2] >= 0 and held[2] < 0.5 * held[0]


@EACH
def test_operations_grow_with_the_width(cfg):
    wider = dataclasses.replace(cfg, width=2 * cfg.width)
    narrow, wide = working.operations(D, cfg), working.operations(D, wider)
    # At least a read of the token and an output, each a product of D and W
    assert 2 * 2 * D * cfg.width <= narrow < wide


@EACH
def test_widths_that_it_cannot_have_are_refused(cfg):
    with pytest.raises(ValueError, match="WorkingConfig.width must be at least 1, got 0"):
        dataclasses.replace(cfg, width=0)


@pytest.mark.parametrize("body", ["ssd", "palimpsa"])
def test_a_matrix_a_head_needs_whole_heads(body):
    with pytest.raises(ValueError, match=f"width must be a multiple of 16 for {body}, got 24"):
        WorkingConfig(body=body, width=24)


def test_a_body_that_is_not_listed_is_refused():
    with pytest.raises(ValueError, match="working memory body must be one of .*'ct_ode'.*, got 'matrix'"):
        WorkingConfig(body="matrix")


def test_equation_2_by_hand(x64):
    # h <- h + dt sigmoid(W_tau log(1 + gap)) tanh(W1 h + W2 x), K times from 0
    cfg = WorkingConfig(body="ct_ode", width=16, steps=3)
    params, (x_BxTxD, gap_BxT) = memory(cfg), sequence()
    p, x, gap, h = *jax.tree.map(np.asarray, (params, x_BxTxD, gap_BxT)), np.zeros((B, T, 16))
    gate = 1 / (1 + np.exp(-(np.log1p(gap)[..., None] * p.rate_W + p.rate_bias_W)))
    for _ in range(3):
        h = h + gate / 3 * np.tanh(h @ p.state_WxW + x @ p.input_DxW + p.bias_W)
    got, dynamics = ct_ode.apply(params, x_BxTxD, gap_BxT, None, cfg)
    np.testing.assert_allclose(dynamics, h, rtol=0, atol=1e-14)
    np.testing.assert_allclose(got, h @ p.out_WxD + x, rtol=0, atol=1e-13)
