"""Attention over a plan on NVIDIA's Hopper GPUs: Mosaic GPU kernels that visit what the plan lists, and no more.

The rows of a group's query heads are stacked, 64 to a tile; kept keys come in blocks of 64. In the forward and the dQ
kernel each tile of rows has the contiguous range of key blocks that it sees. In the dK/dV kernel each key block has the
contiguous range of row tiles that see it. A kernel reads the length of a range from memory: the work follows the plan,
a new plan does not recompile, and a tile or block with an empty range gives exact 0. The softmax is online; the
backward pass recomputes the weights from the log-sum-exp. Nothing is added up across programs, so results repeat bit by
bit. A program is one warpgroup, which fetches the next block while it computes. It uses few enough registers that
several programs share a processor and fill each other's waits.

bfloat16 with head sizes up to 128 (padded to 64 or 128) runs here. All else, float32 above all, runs in `xla.py` with a
warning: the tensor cores would round float32 operands, which is far from what float32 promises.

Run on an H200: numbers (`tests/kernels/test_gpu.py`) and times (`experiments/gpu.py`). Without a GPU: numbers and races
under JAX's interpreter (the same tests), and compilation for sm_90 without spilled registers (`make aot-gpu`). GPUs
later than Hopper multiply with other instructions.
"""

import inspect
import math
import warnings
from functools import partial

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from ..backends import Call, device
from ..common import LOW, pad_to, vmap_as_more_sequences
from . import xla
from .plan import SkipPlan

TILE = 64  # rows in a tile and keys in a block: what one warpgroup multiplies without spilling registers
STEPS = 2  # blocks in shared memory: the one computed with, and the next
LOG2E = math.log2(math.e)  # the hardware's exponential is that of 2
TILED = plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)  # how tensor cores want bfloat16 in shared memory
GRID = ("batch", "group", "tile")
IDX = inspect.signature(plgpu.load).parameters.get("idx")
ALL = {"idx": ()} if IDX and IDX.default is IDX.empty else {}  # jax 0.10 asks for an index


def can_interpret() -> bool:
    """Whether this JAX has an interpreter of GPU kernels that stops at races: version 0.12 has."""
    return "on_race" in inspect.signature(getattr(plgpu, "InterpretGPUParams", object)).parameters


def is_hopper() -> bool:
    """Whether the device that programs are made for has the instructions of these kernels."""
    return str(getattr(device(), "compute_capability", None)) == "9.0"


def supported(call: Call, interpret: bool = False) -> str | None:
    """None, or a reason: a GPU that is no Hopper, or a JAX without the interpreter."""
    if interpret:
        return None if can_interpret() else "needs the interpreter of jax 0.12 (Python 3.12 or newer)"
    return "is for Hopper GPUs (compute capability 9.0)" if call.platform == "gpu" and not is_hopper() else None


def preferred(call: Call) -> bool:
    """For bfloat16: run on a Hopper GPU. Other dtypes are left to XLA."""
    return call.dtype == jnp.bfloat16


