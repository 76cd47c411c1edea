"""The TPU kernels without a TPU: right and free of races when interpreted, accepted by the TPU's compiler, and visiting
exactly the pairs of tile and block that see each other."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tpu_cases import ALL, TOPOLOGIES, alone, compiled, device_of, norm

from cram_jax import kernels
from cram_jax.kernels.skip_attention import reference, tpu
from cram_jax.kernels.tpu_common import STRICT

B, T = 2, 100
TILES = tpu.Tiles(rows=32, keys=32, part=16)  # not for the hardware, but many of them in few rows
RANDOM = np.random.default_rng(0)
ROUTED_BxT = RANDOM.random((B, T)) < 0.3
KEPT_BxT = RANDOM.random((B, T)) < 0.6


class Shape(NamedTuple):
    H: int
    G: int
    K: int
    V: int
    dtype: type
    tolerance: float  # of the norm of what is compared

    def heads(self):
        """Queries, keys, values and a gradient."""
        keys = jax.random.split(jax.random.key(1), 4)
        sizes = (self.H, self.K), (self.G, self.K), (self.G, self.V), (self.H, self.V)
        return [jax.random.normal(key, (B, T, *size), self.dtype) for key, size in zip(keys, sizes, strict=True)]


SHAPES = {
    # Sums of up to 100 products in float32 (6e-8 each), in another order
    "float32": Shape(H=4, G=2, K=16, V=8, dtype=jnp.float32, tolerance=2e-5),
    # Weights, their gradients and results are rounded to 8 bits (4e-3 at most, less on average)
    "bfloat16": Shape(H=3, G=1, K=32, V=32, dtype=jnp.bfloat16, tolerance=1e-2),
}


def first(count: int) -> np.ndarray:
    """That many routed in the second sequence, one fewer in the first."""
    return np.arange(T) < np.array([[max(count - 1, 0)], [count]])


SEGMENT_BxT = np.broadcast_to(np.arange(T, dtype=np.int32) // 37, (B, T))
PLANS = {  # with two heads in a group, 16 rows fill a tile of 32
    "none": dict(routed_BxT=first(0)),
    "one": dict(routed_BxT=first(1)),
    "a_tile": dict(routed_BxT=first(16)),
    "a_tile_and_one": dict(routed_BxT=first(17)),
    "all": dict(routed_BxT=first(T)),
    "kept": dict(routed_BxT=ROUTED_BxT, kept_BxT=KEPT_BxT),
    "window": dict(routed_BxT=ROUTED_BxT, window=9),
    "memory": dict(routed_BxT=ROUTED_BxT, kept_BxT=KEPT_BxT, memory=20),
    "segments": dict(routed_BxT=ROUTED_BxT, kept_BxT=KEPT_BxT & (SEGMENT_BxT != 1), segment_BxT=SEGMENT_BxT),
}


def planned(name: str) -> kernels.SkipPlan:
    return kernels.make_plan(**{k: jnp.asarray(v) if k.endswith("BxT") else v for k, v in PLANS[name].items()})


def run(plan, q, k, v, do, forward, backward):
    """(o, lse, dq, dk, dv), compact."""
    q, k, v, do = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v), plan.gather_queries(do)
    scale = q.shape[-1] ** -0.5
    o, lse = forward(q, k, v, plan, scale)
    return o, lse, *backward(q, k, v, plan, scale, o, lse, do)


def backend(interpret):
    f = {"tiles": TILES, "interpret": interpret}
    return partial(tpu.forward, **f), partial(tpu.backward, **f)


VISITED = []


def record(token, point, core):
    VISITED.append(point)
    return token


# One compilation for all plans, which also notes the points of the grids
INTERPRET = dataclasses.replace(STRICT, grid_point_recorder=record)
STEP = jax.jit(lambda plan, *heads: run(plan, *heads, *backend(INTERPRET)))
strict = alone(STEP)


def visible(plan) -> np.ndarray:
    """(B C S), from the plan's limits."""
    slot_S = np.arange(plan.slots_BxS.shape[1])
    return (slot_S >= np.asarray(plan.start_BxC)[..., None]) & (slot_S < np.asarray(plan.end_BxC)[..., None])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_kernels_agree_with_the_reference_and_visit_what_is_live(shape, name, capsys):
    shape, plan = SHAPES[shape], planned(name)
    heads = shape.heads()
    VISITED.clear()
    got = strict(plan, *heads)
    want = run(plan, *(x.astype(jnp.float32) for x in heads), reference.forward, reference.backward)

    for part, g, w in zip(("o", "lse", "dq", "dk", "dv"), got, want, strict=True):
        # One more, the size of a term, where terms cancel: a row that sees one key has no dq at all
        assert norm(np.asarray(g, np.float32) - w) <= shape.tolerance * (norm(w) + 1), part
    assert "RACE" not in capsys.readouterr().out  # an exception in newer versions
    # Nothing came of rows that see nothing and keys nobody sees, not even a rounding error
    visible_BxCxS = visible(plan)
    for part, x in zip(("o", "lse", "dq", "dk", "dv"), got, strict=True):
        live = visible_BxCxS.any(axis=1 if part in ("dk", "dv") else 2)
        assert np.all(np.asarray(x, np.float32)[~live] == 0), part

    # Forward, dq, and dk with dv visited each pair of tile and block that sees something once a group, and nothing else
    visible_BxNxS = np.repeat(visible_BxCxS, shape.H // shape.G, axis=1)
    visible_BxNxS = np.pad(visible_BxNxS, [(0, 0), *((0, -size % 32) for size in visible_BxNxS.shape[1:])])
    N, S = visible_BxNxS.shape[1:]
    pairs = visible_BxNxS.reshape(B, N // 32, 32, S // 32, 32).any(axis=(2, 4)).sum()
    assert len(VISITED) == 3 * shape.G * pairs


def test_poison_in_what_is_skipped_changes_nothing():
    # Given plans that leave whole blocks of keys unseen and whole tiles of rows unused
    shape = SHAPES["float32"]
    for name in ("a_tile_and_one", "segments"):
        plan, heads = planned(name), shape.heads()
        clean = strict(plan, *heads)
        # When queries that are not routed, keys that are not kept, and blocks nobody sees hold NaN
        seen_BxS = visible(plan).any(axis=1)
        block_BxS = np.repeat(np.pad(seen_BxS, ((0, 0), (0, -T % 32))).reshape(B, -1, 32).any(-1), 32, axis=1)[:, :T]
        used_BxT = np.zeros((B, T), bool)
        for b in range(B):
            slots = np.asarray(plan.slots_BxS)[b]
            used_BxT[b, slots[block_BxS[b] & (slots < T)]] = True
        routed_BxT = PLANS[name]["routed_BxT"]
        assert not used_BxT.all() and not routed_BxT.all()
        marks = routed_BxT, used_BxT, used_BxT, routed_BxT
        poisoned = [jnp.where(mark[..., None, None], x, jnp.nan) for mark, x in zip(marks, heads, strict=True)]
        # Then nothing changes, bit for bit
        jax.tree.map(np.testing.assert_array_equal, strict(plan, *poisoned), clean)
        assert all(np.all(np.isfinite(x)) for x in clean)
    assert STEP._cache_size() <= len(SHAPES), "a new plan does not recompile"


def test_by_name_and_under_vmap():
    # Given two layers with plans of their own
    q, k, v, _ = (jnp.stack([x, x[::-1]]) for x in SHAPES["float32"].heads())
    routed = jnp.stack([jnp.asarray(ROUTED_BxT), jnp.asarray(~KEPT_BxT)])

    def loss(name, q, k, v, routed_BxT):
        return jnp.sum(kernels.skip_attention(q, k, v, kernels.make_plan(routed_BxT, window=30), backend=name) ** 2)

    def layers(name):
        f = jax.jit(jax.vmap(jax.value_and_grad(partial(loss, name), argnums=(0, 1, 2))))
        return alone(f)(q, k, v, routed)

    # Then they are right at once as well, to the same tolerance
    for g, w in zip(*(jax.tree.leaves(layers(name)) for name in ("tpu_interpret", "reference")), strict=True):
        assert norm(g - w) <= 2e-5 * norm(w)


def test_more_routed_and_kept_than_there_is_room_for():
    # Given lists shorter than the sequences, each of another length, that do not hold all
    q, k, v, do = SHAPES["float32"].heads()
    plan = kernels.make_plan(jnp.asarray(ROUTED_BxT), kept_BxT=jnp.asarray(KEPT_BxT), capacity=20, kept_capacity=33)
    assert jnp.all(plan.dropped_B > 0) and jnp.all(plan.dropped_kept_B > 0)

    def run(name):
        attend = lambda q, k, v: kernels.skip_attention(q, k, v, plan, backend=name)
        o, back = jax.vjp(attend, q, k, v)
        return o, *back(do)

    for got, want in zip(alone(jax.jit(partial(run, "tpu_interpret")))(), run("reference"), strict=True):
        assert norm(got - want) <= 2e-5 * norm(want)


def test_a_plan_too_long_for_scalar_memory_is_named():
    B, T = 64, 2**17
    like = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.bfloat16)
    plan = jax.eval_shape(kernels.make_plan, jax.ShapeDtypeStruct((B, T), bool))
    attend = lambda q, k, v, plan: tpu.forward(q, k, v, plan, 1.0, tiles=tpu.Tiles(512, 512))
    with pytest.raises(
        ValueError, match="64 sequences x 256 tiles .* x 256 blocks .* 4194304 pairs, .*smaller capacities"
    ):
        jax.eval_shape(attend, like(B, T, 1, 64), like(B, T, 1, 64), like(B, T, 1, 64), plan)


SIZES = [(64, 128, jnp.bfloat16), (128, 128, jnp.float32), (256, 256, jnp.float32)]
COMPILED = [(chip, *size) for chip in ("v5e", "v6e") for size in SIZES] + [("v5p", *SIZES[1])]  # v5p has v5e's tiles
if ALL:
    COMPILED = [(chip, *size) for chip in TOPOLOGIES for size in SIZES]


@pytest.mark.parametrize(("chip", "K", "V", "dtype"), COMPILED)
def test_the_compiler_of_the_chip_takes_it(chip, K, V, dtype):
    device = device_of(chip)
    assert device.device_kind in tpu.TILES or chip in ("v4", "v7x")
    place = jax.sharding.SingleDeviceSharding(device)
    B, T, H, G = 2, 2048, 4, 2
    like = lambda *sizes, dtype=dtype: jax.ShapeDtypeStruct(sizes, dtype, sharding=place)
    plan = kernels.SkipPlan(*(like(*x, dtype=jnp.int32) for x in [(B, T)] * 4 + [(B,)] * 2))
    tiles = tpu.best_tiles(device.device_kind, V)

    def both(plan, q, k, v, do):
        o, lse = tpu.forward(q, k, v, plan, 1.0, tiles=tiles)
        return o, tpu.backward(q, k, v, plan, 1.0, o, lse, do, tiles=tiles)

    heads = like(B, T, H, K), like(B, T, G, K), like(B, T, G, V), like(B, T, H, V)
    program = compiled(both, plan, *heads)
    # It fits, and the three kernels are in it
    assert all(name in program.as_text() for name in ("forward_kernel", "dq_kernel", "dkv_kernel"))
