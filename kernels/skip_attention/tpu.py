"""Attention over a plan for TPUs: the grid is the list of pairs (tile of rows, block of keys) that see each other.

XLA makes the list from the plan's limits and hands it over as prefetched scalars. The grid is as long as the list, and
its bound is traced: the kernels do not visit what the plan skips, and a new plan does not recompile. The softmax is
online (Milakov and Gimelshein 2018), tile by tile. The backward pass recomputes the weights from the log-sum-exp twice:
tile by tile for dq, and block by block for dk and dv. So nothing is added up across cores, and results repeat bit by
bit.

N counts a plan's rows times the Q query heads of a group, which share their keys and fill the matrix unit together.
Rows lie along lanes and keys along sublanes. Numbers per row, such as limits and log-sum-exp, are then plain vectors,
and queries with a head dimension below 128 waste no lanes.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .. import backends
from ..backends import Call
from ..common import LOW, accumulator, dot, pad_to, vmap_as_more_sequences
from ..tpu_common import interpreter
from .plan import SkipPlan


class Tiles(NamedTuple):
    """What one step of the grid works on; multiples of 128 on a TPU.

    Attributes:
      rows: query rows; each head of a group counts.
      keys: kept keys.
      part: number of keys whose softmax the forward pass takes at once. Parts overlap: the vector unit works on one
        while the matrix unit works on the next. Fewer keys also need fewer registers.
    """

    rows: int
    keys: int
    part: int = 128


# Chosen from the compiler's static schedules (bfloat16, head dimension 128), not from run times. `make aot-tpu` writes
# the schedules of all candidates into the results.
# Rows: enough to keep the matrix unit busy while the next block of keys is read, and no more, because a tile that few
# rows fill is computed in full. On v5e, 256 rows take 0.6 us a block of 512 keys, and reading the block takes 0.3 us.
# Keys: more keys need fewer instructions for each, but a window or a causal edge wastes half a block. They pay where
# the vector unit is the bottleneck (v6e: a quarter fewer instructions in the forward pass).
DEFAULT = Tiles(256, 512)
TILES = {"TPU v5 lite": DEFAULT, "TPU v5": DEFAULT, "TPU v6 lite": Tiles(256, 1024)}  # by device kind

LOWEST = LOW / 2  # where a row's maximum starts: far above LOW, so that hidden keys weigh exactly 0 from the start
SCALARS = 2**20 // 4 - 2**12  # 32-bit words of scalar memory, less what the compiler keeps
FIRST, LAST = 1, 2  # flags of an item: it begins a sum, it ends one
FLAG_BITS = 2


def supported(call: Call, interpret=False) -> str | None:
    """None: it compiles for every TPU, also on a machine that has none."""
    return None


def preferred(call: Call) -> bool:
    """Always: the interpreter and the chips' compiler verified it."""
    return True


def best_tiles(device_kind: str, V: int) -> Tiles:
    tiles = TILES.get(device_kind, DEFAULT)
    # At head dimension 64, fading the sums part by part costs more than the overlap saves (v5e: 1003 bundles, not 730).
    return tiles if V >= 128 else tiles._replace(part=tiles.keys)


class _Sizes(NamedTuple):
    tiles: Tiles
    scale: float
    interpret: object


class _Work(NamedTuple):
    """The pairs of tile and block that see each other, in the order in which they are visited.

    Attributes:
      count: number of pairs.
      item_I: one word for each pair (`_unpack`); only the first `count` words mean something.
      tile_bits, block_bits: widths of the word's parts.
    """

    count: jax.Array
    item_I: jax.Array
    tile_bits: int
    block_bits: int


def forward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float, *, tiles=None, interpret=False):
    """(attention o_BxCxHxV, log-sum-exp_BxCxH) of compact query rows over compact keys; 0 where a row sees nothing."""
    sizes, arrays = _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale, tiles, interpret)
    o, lse = vmap_as_more_sequences(partial(_forward, sizes), arrays)
    return _rows_back(o, q_BxCxHxK), _rows_back(lse, q_BxCxHxK)[..., 0]


