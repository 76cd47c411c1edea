"""Tests that statistics of importance equal those of the state that the scan carries."""

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax import kernels
from cram_jax.analysis.metaplasticity import plasticity
from cram_jax.functional import palimpsa
from cram_jax.functional.palimpsa import PalimpsaConfig

CFG = PalimpsaConfig(D=8, heads=2, key_dim=3, value_dim=5, rank=2)


def written(T: int):
    params = palimpsa.init(jax.random.key(0), CFG)
    x_BxTxD = jax.random.normal(jax.random.key(1), (1, T, 8))
    return palimpsa.writes(params, x_BxTxD, cfg=CFG), jnp.exp(params.decay.log_rate_H), jnp.array([1.0, 3.0])


def test_the_last_token_shows_the_state_the_scan_ends_in():
    writes, rate_H, prior_H = written(9)
    shown = plasticity(writes, rate_H, prior_H)
    q, k, v, beta, dt, _ = writes
    _, end = kernels.palimpsa_scan(q, k, v, beta, dt, rate_H, prior_H)
    L_HxN = np.reshape(end.importance_BxHxVxK[0] + prior_H[:, None, None], (2, -1))
    want_Hx3 = np.quantile(L_HxN, (0.1, 0.5, 0.9), axis=1).T
    np.testing.assert_allclose(shown.importance_TxHx3[-1], want_Hx3, rtol=1e-5)  # float32, another order of sums
    # What is sure learns slowly: quantiles of the rate are those of importance, upside down
    np.testing.assert_allclose(shown.learning_rate_TxHx3[..., 1], 1 / shown.importance_TxHx3[..., 1], rtol=0.05)
    assert np.all(shown.learning_rate_TxHx3 <= 1 / prior_H[:, None])


def test_the_window_is_how_long_a_decay_lets_a_memory_last():
    writes, rate_H, prior_H = written(4)
    writes = writes._replace(dt_BxTxH=jnp.full((1, 4, 2), 1e-5))
    shown = plasticity(writes, jnp.array([1.0, 100.0]), prior_H)
    # 1 - a is formed without cancellation: in float32, 1 - exp(-1e-5) by itself is off by 0.3%
    np.testing.assert_allclose(shown.window_TxH[0], [1e5, 1e3], rtol=6e-4)
