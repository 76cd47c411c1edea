"""The GPU kernels: numbers and races under JAX's interpreter, and lowering for CUDA; on a GPU, its own numbers.

The interpreter knows neither layouts nor registers; what compiles for sm_90, and without spills, `make aot-gpu` says.
`JAX_PLATFORMS=cuda python -m pytest tests/kernels/test_gpu.py` runs the kernels themselves.
"""

from types import SimpleNamespace

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax import kernels
from cram_jax.kernels.backends import SKIP_ATTENTION
from cram_jax.kernels.skip_attention import gpu, xla

pytestmark = pytest.mark.usefixtures("leaky")
ON_GPU = jax.default_backend() == "gpu"
BACKEND = "gpu" if ON_GPU else "gpu_interpret"
NONE = "jax 0.12 (Python 3.12) has the first interpreter that suffices"
interpreted = pytest.mark.skipif(not gpu.can_interpret(), reason=NONE)
computed = pytest.mark.skipif(not (ON_GPU or gpu.can_interpret()), reason=NONE)

T = 200  # 4 blocks of keys; with two heads to a group, 7 tiles of rows: slots of the two-step pipeline are used again
HALF = np.random.default_rng(0).random((1, T)) < 0.5
MOST = np.random.default_rng(1).random((1, T)) < 0.8
first = lambda count: np.arange(T)[None] < count
ALL = first(T)
PLANS = {
    "none routed": {"routed_BxT": first(0)},
    "one routed": {"routed_BxT": np.arange(T)[None] == 130},
    "a tile less a row": {"routed_BxT": first(31)},
    "a tile": {"routed_BxT": first(32)},
    "a tile and a row": {"routed_BxT": first(33)},
    "a block of keys": {"routed_BxT": ALL, "kept_BxT": first(64)},
    "a block and a key": {"routed_BxT": ALL, "kept_BxT": first(65)},
    "all": {"routed_BxT": ALL},
    "random": {"routed_BxT": HALF, "kept_BxT": MOST},
    "window": {"routed_BxT": HALF, "window": 40},
    "memory": {"routed_BxT": HALF, "kept_BxT": MOST, "memory": 70},
    "segments": {"routed_BxT": HALF, "segment_BxT": (np.arange(T) // 70)[None]},
    "near": {"routed_BxT": np.isin(np.arange(T), (70, 71, 150, 199))[None], "window": 5},  # blocks 1, 2, 3, not 0
    "first keys dropped": {"routed_BxT": ALL, "kept_BxT": ~first(50)},  # early rows see nothing
}


def plan_of(name: str) -> kernels.SkipPlan:
    given = PLANS[name]
    return kernels.make_plan(**given | {key: jnp.asarray(x) for key, x in given.items() if key.endswith("BxT")})


def inputs(B=1, T=T, H=2, G=1, K=64, V=64, kind=jnp.bfloat16):
    """Queries, keys, values and the gradient of what attention answers."""
    sizes = (H, K), (G, K), (G, V), (H, V)
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, (B, T, *size), kind) for key, size in zip(keys, sizes, strict=True)]


def attention(backend):
    """(o, dq, dk, dv) at all positions."""

    def run(q, k, v, do, plan):
        def attend(q, k, v):
            compact = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v)
            return plan.scatter(kernels.skip_attention_compact(*compact, plan, backend=backend), q.shape[1])

        o, back = jax.vjp(attend, q, k, v)
        return o, *back(do)

    return run


kernel = jax.jit(attention(BACKEND))  # stops with an error at the first race
exact = jax.jit(lambda *arrays: attention("reference")(*[x.astype(jnp.float32) for x in arrays[:4]], arrays[4]))


def close(got, want) -> bool:
    """Within 1e-2 of the norm: bfloat16 rounds to 4e-3, and weights and answers are rounded once each."""
    error = [np.linalg.norm(np.asarray(g, np.float32) - w) for g, w in zip(got, want, strict=True)]
    return all(e <= 1e-2 * np.linalg.norm(w) for e, w in zip(error, want, strict=True))