def forward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float, interpret: bool = False):
    """(attention o_BxCxHxV, log-sum-exp_BxCxH) of compact query rows over compact keys; 0 where a row sees nothing."""
    if not _runs_here(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV):
        return xla.forward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale)
    G, V = v_BxSxGxV.shape[2:]
    arrays = [_rows(q_BxCxHxK, G), _keys(k_BxSxGxK), _keys(v_BxSxGxV), *_limits(plan, q_BxCxHxK.shape[2] // G)]
    o, lse = vmap_as_more_sequences(partial(_forward, scale, interpret), arrays)
    return _rows_back(o, q_BxCxHxK)[..., :V], _rows_back(lse, q_BxCxHxK)


def backward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale, o_BxCxHxV, lse_BxCxH, do_BxCxHxV, interpret: bool = False):
    """(dq, dk, dv) for the gradient do of o."""
    if not _runs_here(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV):
        return xla.backward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale, o_BxCxHxV, lse_BxCxH, do_BxCxHxV)
    S, G, K = k_BxSxGxK.shape[1:]
    V = v_BxSxGxV.shape[3]
    delta_BxCxH = jnp.sum(do_BxCxHxV.astype(jnp.float32) * o_BxCxHxV.astype(jnp.float32), axis=-1)
    rows = [_rows(x, G) for x in (q_BxCxHxK, do_BxCxHxV.astype(v_BxSxGxV.dtype), lse_BxCxH, delta_BxCxH)]
    arrays = [*rows, _keys(k_BxSxGxK), _keys(v_BxSxGxV), *_limits(plan, q_BxCxHxK.shape[2] // G)]
    dq, dk, dv = vmap_as_more_sequences(partial(_backward, scale, interpret), arrays)
    return _rows_back(dq, q_BxCxHxK)[..., :K], dk[:, :S, :, :K], dv[:, :S, :, :V]


def _runs_here(q, k, v) -> bool:
    here = all(x.dtype == jnp.bfloat16 and x.shape[-1] <= 128 for x in (q, k, v))
    if not here:
        found = [(str(x.dtype), x.shape[-1]) for x in (q, k, v)]
        warnings.warn(f"bfloat16 with heads of up to 128 has a GPU kernel; {found} runs in XLA", stacklevel=2)
    return here


def _keys(x_BxSxGxK):
    return pad_to(x_BxSxGxK, {1: TILE, 3: 64})


def _rows(x_BxCxHx, G: int):
    """(B G R ...): the query heads of a group beside each other for every row, padded to whole tiles."""
    B, C, H, *K = x_BxCxHx.shape
    x_BxGxRx = x_BxCxHx.reshape(B, C, G, H // G, *K).swapaxes(1, 2).reshape(B, G, C * H // G, *K)
    return pad_to(x_BxGxRx, {2: TILE, 3: 64})


def _rows_back(x_BxGxRx, q_BxCxHxK):
    B, C, H = q_BxCxHxK.shape[:3]
    G, R, *K = x_BxGxRx.shape[1:]
    return x_BxGxRx[:, :, : C * H // G].reshape(B, G, C, H // G, *K).swapaxes(1, 2).reshape(B, C, H, *K)


def _limits(plan: SkipPlan, Q: int):
    return [pad_to(jnp.repeat(x_BxC, Q, axis=1), {1: TILE}) for x_BxC in (plan.start_BxC, plan.end_BxC)]


def _ranges(start_BxR, end_BxR, S: int):
    """The work: (first block, number of blocks) for each row tile, (first tile, number of tiles) for each key block."""
    sees_BxIxR, start_BxIxR, end_BxIxR = (
        x.reshape(x.shape[0], -1, TILE) for x in (end_BxR > start_BxR, start_BxR, end_BxR)
    )
    none_BxI = ~jnp.any(sees_BxIxR, axis=2)
    first_BxI = jnp.where(none_BxI, 0, jnp.min(jnp.where(sees_BxIxR, start_BxIxR, S), axis=2) // TILE)
    last_BxI = jnp.where(none_BxI, 0, -(-jnp.max(jnp.where(sees_BxIxR, end_BxIxR, 0), axis=2) // TILE))
    block_Jx1 = jnp.arange(S // TILE)[:, None]
    meets_BxJxI = (first_BxI[:, None] <= block_Jx1) & (block_Jx1 < last_BxI[:, None])
    tile_I = jnp.arange(first_BxI.shape[1])
    until_BxJ = jnp.max(jnp.where(meets_BxJxI, tile_I + 1, 0), axis=2)
    since_BxJ = jnp.min(jnp.where(meets_BxJxI, tile_I, until_BxJ[..., None]), axis=2)
    out = first_BxI, last_BxI - first_BxI, since_BxJ, until_BxJ - since_BxJ
    return [x.astype(jnp.int32) for x in out]


def _call(interpret: bool, body, out_type, grid, scratch_types):
    """A kernel. Interpreted (jax 0.12), it runs on a CPU and stops with an error at the first race."""
    return plgpu.kernel(
        body,
        out_type=out_type,
        grid=grid,
        grid_names=GRID,
        scratch_types=scratch_types,
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **{"interpret": plgpu.InterpretGPUParams(detect_races=True, on_race="raise")} if interpret else {},
    )


def _over_blocks(body, first, count, arrays, carry):
    """body(block, *its parts in shared memory, carry) over blocks first, first + 1, ...; fetches the next meanwhile."""
    spec = lambda ref: (
        plgpu.BlockSpec((TILE, ref.shape[1]), lambda i: (i + first, 0), transforms=TILED)
        if len(ref.shape) == 2
        else plgpu.BlockSpec((TILE,), lambda i: (i + first,))
    )
    return plgpu.emit_pipeline(
        lambda index, *parts_and_carry: body(index[0] + first, *parts_and_carry),
        grid=(count,),
        in_specs=[spec(ref) for ref in arrays],
        max_concurrent_steps=STEPS,
        init_carry=carry,
    )(*arrays)


def _place():
    """(sequence, group, tile or block) of this program."""
    return [jax.lax.axis_index(name) for name in GRID]


def _matrix(width: int, dtype):
    """A tile of rows, or a block of keys, in shared memory."""
    return plgpu.SMEM((TILE, width), dtype, transforms=TILED)


def _vectors(*dtypes):
    """One number for each row of a tile in shared memory, for each dtype."""
    return [plgpu.SMEM((TILE,), dtype) for dtype in dtypes]


def _fetch(barrier, sources, targets):
    for source, target in zip(sources, targets, strict=True):
        plgpu.copy_gmem_to_smem(source, target, barrier)
    plgpu.barrier_wait(barrier)


def _multiply(x_ref, y_ref):
    """x @ y, both in shared memory, in float32 registers."""

    def product(out_ref):
        plgpu.wgmma(out_ref, x_ref, y_ref)
        return out_ref[...]

    return pl.run_scoped(product, plgpu.ACC((x_ref.shape[0], y_ref.shape[1]), jnp.float32))


def _filled(value, shape, layout):
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def _spread(x_R, axis: int, width: int = TILE):
    """One number a row of a tile, repeated over the columns; `axis` is that of the rows."""
    return jax.lax.broadcast_in_dim(x_R, (TILE, width) if axis == 0 else (width, TILE), (axis,))


def _per_row(ref, axis: int):
    """One number a row, in the layout that `_spread` repeats over a tile."""
    return plgpu.load(ref, **ALL, layout=plgpu.Layout.WGMMA.reduce(1 - axis))


def _visible(start_R, end_R, block, axis: int):
    """Which keys of a block each row sees."""
    slot = plgpu.broadcasted_iota(jnp.int32, (TILE, TILE), 1 - axis, layout=plgpu.Layout.WGMMA) + block * TILE
    return (slot >= _spread(start_R, axis)) & (slot < _spread(end_R, axis))


def _forward(scale, interpret, q_BxGxRxK, k_BxSxGxK, v_BxSxGxV, start_BxR, end_BxR):
    B, G, R, K = q_BxGxRxK.shape
    S, V = v_BxSxGxV.shape[1], v_BxSxGxV.shape[3]
    dtype = q_BxGxRxK.dtype
    first_BxI, count_BxI, _, _ = _ranges(start_BxR, end_BxR, S)
    layout = plgpu.Layout.WGMMA

    def attend(q, k, v, start, end, firsts, counts, o, lse, *scratch):
        """One tile of rows against the blocks of keys that it sees: an online softmax, written once at the end."""
        q_smem, start_smem, end_smem, p_smem, o_smem, lse_smem, barrier = scratch
        b, g, i = _place()
        rows = pl.ds(i * TILE, TILE)
        first, count = firsts[b, i], counts[b, i]

        _fetch(barrier, (q.at[b, g, rows], start.at[b, rows], end.at[b, rows]), (q_smem, start_smem, end_smem))

        def step(block, k_smem, v_smem, carry):
            """Adds one block of keys to the running (maximum, total, sums)."""
            top, total, sums = carry
            visible = _visible(_per_row(start_smem, 0), _per_row(end_smem, 0), block, 0)
            logits = _multiply(q_smem, k_smem.transpose((1, 0))) * (scale * LOG2E)
            new_top = jnp.maximum(top, jnp.max(jnp.where(visible, logits, LOW), axis=1))
            weight = jnp.where(visible, jnp.exp2(logits - _spread(new_top, 0)), 0.0)
            fade = jnp.exp2(top - new_top)
            p_smem[...] = weight.astype(dtype)
            plgpu.commit_smem()
            total = total * fade + jnp.sum(weight, axis=1)
            sums = sums * _spread(fade, 0, V) + _multiply(p_smem, v_smem)
            cast = plgpu.layout_cast
            return cast(new_top, layout.reduce(1)), cast(total, layout.reduce(1)), cast(sums, layout)

        per_row = layout.reduce(1)
        begin = _filled(LOW, (TILE,), per_row), _filled(0, (TILE,), per_row), _filled(0, (TILE, V), layout)
        top, total, sums = _over_blocks(step, first, count, (k.at[b, :, g], v.at[b, :, g]), begin)
        positive = jnp.where(total > 0, total, 1.0)
        o_smem[...] = (sums / _spread(positive, 0, V)).astype(dtype)
        lse_smem[...] = jnp.where(total > 0, top * (1 / LOG2E) + jnp.log(positive), 0.0)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(o_smem, o.at[b, g, rows])
        plgpu.copy_smem_to_gmem(lse_smem, lse.at[b, g, rows])
        plgpu.wait_smem_to_gmem(0)

    before, after = [_matrix(K, dtype), *_vectors(jnp.int32, jnp.int32)], [_matrix(V, dtype), *_vectors(jnp.float32)]
    scratch = [*before, _matrix(TILE, dtype), *after, plgpu.Barrier(num_arrivals=3)]
    out = jax.ShapeDtypeStruct((B, G, R, V), dtype), jax.ShapeDtypeStruct((B, G, R), jnp.float32)
    kernel = _call(interpret, attend, out, (B, G, R // TILE), scratch)
    return kernel(q_BxGxRxK, k_BxSxGxK, v_BxSxGxV, start_BxR, end_BxR, first_BxI, count_BxI)


def _backward(scale, interpret, *arrays):
    *_, k_BxSxGxK, _, start_BxR, end_BxR = arrays
    first_BxI, tiles_BxI, since_BxJ, blocks_BxJ = _ranges(start_BxR, end_BxR, k_BxSxGxK.shape[1])
    dq = _gradient_of_rows(scale, interpret, *arrays, first_BxI, tiles_BxI)
    return dq, *_gradient_of_keys(scale, interpret, *arrays, since_BxJ, blocks_BxJ)


def _gradient_of_rows(scale, interpret, q_BxGxRxK, do_BxGxRxV, *others):
    B, G, R, K = q_BxGxRxK.shape
    V, dtype = do_BxGxRxV.shape[3], q_BxGxRxK.dtype

    def differentiate_rows(q, do, lse, delta, k, v, start, end, firsts, counts, dq, *scratch):
        """dq of one tile of rows, over the blocks of keys it sees."""
        q_smem, do_smem, lse_smem, delta_smem, start_smem, end_smem, ds_smem, barrier = scratch
        b, g, i = _place()
        rows = pl.ds(i * TILE, TILE)
        first, count = firsts[b, i], counts[b, i]

        sources = [x.at[b, g, rows] for x in (q, do, lse, delta)] + [x.at[b, rows] for x in (start, end)]
        _fetch(barrier, sources, (q_smem, do_smem, lse_smem, delta_smem, start_smem, end_smem))

        def accumulate(sums):
            def step(block, k_smem, v_smem, _):
                """Adds to dq what one block of keys gives."""
                visible = _visible(_per_row(start_smem, 0), _per_row(end_smem, 0), block, 0)
                logits = _multiply(q_smem, k_smem.transpose((1, 0))) * (scale * LOG2E)
                weight = jnp.where(visible, jnp.exp2(logits - _spread(_per_row(lse_smem, 0) * LOG2E, 0)), 0.0)
                dweight = _multiply(do_smem, v_smem.transpose((1, 0)))
                ds_smem[...] = (weight * (dweight - _spread(_per_row(delta_smem, 0), 0))).astype(dtype)
                plgpu.commit_smem()
                plgpu.wgmma(sums, ds_smem, k_smem)
                plgpu.wgmma_wait(0)
                return _

            _over_blocks(step, first, count, (k.at[b, :, g], v.at[b, :, g]), ())
            return sums[...]

        q_smem[...] = (pl.run_scoped(accumulate, plgpu.ACC((TILE, K), jnp.float32)) * scale).astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(q_smem, dq.at[b, g, rows])
        plgpu.wait_smem_to_gmem(0)

    numbers = _vectors(jnp.float32, jnp.float32, jnp.int32, jnp.int32)
    scratch = [_matrix(K, dtype), _matrix(V, dtype), *numbers, _matrix(TILE, dtype), plgpu.Barrier(num_arrivals=6)]
    out = jax.ShapeDtypeStruct(q_BxGxRxK.shape, dtype)
    return _call(interpret, differentiate_rows, out, (B, G, R // TILE), scratch)(q_BxGxRxK, do_BxGxRxV, *others)


def _gradient_of_keys(scale, interpret, q_BxGxRxK, do_BxGxRxV, lse_BxGxR, delta_BxGxR, k_BxSxGxK, v_BxSxGxV, *others):
    B, S, G, K = k_BxSxGxK.shape
    V, dtype = v_BxSxGxV.shape[3], k_BxSxGxK.dtype

    def differentiate_keys(q, do, lse, delta, k, v, start, end, firsts, counts, dk, dv, *scratch):
        """dk and dv of one block of keys, over the tiles of rows that see it."""
        k_smem, v_smem, p_smem, ds_smem, barrier = scratch
        b, g, j = _place()
        keys = pl.ds(j * TILE, TILE)
        first, count = firsts[b, j], counts[b, j]

        _fetch(barrier, (k.at[b, keys, g], v.at[b, keys, g]), (k_smem, v_smem))

        def accumulate(dk_sums, dv_sums):
            def step(_, q_smem, do_smem, lse_smem, delta_smem, start_smem, end_smem, carry):
                """Adds to dk and dv what one tile of rows gives."""
                # Keys down, rows across: no product then has a transposed left operand
                visible = _visible(_per_row(start_smem, 1), _per_row(end_smem, 1), j, 1)
                logits = _multiply(k_smem, q_smem.transpose((1, 0))) * (scale * LOG2E)
                weight = jnp.where(visible, jnp.exp2(logits - _spread(_per_row(lse_smem, 1) * LOG2E, 1)), 0.0)
                p_smem[...] = weight.astype(dtype)
                dweight = _multiply(v_smem, do_smem.transpose((1, 0)))
                ds_smem[...] = (weight * (dweight - _spread(_per_row(delta_smem, 1), 1))).astype(dtype)
                plgpu.commit_smem()  # also ends the reads above, before the parts are fetched anew
                plgpu.wgmma(dv_sums, p_smem, do_smem)
                plgpu.wgmma(dk_sums, ds_smem, q_smem)
                plgpu.wgmma_wait(0)
                return carry

            by_row = [x.at[b, g] for x in (q, do, lse, delta)] + [x.at[b] for x in (start, end)]
            _over_blocks(step, first, count, by_row, ())
            return dk_sums[...], dv_sums[...]

        sums = [plgpu.ACC((TILE, width), jnp.float32) for width in (K, V)]
        dk_sums, dv_sums = pl.run_scoped(accumulate, *sums)
        k_smem[...] = (dk_sums * scale).astype(dtype)
        v_smem[...] = dv_sums.astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(k_smem, dk.at[b, keys, g])
        plgpu.copy_smem_to_gmem(v_smem, dv.at[b, keys, g])
        plgpu.wait_smem_to_gmem(0)

    scratch = [*(_matrix(width, dtype) for width in (K, V, TILE, TILE)), plgpu.Barrier(num_arrivals=2)]
    out = [jax.ShapeDtypeStruct(x.shape, dtype) for x in (k_BxSxGxK, v_BxSxGxV)]
    kernel = _call(interpret, differentiate_keys, out, (B, G, S // TILE), scratch)
    return kernel(q_BxGxRxK, do_BxGxRxV, lse_BxGxR, delta_BxGxR, k_BxSxGxK, v_BxSxGxV, *others)
