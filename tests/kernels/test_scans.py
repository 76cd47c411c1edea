"""Both scans are what a loop over tokens and synapses says, on every backend, and keep the promises of their theory."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax import kernels
from cram_jax.kernels import PalimpsaState, palimpsa_scan, shared_importance_scan, ssd_scan

BACKENDS = ("reference", "xla")
SCANS = ("ssd", "palimpsa")
B, H, G, K, V = 2, 4, 2, 3, 5
EXAMPLES = hypothesis.settings(max_examples=12, deadline=None, derandomize=True)


def softplus(x):
    return np.log1p(np.exp(x))


def arguments(name: str, T: int, dtype=np.float64, seed: int = 0) -> dict:
    """Random arguments of a scan by name, a carried state included."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(size=shape)
    out = {"q_BxTxGxK": draw(B, T, G, K), "k_BxTxGxK": draw(B, T, G, K), "v_BxTxHxV": draw(B, T, H, V)}
    if name == "ssd":
        out |= {"log_decay_BxTxH": -softplus(draw(B, T, H)), "state": draw(B, H, V, K)}
    else:
        out |= {"beta_BxTxHxV": softplus(draw(B, T, H, V)), "dt_BxTxH": softplus(draw(B, T, H))}
        out |= {"rate_H": softplus(draw(H)), "prior_H": 0.3 + softplus(draw(H))}
        out |= {"state": PalimpsaState(draw(B, H, V, K), softplus(draw(B, H, V, K)))}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), out)


def scan(name: str):
    return {"ssd": ssd_scan, "palimpsa": palimpsa_scan}[name]


def loop(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, state, segment_BxT=None, scale=None, **gates):
    """(o, state), one synapse of one head at a time, as the equations stand."""
    a = {name: np.asarray(x) for name, x in gates.items()}
    q, k, v = (np.asarray(x) for x in (q_BxTxGxK, k_BxTxGxK, v_BxTxHxV))
    T, o = q.shape[1], np.zeros(v.shape)
    M, J = (np.array(x) for x in state) if isinstance(state, tuple) else (np.array(state), None)
    for b, t, h in np.ndindex(B, T, H):
        starts = segment_BxT is not None and t > 0 and segment_BxT[b, t] != segment_BxT[b, t - 1]
        log_decay = a["log_decay_BxTxH"][b, t, h] if J is None else -a["dt_BxTxH"][b, t, h] * a["rate_H"][h]
        decay, group = 0.0 if starts else np.exp(log_decay), h * G // H
        for i, j in np.ndindex(V, K):
            M[b, h, i, j] = decay * M[b, h, i, j] + v[b, t, h, i] * k[b, t, group, j]
            read = M[b, h, i, j]
            if J is not None:
                J[b, h, i, j] = decay * J[b, h, i, j] + a["beta_BxTxHxV"][b, t, h, i] * k[b, t, group, j] ** 2
                read = read / (J[b, h, i, j] + a["prior_H"][h])
            o[b, t, h, i] += (K**-0.5 if scale is None else scale) * read * q[b, t, group, j]
    return o, M if J is None else PalimpsaState(M, J)


def assert_close(got, want, tolerance: float):
    """Every array within the tolerance, relative to its largest entry.

    In float64, which rounds at 1e-16: 1e-14 for the same sums, 1e-13 for those of some ten tokens in another order,
    1e-12 where quotients or a hundred tokens are among them.
    """
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(np.max(np.abs(w)), 1e-300))


