"""Attention over a plan is dense attention under the plan's mask; what the plan skips has no influence at all."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plan_cases import B, Case, brute_force, cases, masked_attention

from cram_jax import kernels
from cram_jax.kernels.backends import SKIP_ATTENTION
from cram_jax.kernels.skip_attention import xla

BACKENDS = SKIP_ATTENTION.everywhere()
EXAMPLES = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Several tiles and blocks even in the short sequences here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "ROWS", 2)
        patch.setattr(xla, "keys_in_tile", lambda slots: min(3, slots))
        yield


@EXAMPLES
@hypothesis.given(cases())
def test_a_plan_is_the_mask(case):
    T = case.routed_BxT.shape[1]
    want, plan = brute_force(case), jax.tree.map(np.asarray, case.plan())
    assert plan.rows_BxC.shape == (B, min(case.capacity or T, T))
    assert plan.slots_BxS.shape == (B, min(case.kept_capacity or T, T))

    visible_BxTxT = np.zeros((B, T, T), bool)
    for b in range(B):
        # Rows and slots list positions in order, the unused places last
        np.testing.assert_array_equal(plan.rows_BxC[b][plan.rows_BxC[b] < T], np.flatnonzero(want.attends_BxT[b]))
        np.testing.assert_array_equal(plan.slots_BxS[b][plan.slots_BxS[b] < T], np.flatnonzero(want.seen_BxT[b]))
        for positions in (plan.rows_BxC[b], plan.slots_BxS[b]):
            assert np.all(np.diff(positions) >= 0) and np.all(positions <= T)
        for row, start, end in zip(plan.rows_BxC[b], plan.start_BxC[b], plan.end_BxC[b], strict=True):
            keys = plan.slots_BxS[b, start:end]
            assert row < T or len(keys) == 0, "an unused place sees nothing"
            if row < T:
                visible_BxTxT[b, row, keys] = True
    np.testing.assert_array_equal(visible_BxTxT, want.visible_BxTxT)

    # What is over capacity is counted
    kept_BxT = np.ones((B, T), bool) if case.kept_BxT is None else case.kept_BxT
    np.testing.assert_array_equal(plan.dropped_B, np.sum(case.routed_BxT & ~want.attends_BxT, axis=1))
    np.testing.assert_array_equal(plan.dropped_kept_B, np.sum(kept_BxT & ~want.seen_BxT, axis=1))


def softmax_attention(q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, visible_BxTxT, scale) -> np.ndarray:
    """Dense, in float64: head h reads key-value head h // (H / G); 0 where nothing is visible."""
    q, k, v = (np.asarray(x, np.float64) for x in (q_BxTxHxK, k_BxTxGxK, v_BxTxGxV))
    group = q.shape[2] // k.shape[2]
    o_BxTxHxV = np.zeros((*q.shape[:3], v.shape[-1]))
    for b, t in np.argwhere(visible_BxTxT.any(axis=2)):
        seen = visible_BxTxT[b, t]
        for h in range(q.shape[2]):
            logits = k[b, seen, h // group] @ q[b, t, h] * scale
            weight = np.exp(logits - logits.max())
            o_BxTxHxV[b, t, h] = weight @ v[b, seen, h // group] / weight.sum()
    return o_BxTxHxV


def heads(T: int, H: int = 4, G: int = 2, seed: int = 0):
    """Queries, keys and values with unequal sizes everywhere: K = 3, V = 5."""
    q, k, v = jax.random.split(jax.random.key(seed), 3)
    return jax.random.normal(q, (B, T, H, 3)), jax.random.normal(k, (B, T, G, 3)), jax.random.normal(v, (B, T, G, 5))


@pytest.mark.parametrize("backend", BACKENDS)
@hypothesis.settings(EXAMPLES, max_examples=30)
@hypothesis.given(cases(lengths=(9,)))
def test_attention_over_a_plan_is_masked_attention(backend, case):
    q, k, v = heads(case.routed_BxT.shape[1])
    visible_BxTxT = brute_force(case).visible_BxTxT
    o_BxTxHxV = np.asarray(kernels.skip_attention(q, k, v, case.plan(), backend=backend))

    # Sums of at most 9 numbers of size 1 in float32 (6e-8 each): 2e-6 leaves a factor of 4.
    np.testing.assert_allclose(o_BxTxHxV, softmax_attention(q, k, v, visible_BxTxT, 3**-0.5), atol=2e-6, rtol=0)
    # Where not routed, and where nothing is visible, the answer is 0 itself.
    assert np.all(o_BxTxHxV[~visible_BxTxT.any(axis=2)] == 0)


LIVELY = Case(  # row (1, 0) is routed and sees nothing; rows and keys are missing here and there
    routed_BxT=np.array([[1, 0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 1, 1]], bool),
    kept_BxT=np.array([[1, 1, 0, 1, 1, 0, 1], [0, 1, 1, 0, 1, 1, 0]], bool),
    score_BxT=None,
    window=None,
    memory=3,
    capacity=None,
    kept_capacity=None,
    segment_BxT=np.array([[0, 0, 0, 0, 1, 1, 1], [4, 4, 4, 2, 2, 2, 2]], np.int32),
)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("H", "G"), [(1, 1), (4, 4), (4, 2), (6, 1)])
def test_heads_of_a_group_share_keys_and_values(backend, H, G, x64):
    q, k, v = (x.astype(jnp.float64) for x in heads(7, H, G))
    o_BxTxHxV = jax.jit(lambda q: kernels.skip_attention(q, k, v, LIVELY.plan(), scale=0.7, backend=backend))(q)
    # float64 on both sides
    want = softmax_attention(q, k, v, brute_force(LIVELY).visible_BxTxT, 0.7)
    np.testing.assert_allclose(o_BxTxHxV, want, atol=1e-14, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_masked_attention(backend, x64):
    q, k, v = (x.astype(jnp.float64) for x in heads(7))
    visible_BxTxT = jnp.asarray(brute_force(LIVELY).visible_BxTxT)
    target = jax.random.normal(jax.random.key(9), (B, 7, 4, 5))

    dense = lambda q, k, v: jnp.sum(masked_attention(q, k, v, visible_BxTxT) * target)
    planned = lambda q, k, v: jnp.sum(kernels.skip_attention(q, k, v, LIVELY.plan(), backend=backend) * target)
    got, want = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(q, k, v) for f in (planned, dense))
    for name, g, w in zip("qkv", got, want, strict=True):
        np.testing.assert_allclose(g, w, atol=1e-13, rtol=0, err_msg=name)  # float64 on both sides
    # Exactly nothing flows where nothing was computed
    assert np.all(got[0][~visible_BxTxT.any(axis=2)] == 0)
    assert np.all(got[1][~LIVELY.kept_BxT] == 0) and np.all(got[2][~LIVELY.kept_BxT] == 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_skipped_is_not_looked_at(backend):
    # Given the same queries, keys and values, and NaN where a query is not routed or a key not kept
    clean = heads(7)
    marks = (LIVELY.routed_BxT, LIVELY.kept_BxT, LIVELY.kept_BxT)
    poisoned = tuple(jnp.where(mark[..., None, None], x, jnp.nan) for x, mark in zip(clean, marks, strict=True))
    assert all(np.isnan(x).any() for x in poisoned)

    # When attention and its gradients are computed from either
    def run(q, k, v):
        o_BxTxHxV = kernels.skip_attention(q, k, v, LIVELY.plan(), backend=backend)
        return jnp.sum(o_BxTxHxV**2), o_BxTxHxV

    run = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))
    clean, poisoned = run(*clean), run(*poisoned)

    # Then they are the same, bit for bit, and finite, a routed row that sees nothing included
    jax.tree.map(np.testing.assert_array_equal, poisoned, clean)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(clean))


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_spoils_the_rows_that_see_it_and_nothing_else(backend):
    # Given a number that is not finite in a query, a key and a value: of a head, or a group of heads, in the middle
    arrays, visible_BxTxT, t = heads(7), brute_force(LIVELY).visible_BxTxT, 3
    run = lambda q, k, v: kernels.skip_attention(q, k, v, LIVELY.plan(), backend=backend)
    of_others = lambda spoilt, *arrays: jnp.sum(jnp.where(spoilt, 0, run(*arrays)) ** 2)
    gradient, run = jax.jit(jax.grad(of_others, argnums=(1, 2, 3))), jax.jit(run)
    clean = run(*arrays)
    kept, routed = np.argwhere(LIVELY.kept_BxT[1]).ravel(), np.argwhere(visible_BxTxT[1].any(axis=1)).ravel()
    key, query = kept[kept >= t][0], routed[routed >= t][0]
    for i, place in enumerate((query, key, key)):
        bad = [x.at[1, place, 0, 0].set(jnp.nan) if j == i else x for j, x in enumerate(arrays)]
        # When attention runs, then the rows of these heads that see it are NaN, and all others what they were
        sees_BxT = np.zeros(visible_BxTxT.shape[:2], bool)
        sees_BxT[1] = visible_BxTxT[1, :, key] if i else np.arange(7) == query
        assert sees_BxT.any() and (i == 0 or not sees_BxT[1, routed].all())
        spoilt = np.zeros((*clean.shape[:3], 1), bool)
        spoilt[:, :, : clean.shape[2] // bad[i].shape[2]] = sees_BxT[..., None, None]
        np.testing.assert_array_equal(run(*bad), np.where(spoilt, np.nan, clean))
        # And the others have the gradients that they have without these rows
        want, got = (gradient(spoilt, *x) for x in (arrays, bad))
        for g, w in zip(got, want, strict=True):
            assert np.all(np.isfinite(g)) and np.array_equal(g[0], w[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_stay_finite(backend):
    q, k, v = heads(7)
    # Logits near 1e4 overflow a plain exp; the softmax is then one-hot, and 0 where the weight underflows.
    o_BxTxHxV = jax.jit(lambda q: kernels.skip_attention(q, k, v, LIVELY.plan(), backend=backend))(q * 1e4)
    want = softmax_attention(q * 1e4, k, v, brute_force(LIVELY).visible_BxTxT, 3**-0.5)
    # A float32 logit of 1e4 is off by 1e-3, and so is, relatively, a weight that is not near 0 or 1.
    np.testing.assert_allclose(o_BxTxHxV, want, atol=2e-2, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_number_routed_recompiles_nothing(backend):
    q, k, v = heads(9)

    @jax.jit
    def attend(routed_BxT, kept_BxT):
        plan = kernels.make_plan(routed_BxT, kept_BxT=kept_BxT, memory=4)
        return kernels.skip_attention(q, k, v, plan, backend=backend)

    for count in (0, 1, 5, 9):
        marked_BxT = jnp.broadcast_to(jnp.arange(9) < count, (B, 9))
        o_BxTxHxV = attend(marked_BxT, ~marked_BxT | (jnp.arange(9) == 0))
        np.testing.assert_array_equal(np.any(o_BxTxHxV != 0, axis=(2, 3)), marked_BxT)
    assert attend._cache_size() == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_is_a_loop(backend):
    # Given three layers with plans of their own
    q, k, v = (jnp.stack(x) for x in zip(*(heads(7, seed=s) for s in range(3)), strict=True))
    routed = jax.random.bernoulli(jax.random.key(5), 0.5, (3, B, 7))

    @jax.jit
    def attend(q, k, v, routed_BxT):
        plan = kernels.make_plan(routed_BxT, kept_BxT=jnp.asarray(LIVELY.kept_BxT), memory=3)
        return kernels.skip_attention(q, k, v, plan, backend=backend)

    want = jnp.stack([attend(*layer) for layer in zip(q, k, v, routed, strict=True)])
    # The same sums of 3 numbers of size 1, batched otherwise: a few units in the last place (6e-8)
    np.testing.assert_allclose(jax.jit(jax.vmap(attend))(q, k, v, routed), want, atol=1e-6, rtol=0)
    assert np.all(
        np.any(want != 0, axis=(3, 4)) == np.asarray(routed & (jnp.arange(7) >= LIVELY.kept_BxT.argmax(1)[:, None]))
    )


def test_compact_rows_go_back_where_they_came_from():
    plan = LIVELY._replace(capacity=3, score_BxT=np.arange(14.0, dtype=np.float32).reshape(2, 7)).plan()
    x_BxTxD = jax.random.normal(jax.random.key(0), (B, 7, 4))
    rows_BxCxD = plan.gather_queries(x_BxTxD)
    assert rows_BxCxD.shape == (B, 3, 4)
    # The three latest of the routed, for their score is their position
    attends_BxT = np.array([[0, 0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 0, 1, 1]], bool)
    np.testing.assert_array_equal(plan.scatter(rows_BxCxD, 7), jnp.where(attends_BxT[..., None], x_BxTxD, 0))
    # Keys: kept ones first, in order, then zeros; also for one number a position
    for b in range(B):
        kept = LIVELY.kept_BxT[b]
        keys_SxD = np.asarray(plan.gather_keys(x_BxTxD))[b]
        np.testing.assert_array_equal(keys_SxD[: kept.sum()], np.asarray(x_BxTxD)[b, kept])
        assert np.all(keys_SxD[kept.sum() :] == 0)
        np.testing.assert_array_equal(plan.gather_keys(x_BxTxD[..., 0])[b], keys_SxD[:, 0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"routed_BxT": jnp.ones(5, bool)}, r"routed_BxT must have shape \(B, T\), got \(5,\)"),
        (
            {"kept_BxT": jnp.ones((2, 4), bool)},
            r"kept_BxT must have shape \(B, T\) with B=2, T=5, as routed_BxT.*, got \(2, 4\)",
        ),
        ({"score_BxT": jnp.ones((1, 5))}, r"score_BxT must have shape \(B, T\) with B=2, T=5.*, got \(1, 5\)"),
        ({"segment_BxT": jnp.ones((2, 6), int)}, r"segment_BxT must have shape \(B, T\) with B=2, T=5.*, got \(2, 6\)"),
        ({"window": 0}, "window must be at least 1 .*got 0"),
        ({"memory": -3}, "memory must be at least 1 .*got -3"),
        ({"capacity": 0}, "capacity must be at least 1 .*got 0"),
        ({"kept_capacity": 0}, "kept_capacity must be at least 1 .*got 0"),
    ],
)
def test_a_bad_plan_is_named(arguments, message, unchecked):
    with pytest.raises(ValueError, match=message):
        kernels.make_plan(**{"routed_BxT": jnp.ones((2, 5), bool)} | arguments)


def test_bad_heads_and_backends_are_named():
    plan = LIVELY.plan()
    with pytest.raises(ValueError, match="multiple of key-value heads: q_BxTxHxK has H=4, k_BxTxGxK .* have G=3"):
        kernels.skip_attention(*heads(7, H=4, G=3), plan)
    with pytest.raises(ValueError, match="backend must be one of .*'auto'.*got 'cuda'"):
        kernels.skip_attention(*heads(7), plan, backend="cuda")
