"""Palimpsa's and MetaMamba2's blocks against loops written from the paper's equations, in float64 and NumPy alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import mamba2, palimpsa
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.recurrence import LEAST_RATE, init_decay, init_importance

B, T, D = 2, 9, 6


def softplus(x):
    return np.log1p(np.exp(x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms(x, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon)


def convolved(x_TxX, weight_WxX, bias=0.0):
    """The newest input under the last weight."""
    W = len(weight_WxX)
    padded = np.concatenate([np.zeros((W - 1, x_TxX.shape[1])), x_TxX])
    return np.stack([np.sum(padded[t : t + W] * weight_WxX, axis=0) for t in range(len(x_TxX))]) + bias


def remembered(q_TxHxK, k_TxHxK, v_TxHxV, beta_TxHxV, dt_TxH, A_H, scale):
    """M and J synapse by synapse, prior 1: what each token reads after its write."""
    H, K, V = *q_TxHxK.shape[1:], v_TxHxV.shape[2]
    o_TxHxV = np.zeros(v_TxHxV.shape)
    for h in range(H):
        M, J = np.zeros((V, K)), np.zeros((V, K))
        for t in range(len(o_TxHxV)):
            a = np.exp(-dt_TxH[t, h] * A_H[h])
            M = a * M + np.outer(v_TxHxV[t, h], k_TxHxK[t, h])
            J = a * J + np.outer(beta_TxHxV[t, h], k_TxHxK[t, h] ** 2)
            o_TxHxV[t, h] = scale * (M / (J + 1)) @ q_TxHxK[t, h]
    return o_TxHxV


def moved(params):
    """Parameters all off their initial values, in float64; importance stays above 0."""
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    shifted = [np.asarray(x, np.float64) + 0.3 * random.normal(size=x.shape) for x in leaves]
    return jax.tree.unflatten(tree, shifted)


def tokens():
    return np.random.default_rng(1).normal(size=(B, T, D))


def test_palimpsas_block(x64):
    cfg = PalimpsaConfig(D=D, heads=2, key_dim=3, value_dim=4, rank=2)
    H, K, V = 2, 3, 4
    p = moved(palimpsa.init(jax.random.key(0), cfg))
    x_BxTxD = tokens()
    want = np.zeros(x_BxTxD.shape)
    for b, x_TxD in enumerate(x_BxTxD):
        h = rms(x_TxD, cfg.epsilon) * p.norm_D
        mixed = silu(convolved(h @ p.in_DxX, p.conv_WxX))
        q, k, x = mixed[:, : H * K], mixed[:, H * K : 2 * H * K], mixed[:, 2 * H * K :]
        q, k, x = q.reshape(T, H, K), k.reshape(T, H, K), x.reshape(T, H, V)
        q, k = (y / np.sqrt(np.sum(y**2, axis=-1, keepdims=True) + 1e-6) for y in (q, k))
        dt = softplus(h @ p.dt_DxH + p.decay.bias_H)
        w = sigmoid(h @ p.write_DxH)[..., None]
        up = np.einsum("tr,rhv->thv", h @ p.importance.down_DxR, p.importance.up_RxHxV)
        beta = w * sigmoid(up) * p.importance.scale_H[:, None]
        y = remembered(q, k, w * x, beta, dt, np.exp(p.decay.log_rate_H), K**-0.5) + p.skip_H[:, None] * x
        gate = silu(np.einsum("td,dhv->thv", h, p.gate_DxHxV))
        want[b] = x_TxD + np.einsum("thv,hvd->td", rms(y, cfg.epsilon) * p.out_norm_V * gate, p.out_HxVxD)
    got, _ = palimpsa.apply(jax.tree.map(jnp.asarray, p), (), jnp.asarray(x_BxTxD), cfg=cfg)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)  # float64 rounds at 1e-16; numbers of size 1


@pytest.mark.parametrize("groups", [1, 2])
def test_metamamba2s_block(groups, x64):
    cfg = Mamba2Config(D=D, heads=4, head_dim=3, state=2, groups=groups, rank=2)
    H, V, K, G = 4, 3, 2, groups
    p = moved(mamba2.init(jax.random.key(0), cfg))
    x_BxTxD = tokens()
    want = np.zeros(x_BxTxD.shape)
    for b, x_TxD in enumerate(x_BxTxD):
        h = rms(x_TxD, cfg.epsilon) * p.norm_D
        z, xBC, dt = np.split(h @ p.in_DxX, (H * V, 2 * H * V + 2 * G * K), axis=-1)
        dt = softplus(dt + p.decay.bias_H)
        mixed = silu(convolved(xBC, p.conv_WxX, p.conv_bias_X))
        x, k, q = np.split(mixed, (H * V, H * V + G * K), axis=-1)
        x = x.reshape(T, H, V)
        k, q = (np.repeat(y.reshape(T, G, K), H // G, axis=1) for y in (k, q))
        up = np.einsum("tr,rhv->thv", h @ p.importance.down_DxR, p.importance.up_RxHxV)
        beta = dt[..., None] * sigmoid(up) * p.importance.scale_H[:, None]
        y = remembered(q, k, dt[..., None] * x, beta, dt, np.exp(p.decay.log_rate_H), 1.0)
        y = (y + p.skip_H[:, None] * x).reshape(T, H * V) * silu(z)
        parts = rms(y.reshape(T, cfg.norm_groups, -1), cfg.epsilon).reshape(T, H * V)
        want[b] = x_TxD + (parts * p.out_norm_X) @ p.out_XxD
    got, _ = mamba2.apply(jax.tree.map(jnp.asarray, p), (), jnp.asarray(x_BxTxD), cfg=cfg)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_the_delta_rule_with_decay_and_partial_writes(x64):
    # S_t = a_t S_{t-1} + w_t (v_t - a_t S_{t-1} k_t) k_t^T, from a carried state, and anew where a segment starts
    H, K, V = 2, 3, 4
    random = np.random.default_rng(2)
    q, k, v = (random.normal(size=(1, T, H, size)) for size in (K, K, V))
    w, log_decay = sigmoid(random.normal(size=(1, T, H))), -softplus(random.normal(size=(1, T, H)))
    start, segment_BxT = random.normal(size=(1, H, V, K)), (np.arange(T) >= 5).astype(int)[None]
    S, want = start.copy(), np.zeros((1, T, H, V))
    for t, h in np.ndindex(T, H):
        kept = (0 if t == 5 else np.exp(log_decay[0, t, h])) * S[0, h]
        S[0, h] = kept + w[0, t, h] * np.outer(v[0, t, h] - kept @ k[0, t, h], k[0, t, h])
        want[0, t, h] = K**-0.5 * S[0, h] @ q[0, t, h]
    given = (jnp.asarray(x) for x in (q, k, v, w, log_decay, start, segment_BxT))
    got, end = palimpsa._delta_scan(*given)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(end, S, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 2])
def test_tokens_that_make_zero_keys_have_finite_gradients(rank):
    # Given tokens of zero and a convolution of zero: queries and keys are 0 before they are brought to length 1
    cfg = PalimpsaConfig(D=D, heads=2, key_dim=3, value_dim=4, rank=rank)
    params = palimpsa.init(jax.random.key(0), cfg)
    silent = params._replace(conv_WxX=jnp.zeros_like(params.conv_WxX))
    loss = lambda p, x: jnp.sum(jnp.sin(palimpsa.apply(p, (), x, cfg=cfg)[0]))
    for p, x in ((silent, jnp.asarray(tokens(), jnp.float32)), (params, jnp.zeros((B, T, D)))):
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))(p, x)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_decays_and_importance_start_in_the_papers_ranges():
    language = init_decay(jax.random.key(0), 2000, "language")
    rate_H, dt_H = np.exp(language.log_rate_H), softplus(np.asarray(language.bias_H))
    assert LEAST_RATE * 0.999 <= rate_H.min() < 0.1 and 15.9 < rate_H.max() <= 16
    assert abs(rate_H.mean() - 8) < 0.4  # uniform: a standard error of 0.1
    assert 0.99e-3 < dt_H.min() < 1.1e-3 and 0.09 < dt_H.max() < 0.101
    assert abs(np.log(dt_H).mean() - np.log(1e-2)) < 0.12  # even in its logarithm: a standard error of 0.03
    recall = init_decay(jax.random.key(0), 5, "recall")
    np.testing.assert_allclose(np.exp(recall.log_rate_H), np.linspace(0.01, 0.16, 5), rtol=1e-5)
    np.testing.assert_allclose(softplus(np.asarray(recall.bias_H)), np.geomspace(0.1, 1e-3, 5), rtol=1e-4)
    meta = init_importance(jax.random.key(0), D, 4, 300, 5)
    np.testing.assert_allclose(meta.scale_H, np.log1p(np.e), atol=1e-4)
    bound = np.abs(meta.up_RxHxV).max()
    assert 0.49 < bound <= 0.5
    assert np.all(palimpsa.init(jax.random.key(0), PalimpsaConfig(D=D)).skip_H == 1)
