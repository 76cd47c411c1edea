"""Attention over longer plans: each bucket, both precisions, and nothing done for what is skipped."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plan_cases import masked_attention

from cram_jax import kernels
from cram_jax.kernels.backends import SKIP_ATTENTION
from cram_jax.kernels.skip_attention import buckets, xla

pytestmark = pytest.mark.usefixtures("leaky")
B, T, H, G, K, V = 2, 200, 4, 2, 16, 8
BLOCK = 32  # a bucket ends here: T / 8, in whole tiles of 16
COUNTS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 100, T]
BACKENDS = SKIP_ATTENTION.everywhere()


@pytest.fixture(autouse=True, scope="module")
def small_tiles():
    """Several tiles and blocks even here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (xla, buckets):
            patch.setattr(module, "ROWS", 16)
            patch.setattr(module, "keys_in_tile", lambda slots: min(32, slots))
        yield
    jax.clear_caches()  # of programs with these tiles


def inputs(dtype=jnp.float32):
    q, k, v = jax.random.split(jax.random.key(0), 3)
    normal = lambda key, *shape: jax.random.normal(key, shape).astype(dtype)
    return normal(q, B, T, H, K), normal(k, B, T, G, K), normal(v, B, T, G, V)


def marks(count: int, seed: int):
    """`count` random places in each sequence."""
    return np.stack([np.random.default_rng([seed, b]).permutation(T) < count for b in range(B)])


def graded(q, k, v, routed_BxT, kept_BxT, backend, **limits):
    """(output, its gradients), from one plan."""
    plan = kernels.make_plan(routed_BxT, kept_BxT=kept_BxT, **limits)

    def value(q, k, v):
        o = kernels.skip_attention(q, k, v, plan, backend=backend)
        return jnp.sum(jnp.sin(3 * o.astype(jnp.float32))), o

    return jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True)(q, k, v)


@cache
def compiled(backend, **limits):
    """`graded`, compiled once for all tests."""
    return jax.jit(partial(graded, backend=backend, **limits))


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
def masked(q, k, v, visible_BxTxT):
    o = masked_attention(q, k, v, visible_BxTxT)
    return jnp.sum(jnp.sin(3 * o)), o


def truth(q, k, v, routed_BxT, kept_BxT, window=None, memory=None, segment_BxT=None):
    """The same in float64, by masking all there is."""
    with jax.enable_x64(True):
        q, k, v = (jnp.asarray(np.asarray(x, np.float64)) for x in (q, k, v))
        rank_BxT = np.cumsum(kept_BxT, axis=1)
        at = np.arange(T)
        visible_BxTxT = kept_BxT[:, None] & (at[:, None] >= at) & routed_BxT[..., None]
        if memory is not None:
            visible_BxTxT &= rank_BxT[..., None] - rank_BxT[:, None] < memory
        if window is not None:
            visible_BxTxT &= at[:, None] - at < window
        if segment_BxT is not None:
            visible_BxTxT &= segment_BxT[..., None] == segment_BxT[:, None]

        return jax.tree.map(np.asarray, masked(q, k, v, visible_BxTxT))