segments = st.none() | st.integers(1, 4).map(lambda n: np.cumsum(np.arange(B * 9).reshape(B, 9) % n == 0, axis=1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCANS)
@EXAMPLES
@hypothesis.given(
    st.sampled_from((1, 2, 7, 9)), st.sampled_from((None, 1, 2, 4, 9, 12)), segments, st.sampled_from((None, 0.7))
)
def test_equals_the_loop_whatever_length_chunk_segments_and_scale(name, backend, T, chunk, segment_BxT, scale):
    with jax.enable_x64(True):
        given = arguments(name, T)
        segment_BxT = None if segment_BxT is None else segment_BxT[:, :T]
        want = loop(**given, segment_BxT=segment_BxT, scale=scale)
        packed = None if segment_BxT is None else jnp.asarray(segment_BxT)
        got = scan(name)(**given, chunk=chunk, segment_BxT=packed, scale=scale, backend=backend)
        assert_close(got, want, 1e-12)  # float64 rounds at 1e-16, and 9 tokens add up to some 30 products


@pytest.mark.parametrize("name", SCANS)
def test_chunks_of_the_default_length_follow_each_other(name, x64):
    given = arguments(name, T=150)  # five chunks, the last one not full
    want = jax.jit(lambda given: scan(name)(**given, backend="reference"))(given)
    assert_close(jax.jit(lambda given: scan(name)(**given, backend="xla"))(given), want, 1e-12)


def loss(name: str, given: dict, **options):
    """A number that every output has a part in."""
    o, state = scan(name)(**given, **options)
    return jnp.sum(jnp.sin(o)) + sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(state))


@pytest.mark.parametrize("name", SCANS)
def test_gradients_are_those_of_finite_differences(name, x64):
    given = arguments(name, T=7)
    segment_BxT = jnp.asarray(np.arange(7) // 3)[None].repeat(B, 0)
    direction = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), given)
    f = jax.jit(lambda given: loss(name, given, chunk=2, segment_BxT=segment_BxT, backend="xla"))
    gradient = jax.jit(jax.grad(f))(given)
    moved = lambda argument, step: jax.tree.map(lambda x, d: x + step * d, given[argument], direction[argument])
    for argument in given:  # each argument by itself
        near, far = (
            f(given | {argument: moved(argument, step)}) - f(given | {argument: moved(argument, -step)})
            for step in (1e-3, 2e-3)
        )
        slope = sum(map(jnp.vdot, jax.tree.leaves(gradient[argument]), jax.tree.leaves(direction[argument])))
        # Central differences of fourth order, 1e-3 apart: an error of about 1e-12, and rounding of 1e-13
        np.testing.assert_allclose(slope, (8 * near - far) / 12e-3, rtol=1e-8, err_msg=argument)


# By exponent of the decay. Norms of gradients are compared token by token. Float32 rounds to 6e-8, sums
# here have hundreds of terms, and the gradient of a decay near 1 is a small difference of two of them.
@pytest.mark.parametrize("exponent", [1e-7, 12.0, 40.0])
@pytest.mark.parametrize("name", SCANS)
def test_gradients_are_right_where_all_or_nothing_is_forgotten(name, exponent, x64):
    T = 40
    given = arguments(name, T)
    spread = 1 + 0.1 * jax.random.uniform(jax.random.key(0), (B, T, H), jnp.float64)
    if name == "ssd":
        given["log_decay_BxTxH"] = -exponent * spread
    else:
        given |= {"dt_BxTxH": exponent * spread, "rate_H": jnp.ones(H)}
    want = jax.jit(jax.grad(lambda given: loss(name, given, backend="reference")))(given)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), given)
    got = jax.jit(jax.grad(lambda given: loss(name, given, chunk=16, backend="xla")))(single)
    for argument in given:
        for g, w in zip(*map(jax.tree.leaves, (got[argument], want[argument])), strict=True):
            axes = tuple(range(2, w.ndim)) if "BxT" in argument else None
            error, size = (np.sqrt(np.sum(np.square(x, dtype=np.float64), axis=axes)) for x in (g - w, w))
            assert np.all(error <= 1e-4 * size), (argument, np.max(error / size))