def backward(
    q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale, o_BxCxHxV, lse_BxCxH, do_BxCxHxV, *, tiles=None, interpret=False
):
    """(dq, dk, dv) for the gradient do of o."""
    sizes, arrays = _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale, tiles, interpret)
    delta_BxCxH = jnp.sum(do_BxCxHxV.astype(lse_BxCxH.dtype) * o_BxCxHxV.astype(lse_BxCxH.dtype), axis=-1)
    stats_BxCxHx2 = jnp.stack([lse_BxCxH, delta_BxCxH], axis=-1)
    by_row = [_rows_laid_out(x, k_BxSxGxK.shape[2], sizes.tiles.rows) for x in (stats_BxCxHx2, do_BxCxHxV)]
    dq, dk, dv = vmap_as_more_sequences(partial(_backward, sizes), (*arrays, *by_row))
    S = k_BxSxGxK.shape[1]
    return _rows_back(dq, q_BxCxHxK), *(x.transpose(0, 3, 1, 2)[:, :S] for x in (dk, dv))


def _rows_laid_out(x_BxCxHxX, G: int, rows: int):
    """(B G X N), N in whole tiles. Padded rows see nothing, and no row sees padded keys."""
    B, C, H, X = x_BxCxHxX.shape
    x_BxGxXxN = x_BxCxHxX.reshape(B, C, G, H // G, X).transpose(0, 2, 4, 1, 3).reshape(B, G, X, -1)
    return pad_to(x_BxGxXxN, {3: rows})


def _rows_back(x_BxGxXxN, q_BxCxHxK):
    B, C, H, _ = q_BxCxHxK.shape
    G, X = x_BxGxXxN.shape[1:3]
    x_BxGxXxCxQ = x_BxGxXxN[..., : C * H // G].reshape(B, G, X, C, H // G)
    return x_BxGxXxCxQ.transpose(0, 3, 1, 4, 2).reshape(B, C, H, X)


def _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale, tiles, interpret):
    (_, C, H, _), (_, S, G, _) = q_BxCxHxK.shape, k_BxSxGxK.shape
    most = tiles or best_tiles(backends.device_kind(), v_BxSxGxV.shape[-1])
    in_lanes = lambda size: -(-size // 128) * 128
    tiles = Tiles(min(most.rows, in_lanes(C * H // G)), min(most.keys, in_lanes(S)), most.part)
    limits_Bx2xN = jnp.repeat(jnp.stack([plan.start_BxC, plan.end_BxC], axis=1), H // G, axis=2)
    k_BxGxSxK, v_BxGxSxV = (pad_to(x.swapaxes(1, 2), {2: tiles.keys}) for x in (k_BxSxGxK, v_BxSxGxV))
    q_BxGxKxN = _rows_laid_out(q_BxCxHxK, G, tiles.rows)
    sizes = _Sizes(tiles, float(scale), interpret)
    return sizes, (q_BxGxKxN, k_BxGxSxK, v_BxGxSxV, pad_to(limits_Bx2xN, {2: tiles.rows}))


def _pairs(limits_Bx2xN, S: int, tiles: Tiles):
    """(sequences, tiles, blocks): whether any row of the tile sees any key of the block."""
    start, end = jnp.moveaxis(limits_Bx2xN.reshape(len(limits_Bx2xN), 2, -1, 1, tiles.rows), 1, 0)
    edge = jnp.arange(0, S, tiles.keys, dtype=jnp.int32)[:, None]
    return jnp.any((start < end) & (start < edge + tiles.keys) & (end > edge), axis=-1)


def _work(live, by_block: bool) -> _Work:
    """The list of live pairs (`_pairs`), tile by tile or block by block."""
    B, tiles, blocks = live.shape
    if live.size > SCALARS:
        raise ValueError(
            f"a plan of {B} sequences x {tiles} tiles of rows x {blocks} blocks of keys may list {live.size} "
            f"pairs, but scalar memory holds {SCALARS}; use larger tiles, smaller capacities, or fewer sequences a call"
        )
    tile_bits, block_bits = (tiles - 1).bit_length(), (blocks - 1).bit_length()
    b, tile, block = (jax.lax.broadcasted_iota(jnp.int32, live.shape, axis) for axis in range(3))
    along = 1 if by_block else 2  # the axis that a sum runs along: tiles, or blocks
    rank = jnp.cumsum(live, axis=along, dtype=jnp.int32)
    total = jnp.sum(live, axis=along, keepdims=True, dtype=jnp.int32)
    flags = jnp.where(rank == 1, FIRST, 0) + jnp.where(rank == total, LAST, 0)
    word = ((((b << tile_bits) + tile) << block_bits) + block << FLAG_BITS) + flags
    if by_block:
        live, word = live.swapaxes(1, 2), word.swapaxes(1, 2)
    order_I = jnp.argsort(~live.reshape(-1), stable=True)
    return _Work(jnp.sum(live, dtype=jnp.int32), word.reshape(-1)[order_I], tile_bits, block_bits)


def _unpack(work: _Work, item):
    """(sequence, tile, block)."""
    place = item >> FLAG_BITS
    block, place = place & ((1 << work.block_bits) - 1), place >> work.block_bits
    return place >> work.tile_bits, place & ((1 << work.tile_bits) - 1), block


def _visit(kernel, sizes: _Sizes, work: _Work, inputs: dict, outputs: dict, scratch):
    """Runs the kernel on the live pairs, for each group of heads.

    Args:
      inputs, outputs: arrays by the way they are cut: "limits", "rows", "keys", or "across" (keys along lanes).
    """
    tiles = sizes.tiles
    G = inputs["rows"][0].shape[1]

    def spec(cut, x):
        at = lambda index: lambda g, i, item_I: index(g, *_unpack(work, item_I[i]))
        match cut:
            case "limits":
                return pl.BlockSpec((None, 2, tiles.rows), at(lambda g, b, tile, block: (b, 0, tile)))
            case "rows":
                return pl.BlockSpec((None, None, x.shape[2], tiles.rows), at(lambda g, b, tile, block: (b, g, 0, tile)))
            case "keys":
                return pl.BlockSpec(
                    (None, None, tiles.keys, x.shape[3]), at(lambda g, b, tile, block: (b, g, block, 0))
                )
            case "across":
                return pl.BlockSpec(
                    (None, None, x.shape[2], tiles.keys), at(lambda g, b, tile, block: (b, g, 0, block))
                )

    specs = lambda arrays: [spec(cut, x) for cut, group in arrays.items() for x in group]
    flat = lambda arrays: [x for group in arrays.values() for x in group]
    call = pl.pallas_call(
        partial(kernel, sizes, work),
        out_shape=tuple(flat(outputs)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(G, work.count),
            in_specs=specs(inputs),
            out_specs=specs(outputs),
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpreter(sizes.interpret),
        name=kernel.__name__.strip("_"),
    )
    # An empty grid is not run: what a pipeline does before its first step must not matter.
    nothing = lambda item_I, *arrays: tuple(jnp.zeros(x.shape, x.dtype) for x in flat(outputs))
    return jax.lax.cond(work.count > 0, call, nothing, work.item_I, *flat(inputs))


def _logits(sizes, at, limits_2xN, k_SxK, q_KxN):
    """(keys, rows) from slot `at` on, scaled; LOW for keys that a row does not see."""
    logits_SxN = dot(k_SxK, q_KxN[...], (1, 0)) * sizes.scale
    here_2xN = limits_2xN[...] - at  # a subtraction a row, not one a key and row
    slot_SxN = jax.lax.broadcasted_iota(jnp.int32, logits_SxN.shape, 0)
    visible_SxN = (slot_SxN >= here_2xN[0:1]) & (slot_SxN < here_2xN[1:2])
    return jnp.where(visible_SxN, logits_SxN, LOW)


def _forward_kernel(sizes, work, item_I, limits_2xN, q_KxN, k_SxK, v_SxV, o_VxN, lse_1xN, top_1xN, total_1xN, sum_VxN):
    item = item_I[pl.program_id(1)]

    @pl.when(item & FIRST != 0)
    def _():
        top_1xN[...] = jnp.full_like(top_1xN, LOWEST)
        total_1xN[...] = jnp.zeros_like(total_1xN)
        sum_VxN[...] = jnp.zeros_like(sum_VxN)

    top, total, total_VxN = top_1xN[...], total_1xN[...], sum_VxN[...]
    for at in range(0, sizes.tiles.keys, sizes.tiles.part):
        part = slice(at, at + sizes.tiles.part)
        slot = _unpack(work, item)[2] * sizes.tiles.keys + at
        logits_SxN = _logits(sizes, slot, limits_2xN, k_SxK[part], q_KxN)
        new_top = jnp.maximum(top, jnp.max(logits_SxN, axis=0, keepdims=True))
        weight_SxN = jnp.exp(logits_SxN - new_top)
        fade = jnp.exp(top - new_top)
        top, total = new_top, total * fade + jnp.sum(weight_SxN, axis=0, keepdims=True)
        total_VxN = total_VxN * fade + dot(v_SxV[part], weight_SxN.astype(v_SxV.dtype), (0, 0))
    top_1xN[...], total_1xN[...], sum_VxN[...] = top, total, total_VxN

    @pl.when(item & LAST != 0)
    def _():
        positive_1xN = jnp.where(total_1xN[...] > 0, total_1xN[...], 1)
        o_VxN[...] = (sum_VxN[...] / positive_1xN).astype(o_VxN.dtype)
        lse_1xN[...] = top_1xN[...] + jnp.log(positive_1xN)


def _seen_rows(limits_Bx2xN):
    """(B 1 1 N): rows that see something. Kernels leave anything in tiles that they did not visit."""
    return (limits_Bx2xN[:, 1] > limits_Bx2xN[:, 0])[:, None, None]


def _forward(sizes: _Sizes, q_BxGxKxN, k_BxGxSxK, v_BxGxSxV, limits_Bx2xN):
    """(o_BxGxVxN, log-sum-exp_BxGx1xN); 0 where a row sees nothing."""
    (B, G, _, N), (S, V) = q_BxGxKxN.shape, v_BxGxSxV.shape[2:]
    wide = accumulator(q_BxGxKxN.dtype)
    work = _work(_pairs(limits_Bx2xN, S, sizes.tiles), by_block=False)
    out = jax.ShapeDtypeStruct((B, G, V, N), v_BxGxSxV.dtype), jax.ShapeDtypeStruct((B, G, 1, N), wide)
    o, lse = _visit(
        _forward_kernel,
        sizes,
        work,
        {"limits": [limits_Bx2xN], "rows": [q_BxGxKxN], "keys": [k_BxGxSxK, v_BxGxSxV]},
        {"rows": out},
        [pltpu.VMEM((X, sizes.tiles.rows), wide) for X in (1, 1, V)],
    )
    sees_Bx1x1xN = _seen_rows(limits_Bx2xN)
    return jnp.where(sees_Bx1x1xN, o, 0), jnp.where(sees_Bx1x1xN, lse, 0)


def _weights(sizes, work, item, limits_2xN, q_KxN, stats_2xN, do_VxN, k_SxK, v_SxV):
    """(weights, gradients of the logits before scaling), both (keys, rows)."""
    slot = _unpack(work, item)[2] * sizes.tiles.keys
    logits_SxN = _logits(sizes, slot, limits_2xN, k_SxK[...], q_KxN)
    weight_SxN = jnp.exp(logits_SxN - stats_2xN[0:1])  # exactly 0 where hidden
    return weight_SxN, weight_SxN * (dot(v_SxV[...], do_VxN[...], (1, 0)) - stats_2xN[1:2])


def _dq_kernel(sizes, work, item_I, limits_2xN, q_KxN, stats_2xN, do_VxN, k_SxK, v_SxV, dq_KxN, sum_KxN):
    item = item_I[pl.program_id(1)]

    @pl.when(item & FIRST != 0)
    def _():
        sum_KxN[...] = jnp.zeros_like(sum_KxN)

    _, dlogits_SxN = _weights(sizes, work, item, limits_2xN, q_KxN, stats_2xN, do_VxN, k_SxK, v_SxV)
    sum_KxN[...] += dot(k_SxK[...], dlogits_SxN.astype(k_SxK.dtype), (0, 0))

    @pl.when(item & LAST != 0)
    def _():
        dq_KxN[...] = (sum_KxN[...] * sizes.scale).astype(dq_KxN.dtype)


def _dkv_kernel(
    sizes, work, item_I, limits_2xN, q_KxN, stats_2xN, do_VxN, k_SxK, v_SxV, dk_KxS, dv_VxS, ksum_KxS, vsum_VxS
):
    item = item_I[pl.program_id(1)]

    @pl.when(item & FIRST != 0)
    def _():
        ksum_KxS[...] = jnp.zeros_like(ksum_KxS)
        vsum_VxS[...] = jnp.zeros_like(vsum_VxS)

    weight_SxN, dlogits_SxN = _weights(sizes, work, item, limits_2xN, q_KxN, stats_2xN, do_VxN, k_SxK, v_SxV)
    vsum_VxS[...] += dot(do_VxN[...], weight_SxN.astype(do_VxN.dtype), (1, 1))
    ksum_KxS[...] += dot(q_KxN[...], dlogits_SxN.astype(q_KxN.dtype), (1, 1))

    @pl.when(item & LAST != 0)
    def _():
        dk_KxS[...] = (ksum_KxS[...] * sizes.scale).astype(dk_KxS.dtype)
        dv_VxS[...] = vsum_VxS[...].astype(dv_VxS.dtype)


def _backward(sizes: _Sizes, q_BxGxKxN, k_BxGxSxK, v_BxGxSxV, limits_Bx2xN, stats_BxGx2xN, do_BxGxVxN):
    """(dq_BxGxKxN, dk_BxGxKxS, dv_BxGxVxS)."""
    (B, G, K, _), (S, V) = q_BxGxKxN.shape, v_BxGxSxV.shape[2:]
    wide = accumulator(q_BxGxKxN.dtype)
    live = _pairs(limits_Bx2xN, S, sizes.tiles)
    inputs = {
        "limits": [limits_Bx2xN],
        "rows": [q_BxGxKxN, stats_BxGx2xN, do_BxGxVxN],
        "keys": [k_BxGxSxK, v_BxGxSxV],
    }
    out = lambda X, x: jax.ShapeDtypeStruct((B, G, X, S), x.dtype)
    visit = lambda kernel, by_block, outputs, size, sums: _visit(
        kernel,
        sizes,
        _work(live, by_block),
        inputs,
        outputs,
        [pltpu.VMEM((X, size), wide) for X in sums],
    )
    like_q = jax.ShapeDtypeStruct(q_BxGxKxN.shape, q_BxGxKxN.dtype)
    (dq,) = visit(_dq_kernel, False, {"rows": [like_q]}, sizes.tiles.rows, [K])
    dkv = {"across": [out(K, k_BxGxSxK), out(V, v_BxGxSxV)]}
    dk, dv = visit(_dkv_kernel, True, dkv, sizes.tiles.keys, [K, V])
    sees_Bx1x1xN = _seen_rows(limits_Bx2xN)
    seen_Bx1x1xS = jnp.repeat(jnp.any(live, axis=1), sizes.tiles.keys, axis=1)[:, None, None]
    return jnp.where(sees_Bx1x1xN, dq, 0), jnp.where(seen_Bx1x1xS, dk, 0), jnp.where(seen_Bx1x1xS, dv, 0)