@computed
@pytest.mark.parametrize("name", PLANS)
def test_it_is_attention_over_the_plan(name):
    plan, arrays = plan_of(name), inputs()
    got, want = kernel(*arrays, plan), exact(*arrays, plan)
    assert close(got, want)
    # Exactly 0 wherever the reference is: not routed, not kept, or nothing visible
    for g, w in zip(got, want, strict=True):
        silent = ~np.any(w != 0, axis=(2, 3))
        assert not np.any(np.asarray(g, np.float32)[silent])
    assert name != "none routed" or not any(np.any(w) for w in want)


@computed
@pytest.mark.parametrize(
    "sizes",
    [
        {"B": 2, "T": 70, "H": 2, "G": 2},
        {"T": 100, "H": 6, "G": 2, "K": 32, "V": 128},
        {"T": 300, "H": 1, "G": 1, "K": 128, "V": 32},
    ],
    ids=["sequences", "groups", "long"],
)
def test_heads_and_sizes(sizes):
    arrays = inputs(**sizes)
    marks = jax.random.bernoulli(jax.random.key(1), 0.6, (2, *arrays[0].shape[:2]))
    T = arrays[0].shape[1]  # more are routed and kept than there is room for
    plan = kernels.make_plan(marks[0], kept_BxT=marks[1], capacity=T // 3, kept_capacity=T // 3)
    assert jnp.all(plan.dropped_B > 0) and jnp.all(plan.dropped_kept_B > 0)
    assert close(kernel(*arrays, plan), exact(*arrays, plan))


@computed
def test_results_repeat_bit_by_bit():
    once, again = (kernel(*inputs(), plan_of("random")) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)


def poisoned(plan):
    """Inputs with NaN in queries not routed, in keys not kept, and in whole blocks of keys that no query sees."""
    q, k, v, do = inputs()
    seen = np.zeros(4 * gpu.TILE, bool)
    for start, end in zip(plan.start_BxC[0], plan.end_BxC[0], strict=True):
        seen[start:end] = True
    seen = np.repeat(seen.reshape(-1, gpu.TILE).any(axis=1), gpu.TILE)[:T]
    routed, seen = (np.isin(np.arange(T), positions) for positions in (plan.rows_BxC, plan.slots_BxS[0, seen]))
    fill = lambda x, good: jnp.where(good[None, :, None, None], x, jnp.nan)
    return fill(q, routed), fill(k, seen), fill(v, seen), fill(do, routed)


@computed
@pytest.mark.parametrize("name", ["near", "random", "memory"])
def test_what_is_skipped_is_not_looked_at(name):
    plan = plan_of(name)
    arrays = poisoned(plan)
    assert all(np.isnan(x).any() for x in arrays)
    # Bit by bit the same, and finite
    got, want = kernel(*arrays, plan), kernel(*inputs(), plan)
    jax.tree.map(np.testing.assert_array_equal, got, want)
    assert all(np.all(np.isfinite(x.astype(jnp.float32))) for x in got)


@pytest.mark.parametrize("name", PLANS)
def test_loops_are_as_long_as_the_plan_says(name):
    plan = plan_of(name)
    start, end = (np.asarray(x[0]) for x in gpu._limits(plan, Q=2))
    first_I, tiles_I, since_J, blocks_J = (np.asarray(x[0]) for x in gpu._ranges(start[None], end[None], 256))
    slot = np.arange(256)
    visible = (slot >= start[:, None]) & (slot < end[:, None])  # rows, keys
    meets = visible.reshape(-1, gpu.TILE, 4, gpu.TILE).any(axis=(1, 3))  # tiles, blocks
    span = lambda marks: (np.argmax(marks), np.ptp(np.flatnonzero(marks)) + 1) if marks.any() else (0, 0)
    assert list(zip(first_I, tiles_I, strict=True)) == [span(marks) for marks in meets]
    assert list(zip(since_J, blocks_J, strict=True)) == [span(marks) for marks in meets.T]
    assert (tiles_I.sum() == 0) == (not visible.any())


# Faults that the tests above have to notice, each planted in one place


def late_mask(start_R, end_R, block, axis):
    slot = plgpu.broadcasted_iota(jnp.int32, (64, 64), 1 - axis, layout=plgpu.Layout.WGMMA) + block * 64
    return (slot >= gpu._spread(start_R, axis)) & (slot <= gpu._spread(end_R, axis))


def impatient_fetch(barrier, sources, targets):
    for source, target in zip(sources, targets, strict=True):
        plgpu.copy_gmem_to_smem(source, target, barrier)


def stretched(earlier, longer):
    ranges = gpu._ranges

    def wrong(*arguments):
        first_I, tiles_I, *keys = ranges(*arguments)
        return jnp.clip(first_I - earlier, 0), jnp.clip(tiles_I + longer, 0), *keys

    return wrong


def without(name):
    attributes = {key: getattr(plgpu, key) for key in dir(plgpu) if key[0] != "_"}
    return SimpleNamespace(**attributes | {name: lambda: None})


@pytest.fixture
def mutate(monkeypatch):
    """Replaces a part of the kernels, and forgets what was compiled with the other one."""

    def put(name, value):
        monkeypatch.setattr(gpu, name, value)
        jax.clear_caches()

    yield put
    monkeypatch.undo()
    jax.clear_caches()


@computed
@pytest.mark.parametrize(
    ("name", "value", "plan"),
    [
        ("_visible", late_mask, "random"),
        ("_ranges", stretched(0, -1), "random"),
        ("_ranges", stretched(1, 1), "near"),  # visits a block of NaN
    ],
    ids=["mask one too late", "one block too few", "one block too many"],
)
def test_wrong_numbers_are_noticed(mutate, name, value, plan):
    plan = plan_of(plan)
    mutate(name, value)
    assert not close(jax.jit(attention(BACKEND))(*poisoned(plan), plan), exact(*inputs(), plan))


@interpreted
@pytest.mark.parametrize(
    ("name", "value"),
    [("_fetch", impatient_fetch), ("plgpu", without("commit_smem"))],
    ids=["no wait for what was fetched", "no commit of shared memory"],
)
@pytest.mark.parametrize("function", ["forward", "backward"])
def test_missing_synchronisation_is_noticed(mutate, function, name, value):
    plan, (q, k, v, do) = plan_of("random"), inputs()
    compact = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v)
    rows = do, jnp.zeros(do.shape[:3]), do
    mutate(name, value)
    extra = () if function == "forward" else rows
    run = jax.jit(lambda *x: getattr(SKIP_ATTENTION["gpu_interpret"], function)(*x[:3], plan, 0.1, *x[3:]))
    with pytest.raises(Exception, match="RACE DETECTED"):
        jax.block_until_ready(run(*compact, *extra))


def test_float32_is_left_to_xla():
    arrays = inputs(T=20, kind=jnp.float32)
    plan = kernels.make_plan(jnp.asarray(HALF[:, :20]))
    with pytest.warns(UserWarning, match="bfloat16 with heads of up to 128 has a GPU kernel"):
        got = jax.jit(attention("gpu"))(*arrays, plan)
    want = jax.jit(attention("xla"))(*arrays, plan)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("K", [32, 64, 128])
def test_it_lowers_for_cuda_anywhere(K, batched):
    run, arrays = attention("gpu"), (*inputs(K=K), plan_of("random"))
    if batched:  # one kernel call for all, not one each
        run, arrays = jax.vmap(run), jax.tree.map(lambda x: jnp.stack([x] * 3), arrays)
    text = jax.jit(run).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 3


def test_other_sizes_are_left_to_xla():
    plan, (q, k, v, _) = plan_of("random"), inputs(K=256)
    with pytest.warns(UserWarning, match="bfloat16 with heads of up to 128 has a GPU kernel"):
        o, lse = gpu.forward(q, k, v, plan, 0.1)
    jax.tree.map(np.testing.assert_array_equal, (o, lse), xla.forward(q, k, v, plan, 0.1))