def off(got, want) -> float:
    """Distance relative to the tensor's norm."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)


TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}


@pytest.mark.parametrize(
    ("backend", "limits", "dtype"),
    [
        *((backend, {}, "float32") for backend in BACKENDS),
        ("xla", {"memory": 20}, "float32"),
        ("xla", {"window": 40}, "float32"),
        ("xla", {"memory": 20}, "bfloat16"),
    ],
    ids=str,
)
def test_every_bucket_and_precision_is_the_float64_truth(backend, limits, dtype):
    q, k, v = inputs(dtype)
    tolerance = TOLERANCE[dtype]
    run = compiled(backend, **limits)
    before = run._cache_size()
    for count in COUNTS:
        for kept in (T, 40):
            routed_BxT, kept_BxT = marks(count, 1), marks(kept, 2)
            (_, o), gradient = run(q, k, v, jnp.asarray(routed_BxT), jnp.asarray(kept_BxT))
            (_, want), want_gradient = truth(q, k, v, routed_BxT, kept_BxT, **limits)
            assert off(o, want) < tolerance, (count, kept)
            for name, got, wanted in zip("qkv", gradient, want_gradient, strict=True):
                if np.any(wanted):
                    assert off(got, wanted) < tolerance, (name, count, kept)
                else:
                    assert not np.any(got), (name, count, kept)
            sees_BxT = np.any(np.asarray(want) != 0, axis=(2, 3))
            assert np.all(np.asarray(o)[~sees_BxT] == 0) and np.all(np.asarray(gradient[0])[~sees_BxT] == 0)
    assert run._cache_size() <= before + 1  # no number of routed queries or kept keys compiles anew


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_run_gives_the_same_bits(backend):
    q, k, v = inputs()
    run = compiled(backend)
    args = (q, k, v, jnp.asarray(marks(60, 1)), jnp.asarray(marks(150, 2)))
    jax.tree.map(np.testing.assert_array_equal, run(*args), run(*args))


def test_packed_segments_in_buckets():
    q, k, v = inputs()
    segment_BxT = np.broadcast_to(np.arange(T) // 37, (B, T)).astype(np.int32)
    routed_BxT, kept_BxT = marks(20, 1), marks(45, 2)
    (_, o), gradient = jax.jit(partial(graded, backend="xla"))(
        q, k, v, jnp.asarray(routed_BxT), jnp.asarray(kept_BxT), segment_BxT=jnp.asarray(segment_BxT)
    )
    (_, want), want_gradient = truth(q, k, v, routed_BxT, kept_BxT, segment_BxT=segment_BxT)
    assert off(o, want) < 2e-5 and all(off(g, w) < 2e-5 for g, w in zip(gradient, want_gradient, strict=True))


def test_arrays_that_do_not_fit_the_plan_are_named(unchecked):
    q, k, v = inputs()
    plan = kernels.make_plan(jnp.ones((B, T), bool), capacity=20, kept_capacity=30)
    for arrays in ((q[:, :15], k[:, :15], v[:, :15]), (q[:1], k[:1], v[:1]), (q[:, :29], k[:, :29], v[:, :29])):
        with pytest.raises(ValueError, match="must be of the sequences the plan was made for: 2 of at least 30 pos"):
            kernels.skip_attention(*arrays, plan)
    with pytest.raises(ValueError, match=r"must have the rows \(2, 20\) and slots \(2, 30\) of the plan: gather with"):
        kernels.skip_attention_compact(q, k, v, plan)
    with pytest.raises(ValueError, match=r"k_BxTxGxK must have shape .* with B=2, T=200, K=16.* got \(2, 50, 2, 16\)"):
        kernels.skip_attention(q, k[:, :50], v[:, :50], plan)
    with pytest.raises(ValueError, match=r"v_BxTxGxV must have shape .* with B=2, T=200, G=2.* got \(2, 200, 1, 8\)"):
        kernels.skip_attention(q, k, v[:, :, :1], plan)


# Three pieces of evidence that what was skipped was not done: counts, visits and NaN. `make bench` has the clock.


def test_nan_in_skipped_blocks_changes_nothing():
    # Given queries in the first half only: no block of keys after them is seen
    routed_BxT = marks(20, 1) & (np.arange(T) < T // 2)
    q, k, v = inputs()
    late_Tx1x1 = (np.arange(T) >= 96 + 32)[:, None, None]  # whole blocks of 32 kept keys
    unrouted_BxTx1x1 = ~routed_BxT[..., None, None]
    poisoned = jnp.where(unrouted_BxTx1x1, jnp.nan, q), *(jnp.where(late_Tx1x1, jnp.nan, x) for x in (k, v))
    run = compiled("xla")
    args = (jnp.asarray(routed_BxT), jnp.ones((B, T), bool))
    clean, dirty = run(q, k, v, *args), run(*poisoned, *args)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def tiles_needed(routed_BxT, kept_BxT, rows: int, keys: int) -> int:
    """Tiles of rows x blocks of keys that some visible pair lies in, rows being counted from the first that sees."""
    total = 0
    for routed_T, kept_T in zip(routed_BxT, kept_BxT, strict=True):
        slots, positions = np.flatnonzero(kept_T), np.flatnonzero(routed_T)
        for block in range(0, len(slots), keys):
            total += -(-int(np.sum(positions >= slots[block])) // rows)
    return total


@pytest.fixture
def visits(monkeypatch):
    """A list that grows by one for each tile that is worked on: a counter in the body of the loop."""
    seen, visible = [], xla._visible

    def counted(*args):
        jax.debug.callback(lambda: seen.append(1))
        return visible(*args)

    monkeypatch.setattr(xla, "_visible", counted)
    jax.clear_caches()
    return seen


def test_only_the_plans_tiles_are_visited(visits):
    q, k, v = inputs()

    def attend(q, routed_BxT, kept_BxT):
        plan = kernels.make_plan(routed_BxT, kept_BxT=kept_BxT)
        return jnp.sum(kernels.skip_attention(q, k, v, plan, backend="xla") ** 2)

    forward, backward = jax.jit(attend), jax.jit(jax.grad(attend))
    for count, kept in [(0, T), (1, T), (20, 40), (20, T), (T, T)]:
        routed_BxT, kept_BxT = marks(count, 1), marks(kept, 2)
        needed = tiles_needed(routed_BxT, kept_BxT, 16, 32)
        assert (needed == 0) == (count == 0)
        for run, times in ((forward, 1), (backward, 2)):  # a gradient visits them forward and backward
            visits.clear()
            jax.block_until_ready(run(q, jnp.asarray(routed_BxT), jnp.asarray(kept_BxT)))
            jax.effects_barrier()
            assert len(visits) == times * needed


def test_vmap_adds_sequences_to_the_list(visits):
    # Given three plans, one of them full: the others must not pay for it
    q, k, v = inputs()
    routed_3xBxT = np.stack([marks(count, 1) for count in (0, 1, T)])

    def attend(q, routed_BxT):
        return kernels.skip_attention_compact(q, k, v, kernels.make_plan(routed_BxT), backend="xla")

    mapped = jax.jit(jax.vmap(attend, in_axes=(None, 0)))(q, jnp.asarray(routed_3xBxT))
    jax.effects_barrier()
    everyone_BxT = np.ones((B, T), bool)
    assert len(visits) == sum(tiles_needed(routed_BxT, everyone_BxT, 16, 32) for routed_BxT in routed_3xBxT)
    apart = jax.jit(attend)
    for o, routed_BxT in zip(mapped, routed_3xBxT, strict=True):
        np.testing.assert_allclose(o, apart(q, jnp.asarray(routed_BxT)), atol=1e-6)


def test_nested_maps_still_choose_one_bucket(visits):
    # Given few routed queries in a batch mapped twice
    q, k, v = inputs()
    attend = lambda routed_BxT: kernels.skip_attention(q, k, v, kernels.make_plan(routed_BxT), backend="xla")
    routed = jnp.asarray(np.stack([[marks(5, seed), marks(3, seed + 9)] for seed in range(2)]))
    one = jax.jit(attend)
    want = jnp.stack([jnp.stack([one(x) for x in pair]) for pair in routed])
    jax.effects_barrier()
    apart = len(visits)
    visits.clear()
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.vmap(attend)))(routed), want, atol=1e-6)
    jax.effects_barrier()
    assert 0 < len(visits) <= apart


def test_the_last_bucket_holds_every_plan():
    plan = kernels.make_plan(jnp.ones((B, T), bool))
    with pytest.raises(ValueError, match=r"the last of sizes must be \(1, 1\), .* got \(\(0.125, 1\),\)"):
        kernels.in_buckets(lambda plan, x: x, plan, jnp.ones(3), sizes=((1 / 8, 1),))
