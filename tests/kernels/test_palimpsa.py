"""What Palimpsa's theory says of its scan: learning by error, special cases, and what leaves it unchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import B, G, H, K, V, arguments, assert_close, compiled

from cram_jax.kernels import PalimpsaState, palimpsa_scan, shared_importance_scan, ssd_scan


class TestPalimpsa:
    """What the theory says of it (spec: arXiv 2602.09075)."""

    @pytest.fixture
    def given(self, x64):
        return arguments("palimpsa", T=12)

    def test_is_learning_by_error_at_a_rate_of_one_over_importance(self, given):
        # Given mu, the mean itself, moved at each token by what it got wrong, and pulled to the prior by what decays
        M, J = given["state"]
        prior = np.asarray(given["prior_H"])[None, :, None, None]
        mu, heads = M / (J + prior), lambda x: np.repeat(x, H // G, axis=2)
        q, k = heads(given["q_BxTxGxK"]), heads(given["k_BxTxGxK"])
        decay = np.exp(-given["dt_BxTxH"] * given["rate_H"])
        for t in range(12):
            a, v, beta = decay[:, t, :, None, None], given["v_BxTxHxV"][:, t], given["beta_BxTxHxV"][:, t]
            J = a * J + beta[..., None] * k[:, t, :, None] ** 2
            pull = beta[..., None] * k[:, t, :, None] ** 2 + (1 - a) * prior
            mu = mu + (v[..., None] * k[:, t, :, None] - pull * mu) / (J + prior)
        # Then it is what the ratio of M and J + prior gives
        o, end = palimpsa_scan(**given)
        assert_close(end.mean_BxHxVxK / (end.importance_BxHxVxK + prior), mu, 1e-13)
        assert_close(o[:, -1], K**-0.5 * jnp.einsum("bhvk,bhk->bhv", mu, q[:, -1]), 1e-13)

    def test_without_importance_it_is_the_ssd_scan(self, given):
        given |= {"beta_BxTxHxV": jnp.zeros((B, 12, H, V)), "prior_H": jnp.ones(H)}
        M = given["state"].mean_BxHxVxK
        given["state"] = PalimpsaState(M, jnp.zeros_like(M))
        o, end = palimpsa_scan(**given)
        qkv = (given[n] for n in ("q_BxTxGxK", "k_BxTxGxK", "v_BxTxHxV"))
        want, last = ssd_scan(*qkv, -given["dt_BxTxH"] * given["rate_H"], M)
        assert_close((o, end.mean_BxHxVxK), (want, last), 1e-13)

    @pytest.mark.parametrize("packed", [False, True])
    def test_an_importance_shared_by_a_heads_values_is_matrix_products(self, given, packed):
        del given["state"]
        given["beta_BxTxHxV"] = beta = given["beta_BxTxHxV"][..., :1].repeat(V, -1)
        segment_BxT = jnp.asarray(np.arange(12) // 5)[None].repeat(B, 0) if packed else None
        shared = {n: x for n, x in given.items() if n != "beta_BxTxHxV"} | {"beta_BxTxH": beta[..., 0]}
        want = compiled("palimpsa")(**given, segment_BxT=segment_BxT)[0]
        assert_close(jax.jit(shared_importance_scan)(**shared, segment_BxT=segment_BxT), want, 1e-13)

    def test_a_shared_importance_adds_up_in_float32(self):
        # Given a memory of a thousand tokens: in bfloat16 a decay of 1 - 1e-3 would be none
        given = arguments("palimpsa", T=100, dtype=jnp.bfloat16)
        del given["state"]
        given |= {"dt_BxTxH": jnp.full((B, 100, H), 1e-3, jnp.bfloat16), "rate_H": jnp.ones(H, jnp.bfloat16)}
        given["beta_BxTxHxV"] = beta = given["beta_BxTxHxV"][..., :1].repeat(V, -1)
        shared = {n: x for n, x in given.items() if n != "beta_BxTxHxV"} | {"beta_BxTxH": beta[..., 0]}
        o, want = jax.jit(shared_importance_scan)(**shared), compiled("palimpsa")(**given)[0]
        assert o.dtype == jnp.bfloat16
        assert np.linalg.norm((o - want).astype(jnp.float32)) <= 2**-7 * np.linalg.norm(want.astype(jnp.float32))

    def test_a_shared_importance_has_the_gradients_of_the_general_scan(self, given):
        del given["state"]
        beta = given.pop("beta_BxTxHxV")[..., 0]
        weight = jax.random.normal(jax.random.key(0), given["v_BxTxHxV"].shape)
        general = lambda given, beta: jnp.sum(
            weight * palimpsa_scan(**given, beta_BxTxHxV=beta[..., None].repeat(V, -1))[0]
        )
        fast = lambda given, beta: jnp.sum(weight * shared_importance_scan(**given, beta_BxTxH=beta))
        got, want = (jax.jit(jax.grad(f, (0, 1)))(given, beta) for f in (fast, general))
        assert_close(got, want, 1e-12)

    @pytest.mark.parametrize("decay", [1.0, 0.9])
    def test_without_importance_and_with_one_decay_it_is_linear_attention_or_retnet(self, given, decay):
        # o_t = sum over r <= t of decay^(t-r) (q_t k_r) v_r: Katharopoulos et al. 2020, and Sun et al. 2023
        T = 12
        del given["state"]
        given |= {"beta_BxTxHxV": jnp.zeros((B, T, H, V)), "prior_H": jnp.ones(H), "rate_H": jnp.ones(H)}
        given["dt_BxTxH"] = jnp.full((B, T, H), -np.log(decay))
        q, k = (np.repeat(given[n], H // G, axis=2) for n in ("q_BxTxGxK", "k_BxTxGxK"))
        between = np.subtract.outer(np.arange(T), np.arange(T))
        weight = np.einsum("bthk,brhk->bhtr", q, k) * np.where(between >= 0, decay ** np.maximum(between, 0), 0)
        want = K**-0.5 * np.einsum("bhtr,brhv->bthv", weight, given["v_BxTxHxV"])
        assert_close(palimpsa_scan(**given)[0], want, 1e-13)

    def test_a_shared_importance_is_the_diagonal_start_of_mesa(self, given):
        # Least squares of weighted (k, x), with only the diagonal of the keys' covariance: von Oswald et al. 2025
        T = 12
        del given["state"]
        beta, x = given["beta_BxTxHxV"][..., :1], given["v_BxTxHxV"]
        given |= {"beta_BxTxHxV": beta.repeat(V, -1), "v_BxTxHxV": beta * x, "dt_BxTxH": jnp.zeros((B, T, H))}
        q, k = (np.repeat(given[n], H // G, axis=2) for n in ("q_BxTxGxK", "k_BxTxGxK"))
        products = np.einsum("bth,bthv,bthk->bhvk", beta[..., 0], x, k)
        diagonal = np.einsum("bth,bthk->bhk", beta[..., 0], k**2) + given["prior_H"][:, None]
        want = K**-0.5 * np.einsum("bhvk,bhk->bhv", products / diagonal[:, :, None], q[:, -1])
        assert_close(palimpsa_scan(**given)[0][:, -1], want, 1e-12)

    @pytest.mark.parametrize("k_K", [(0.0, 0.9, 0.0), (0.3, -1.2, 0.8)])
    def test_with_its_importance_forgotten_a_token_is_nearly_longhorns(self, k_K, x64):
        # S <- S - d k_j^2 S + d x k_j: for Longhorn (Liu et al. 2024) d is beta / (1 + beta |k|^2), here it is
        # beta / (1 + beta k_j^2), each synapse's own. The two agree where a key has a single entry.
        x, beta, k_K, S_K = 1.3, 0.4, np.array(k_K), np.array([0.7, -0.2, 0.5])
        full = lambda values: jnp.asarray(np.reshape(values, (1, 1, 1, -1)))
        state = PalimpsaState(full(S_K), full(np.zeros(3)))  # mean S at the prior's importance of 1
        gates = jnp.zeros((1, 1, 1)), *jnp.ones((2, 1))
        _, end = palimpsa_scan(full(np.ones(3)), full(k_K), full([beta * x]), full([beta]), *gates, state)
        rule = lambda d_K: full(S_K - d_K * k_K**2 * S_K + d_K * x * k_K)
        mean = end.mean_BxHxVxK / (1 + end.importance_BxHxVxK)
        assert_close(mean, rule(beta / (1 + beta * k_K**2)), 1e-15)
        longhorn = rule(beta / (1 + beta * np.sum(k_K**2)))
        assert np.allclose(mean, longhorn, atol=1e-14) == (np.count_nonzero(k_K) == 1)

    def test_where_forgetting_dominates_it_approaches_the_ssd_scan(self, given):
        # Given a prior of 1 and importance that is small against what decays
        given |= {"prior_H": jnp.ones(H), "dt_BxTxH": 2 + given["dt_BxTxH"], "rate_H": jnp.ones(H)}
        M = given["state"].mean_BxHxVxK
        given["state"] = PalimpsaState(M, jnp.zeros_like(M))
        qkv = (given[n] for n in ("q_BxTxGxK", "k_BxTxGxK", "v_BxTxHxV"))
        want, _ = ssd_scan(*qkv, -given["dt_BxTxH"], M)
        off = [
            np.linalg.norm(palimpsa_scan(**given | {"beta_BxTxHxV": share * given["beta_BxTxHxV"]})[0] - want)
            for share in (1e-3, 1e-4, 1e-5)
        ]
        # Then the difference is of first order in it
        np.testing.assert_allclose(np.divide(off[:-1], off[1:]), 10, rtol=0.02)
        assert off[-1] < 1e-4 * np.linalg.norm(want)

    def test_importance_of_a_constant_input_levels_off(self, x64):
        # Given one token for ever, and a memory of some 20 tokens
        like = jnp.ones
        q, k, v = like((1, 800, 1, 2)), jnp.array([0.5, 2.0]) * like((1, 800, 1, 2)), like((1, 800, 1, 1))
        _, end = palimpsa_scan(q, k, v, 3 * v, like((1, 800, 1)) / 20, like(1), like(1))
        # Then beta k^2 comes in as fast as it decays
        level = 3 * jnp.array([0.25, 4.0]) / (1 - np.exp(-1 / 20))
        np.testing.assert_allclose(end.importance_BxHxVxK[0, 0, 0], level, rtol=1e-13)  # e^-40 is left to come

    def test_units_do_not_matter(self, given):
        given["state"] = PalimpsaState(*map(jnp.zeros_like, given["state"]))
        o, _ = palimpsa_scan(**given)
        times = lambda **factors: palimpsa_scan(**given | {n: f * given[n] for n, f in factors.items()})[0]
        assert_close(times(v_BxTxHxV=3, beta_BxTxHxV=3, prior_H=3), o, 1e-13)
        assert_close(times(k_BxTxGxK=3, q_BxTxGxK=3, prior_H=9), o, 1e-13)
        flip_K = jnp.array([1, -1, 1])
        assert_close(times(k_BxTxGxK=flip_K, q_BxTxGxK=flip_K), o, 1e-13)