def products(jaxpr):
    """Every product of matrices in a program, whatever it is nested in."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCANS)
def test_products_are_float32_on_accelerators_too(name, backend):
    given = arguments(name, T=9, dtype=np.float32)
    program = jax.make_jaxpr(jax.grad(lambda given: loss(name, given, chunk=4, backend=backend)))(given)
    found = list(products(program.jaxpr))
    assert len(found) >= 2
    highest = jax.lax.Precision.HIGHEST
    assert all(equation.params["precision"] == (highest, highest) for equation in found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCANS)
def test_bfloat16_is_rounded_once_on_the_way_out(name, backend):
    given = arguments(name, T=20, dtype=jnp.bfloat16)
    o, state = scan(name)(**given, backend=backend)
    exact, _ = scan(name)(**jax.tree.map(lambda x: x.astype(jnp.float32), given), backend="reference")
    assert o.dtype == jnp.bfloat16 and all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))
    # Eight bits: an error of 2**-9 of each entry at most, evenly spread below that
    assert np.linalg.norm(o.astype(jnp.float32) - exact) <= 2**-9 * np.linalg.norm(exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SCANS)
class TestEveryScan:
    def test_pieces_with_a_carried_state_equal_the_whole(self, name, backend, x64):
        given = arguments(name, T=11)
        whole, end = scan(name)(**given, chunk=4, backend=backend)
        pieces, state = [], given["state"]
        for piece in (slice(0, 3), slice(3, 4), slice(4, 11)):
            now = {n: x[:, piece] if "BxT" in n else x for n, x in given.items()} | {"state": state}
            o, state = scan(name)(**now, chunk=4, backend=backend)
            pieces.append(o)
        assert_close((jnp.concatenate(pieces, axis=1), state), (whole, end), 1e-13)

    def test_packed_segments_equal_separate_runs(self, name, backend, x64):
        given = arguments(name, T=10)
        empty = jax.tree.map(jnp.zeros_like, given["state"])
        segment_BxT = jnp.asarray(np.array([0] * 3 + [1] + [2] * 6))[None].repeat(B, 0)
        packed, end = scan(name)(**given, chunk=4, segment_BxT=segment_BxT, backend=backend)
        for piece, state in ((slice(0, 3), given["state"]), (slice(3, 4), empty), (slice(4, 10), empty)):
            now = {n: x[:, piece] if "BxT" in n else x for n, x in given.items()} | {"state": state}
            o, last = scan(name)(**now, chunk=4, backend=backend)
            assert_close(o, packed[:, piece], 1e-13)
        assert_close(last, end, 1e-13)

    def test_the_future_has_exactly_no_influence(self, name, backend):
        given = arguments(name, T=9, dtype=np.float32)
        early = lambda given: jnp.sum(scan(name)(**given, chunk=4, backend=backend)[0][:, :5] ** 2)
        for argument, gradient in jax.jit(jax.grad(early))(given).items():
            if "BxT" in argument:
                assert np.any(gradient[:, :5] != 0) and np.all(gradient[:, 5:] == 0), argument

    def test_tokens_without_content_change_nothing(self, name, backend, x64):
        given = arguments(name, T=6)
        silent = {"v_BxTxHxV", "beta_BxTxHxV", "dt_BxTxH", "log_decay_BxTxH"}
        longer = {
            n: jnp.concatenate([x, jnp.zeros_like(x) if n in silent else x], axis=1) if "BxT" in n else x
            for n, x in given.items()
        }
        o, end = scan(name)(**given, chunk=4, backend=backend)
        o_longer, end_longer = scan(name)(**longer, chunk=4, backend=backend)
        assert_close((o_longer[:, :6], end_longer), (o, end), 1e-14)

    def test_zero_keys_write_nothing_and_have_finite_gradients(self, name, backend, x64):
        given = arguments(name, T=6)
        given["k_BxTxGxK"] = jnp.zeros_like(given["k_BxTxGxK"])
        _, end = scan(name)(**given, chunk=4, backend=backend)
        dt_BxTxH = given["dt_BxTxH"] * given["rate_H"] if name == "palimpsa" else -given["log_decay_BxTxH"]
        kept = jnp.exp(-jnp.sum(dt_BxTxH, axis=1))[..., None, None]
        assert_close(end, jax.tree.map(lambda x: kept * x, given["state"]), 1e-14)
        gradient = jax.jit(jax.grad(lambda given: loss(name, given, backend=backend)))(given)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))

    def test_vmap_jit_and_remat_change_nothing(self, name, backend, x64):
        given = arguments(name, T=6)
        f = jax.value_and_grad(lambda given: loss(name, given, chunk=4, backend=backend))
        two = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), given)
        f = jax.jit(f)
        one_by_one = [f(jax.tree.map(lambda x: x[0], two)), f(jax.tree.map(lambda x: x[1], two))]
        want = jax.tree.map(lambda *x: jnp.stack(x), *one_by_one)
        assert_close(jax.jit(jax.vmap(f))(two), want, 1e-13)
        remat = jax.value_and_grad(jax.checkpoint(lambda given: loss(name, given, chunk=4, backend=backend)))
        assert_close(jax.jit(remat)(given), one_by_one[0], 1e-13)


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
        want = palimpsa_scan(**given, segment_BxT=segment_BxT)[0]
        assert_close(shared_importance_scan(**shared, segment_BxT=segment_BxT), want, 1e-13)

    def test_a_shared_importance_adds_up_in_float32(self):
        # Given a memory of a thousand tokens: in bfloat16 a decay of 1 - 1e-3 would be none
        given = arguments("palimpsa", T=100, dtype=jnp.bfloat16)
        del given["state"]
        given |= {"dt_BxTxH": jnp.full((B, 100, H), 1e-3, jnp.bfloat16), "rate_H": jnp.ones(H, jnp.bfloat16)}
        given["beta_BxTxHxV"] = beta = given["beta_BxTxHxV"][..., :1].repeat(V, -1)
        shared = {n: x for n, x in given.items() if n != "beta_BxTxHxV"} | {"beta_BxTxH": beta[..., 0]}
        o, want = shared_importance_scan(**shared), palimpsa_scan(**given)[0]
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
        assert_close(jax.grad(fast, (0, 1))(given, beta), jax.grad(general, (0, 1))(given, beta), 1e-12)

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


WRONG = {
    "heads": ({"q_BxTxGxK": np.ones((B, 4, 3, K)), "k_BxTxGxK": np.ones((B, 4, 3, K))}, r"divisor of the 4 heads"),
    "keys": ({"k_BxTxGxK": np.ones((B, 4, G, K + 1))}, r"must have one shape"),
    "chunk": ({"chunk": 0}, r"chunk must be at least 1 .* got 0"),
    "backend": ({"backend": "cuda"}, r"backend must be one of .*got 'cuda'"),
    "gpu": ({"backend": "gpu"}, r'no GPU kernel .* backend="xla"'),
    "segments": ({"segment_BxT": np.zeros((B, 5), int)}, r"segment_BxT must have shape \(2, 4\)"),
}
WRONG_IN_PALIMPSA = {
    "beta": ({"beta_BxTxHxV": -np.ones((B, 4, H, V))}, r"beta_BxTxHxV must be at least 0, got -1"),
    "prior": ({"prior_H": np.zeros(H)}, r"prior_H must be above 0, got 0"),
    "not a number": ({"dt_BxTxH": np.full((B, 4, H), np.nan)}, r"dt_BxTxH must be at least 0, got nan"),
    "state": ({"state": PalimpsaState(np.ones((B, H, V, K)), np.ones((B, H, K, V)))}, r"state.importance_BxHxVxK"),
}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [(name, *wrong) for name in SCANS for wrong in WRONG.values()]
    + [("palimpsa", *wrong) for wrong in WRONG_IN_PALIMPSA.values()],
)
def test_wrong_arguments_are_named(name, change, message, unchecked):
    change = {n: x if isinstance(x, int | str) else jax.tree.map(jnp.asarray, x) for n, x in change.items()}
    with pytest.raises(ValueError, match=message):
        scan(name)(**arguments(name, T=4, dtype=np.float32) | change)


def test_they_are_exported():
    assert {"ssd_scan", "palimpsa_scan", "shared_importance_scan", "PalimpsaState"} <= set(kernels.__all__)
