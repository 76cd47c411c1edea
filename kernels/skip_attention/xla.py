"""Attention over a plan as two nested loops with traced trip counts, for CPUs and any GPU.

The outer loop runs over the blocks of kept keys that some routed row sees. The inner loop runs over the tiles of rows
that see the block. Both come from the plan: the work follows what was routed and kept, and a new plan does not
recompile. The softmax is online (Milakov and Gimelshein 2018). The backward pass runs the same loops and recomputes the
weights from the log-sum-exp. All sums have one order, so results repeat bit by bit.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..backends import Call
from ..common import LOW, accumulator, dot, pad_to, vmap_as_more_sequences
from .buckets import ROWS, keys_in_tile
from .plan import SkipPlan


def supported(call: Call) -> str | None:
    """None: XLA compiles it for every platform."""
    return None


def preferred(call: Call) -> bool:
    """Everywhere: it is the last that "auto" tries."""
    return True


class _Sizes(NamedTuple):
    rows: int
    keys: int
    scale: float


class _Work(NamedTuple):
    """The blocks of keys that are seen, in order, and the rows that see each of them.

    Attributes:
      count: number of blocks.
      batch_N, block_N: sequence and number of each block; only the first `count` entries mean something.
      first_N, last_N: rows `first <= row < last` of that sequence see something of the block.
    """

    count: jax.Array
    batch_N: jax.Array
    block_N: jax.Array
    first_N: jax.Array
    last_N: jax.Array


def forward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float):
    """(attention o_BxCxHxV, log-sum-exp_BxCxH) of compact query rows over compact keys; 0 where a row sees nothing."""
    sizes, arrays = _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale)
    o, lse = vmap_as_more_sequences(partial(_forward, sizes), arrays)
    return _rows_back(o, q_BxCxHxK), _rows_back(lse, q_BxCxHxK)


def backward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float, o_BxCxHxV, lse_BxCxH, do_BxCxHxV):
    """(dq, dk, dv) for the gradient do of o."""
    sizes, arrays = _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale)
    G = k_BxSxGxK.shape[2]
    by_row = [_rows_laid_out(x, G, sizes.rows) for x in (o_BxCxHxV, lse_BxCxH, do_BxCxHxV)]
    dq, dk, dv = vmap_as_more_sequences(partial(_backward, sizes), (*arrays, *by_row))
    S = k_BxSxGxK.shape[1]
    return _rows_back(dq, q_BxCxHxK), dk[:, :S], dv[:, :S]


def _with_spare_tile(x, rows: int):
    """x with a tile of zeros behind its rows: tiles may start at any row. No row sees the padding."""
    return jnp.pad(x, [(0, 0), (0, rows), *[(0, 0)] * (x.ndim - 2)])


def _rows_laid_out(x_BxCxH, G: int, rows: int):
    """(B G C Q ...): the Q query heads of a group beside each other, and a spare tile."""
    B, _, H = x_BxCxH.shape[:3]
    return _with_spare_tile(x_BxCxH, rows).reshape(B, -1, G, H // G, *x_BxCxH.shape[3:]).swapaxes(1, 2)


def _rows_back(x_BxGxCxQ, q_BxCxHxK):
    B, C, H = q_BxCxHxK.shape[:3]
    return x_BxGxCxQ.swapaxes(1, 2).reshape(B, -1, H, *x_BxGxCxQ.shape[4:])[:, :C]


def _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale):
    C, S, G = q_BxCxHxK.shape[1], *k_BxSxGxK.shape[1:3]
    # Fewer rows in a tile waste less if few are routed; more rows multiply faster.
    sizes = _Sizes(min(ROWS, C), keys_in_tile(S), float(scale))
    keys = [pad_to(x, {1: sizes.keys}) for x in (k_BxSxGxK, v_BxSxGxV)]
    limits = [_with_spare_tile(x, sizes.rows) for x in (plan.start_BxC, plan.end_BxC)]
    return sizes, (_rows_laid_out(q_BxCxHxK, G, sizes.rows), *keys, *limits)


def _work(start_BxC, end_BxC, S: int, keys: int) -> _Work:
    """The rows that see a block are neighbours: the limits of rows that see anything never fall from row to row."""
    sees_BxC = end_BxC > start_BxC
    edge_N = jnp.arange(0, S, keys)
    rank_C = jnp.arange(end_BxC.shape[1])
    touches_BxNxC = sees_BxC[:, None] & (end_BxC[:, None] > edge_N[:, None])
    touches_BxNxC &= start_BxC[:, None] < edge_N[:, None] + keys
    first_BxN = jnp.min(jnp.where(touches_BxNxC, rank_C, end_BxC.shape[1]), axis=2)
    last_BxN = jnp.max(jnp.where(touches_BxNxC, rank_C + 1, 0), axis=2)
    seen_N = (last_BxN > first_BxN).reshape(-1)
    order_N = jnp.argsort(~seen_N, stable=True)
    pick = lambda x: x.reshape(-1)[order_N].astype(jnp.int32)
    return _Work(
        jnp.sum(seen_N, dtype=jnp.int32),
        (order_N // len(edge_N)).astype(jnp.int32),
        (order_N % len(edge_N)).astype(jnp.int32),
        pick(first_BxN),
        pick(last_BxN),
    )


def _begin(x_BxGxCx, b, at):
    return [jnp.asarray(i, jnp.int32) for i in (b, 0, at, *[0] * (x_BxGxCx.ndim - 3))]


def _cut(x_BxGxCx, b, at, size: int):
    """(G size ...) of sequence b, from `at` on."""
    shape = (1, x_BxGxCx.shape[1], size, *x_BxGxCx.shape[3:])
    return jax.lax.dynamic_slice(x_BxGxCx, _begin(x_BxGxCx, b, at), shape)[0]


def _paste(x_BxGxCx, part, b, at):
    return jax.lax.dynamic_update_slice(x_BxGxCx, part[None], _begin(x_BxGxCx, b, at))


# A block of keys is transposed when it is used. Transposing all keys first took a tenth of a step's time with 1.6% of
# the rows routed.
def _block_begin(b, block, keys: int):
    return [jnp.asarray(i, jnp.int32) for i in (b, block * keys, 0, 0)]


def _cut_block(x_BxSxGxK, b, block, keys: int):
    """(G keys K) of sequence b."""
    shape = (1, keys, *x_BxSxGxK.shape[2:])
    return jax.lax.dynamic_slice(x_BxSxGxK, _block_begin(b, block, keys), shape)[0].swapaxes(0, 1)


def _paste_block(x_BxSxGxK, part_GxSxK, b, block, keys: int):
    return jax.lax.dynamic_update_slice(x_BxSxGxK, part_GxSxK.swapaxes(0, 1)[None], _block_begin(b, block, keys))


def _over_tiles(work: _Work, rows: int, n, body, carry):
    """body(first row of the tile, carry) for each tile of rows that see block n."""
    tiles = -(-(work.last_N[n] - work.first_N[n]) // rows)
    return jax.lax.fori_loop(0, tiles, lambda i, carry: body(work.first_N[n] + i * rows, carry), carry)


def _visible(start_BxC, end_BxC, b, at, block, sizes: _Sizes):
    """(rows keys): which of the block's keys each row of the tile sees."""
    cut = lambda x_BxC: _cut(x_BxC[:, None], b, at, sizes.rows)[0, :, None]
    slot_S = block * sizes.keys + jnp.arange(sizes.keys)
    return (slot_S >= cut(start_BxC)) & (slot_S < cut(end_BxC))


def _block(sizes: _Sizes, work: _Work, n, k, v):
    """(sequence, number of the block, its keys_GxSxK, its values_GxSxV) of the n-th block."""
    b, block = work.batch_N[n], work.block_N[n]
    return b, block, *(_cut_block(x, b, block, sizes.keys) for x in (k, v))


def _tile(sizes: _Sizes, q, k_GxSxK, limits, b, at, block):
    """(logits, which of them are visible, stacked) of the rows from `at` on: rows RQ, as all heads of a group count.

    stacked(x) is the tile of an array that is laid out like the rows: (G RQ ...).
    """
    G, Q = q.shape[1], q.shape[3]
    stacked = lambda x: _cut(x, b, at, sizes.rows).reshape(G, sizes.rows * Q, -1)
    visible_RxS = _visible(*limits, b, at, block, sizes)
    logits_GxRQxS = dot(stacked(q), k_GxSxK, (2, 2), batch=(0,)) * sizes.scale
    return logits_GxRQxS, jnp.repeat(visible_RxS, Q, axis=0), stacked


def _forward(sizes: _Sizes, q, k, v, *limits):
    """(o, log-sum-exp), by rows; both 0 where a row sees nothing."""
    B, G, C, Q, _ = q.shape
    V, wide = v.shape[-1], accumulator(q.dtype)
    work = _work(*limits, k.shape[1], sizes.keys)

    def over_blocks(n, carry):
        b, block, k_GxSxK, v_GxSxV = _block(sizes, work, n, k, v)

        def over_tiles(at, carry):
            """Adds the block to the softmax of one tile of rows."""
            top, total, o = carry
            logits, visible, stacked = _tile(sizes, q, k_GxSxK, limits, b, at, block)
            old_top = stacked(top)
            new_top = jnp.maximum(old_top, jnp.max(jnp.where(visible, logits, LOW), axis=2, keepdims=True))
            weight = jnp.where(visible, jnp.exp(logits - new_top), 0)
            fade = jnp.exp(old_top - new_top)
            new_total = stacked(total) * fade + jnp.sum(weight, axis=2, keepdims=True)
            new_o = stacked(o) * fade + dot(weight.astype(v.dtype), v_GxSxV, (2, 1), batch=(0,))
            back = lambda x, new: _paste(x, new.reshape(G, sizes.rows, *x.shape[3:]), b, at)
            return back(top, new_top), back(total, new_total), back(o, new_o)

        return _over_tiles(work, sizes.rows, n, over_tiles, carry)

    begin = jnp.full((B, G, C, Q), LOW, wide), jnp.zeros((B, G, C, Q), wide), jnp.zeros((B, G, C, Q, V), wide)
    top, total, o = jax.lax.fori_loop(0, work.count, over_blocks, begin)
    positive = jnp.where(total > 0, total, 1)
    return (o / positive[..., None]).astype(v.dtype), jnp.where(total > 0, top + jnp.log(positive), 0)


def _backward(sizes: _Sizes, q, k, v, start_BxC, end_BxC, o, lse, do):
    """(dq, dk, dv). One block of keys after the other: its dk and dv are finished, and its share is added to dq."""
    wide, limits = accumulator(q.dtype), (start_BxC, end_BxC)
    delta = jnp.sum(do.astype(wide) * o.astype(wide), axis=-1)
    work = _work(*limits, k.shape[1], sizes.keys)

    def over_blocks(n, carry):
        dq, dk, dv = carry
        b, block, k_GxSxK, v_GxSxV = _block(sizes, work, n, k, v)

        def over_tiles(at, carry):
            """One tile of rows: its share of dq, and what it adds to dk and dv of the block."""
            dq, dk_GxSxK, dv_GxSxV = carry
            logits, visible, stacked = _tile(sizes, q, k_GxSxK, limits, b, at, block)
            weight = jnp.where(visible, jnp.exp(logits - stacked(lse)), 0)
            do_GxRQxV = stacked(do)
            dlogits = weight * (dot(do_GxRQxV, v_GxSxV, (2, 2), batch=(0,)) - stacked(delta)) * sizes.scale
            dlogits = dlogits.astype(q.dtype)
            dq_GxRQxK = stacked(dq) + dot(dlogits, k_GxSxK, (2, 1), batch=(0,))
            dq = _paste(dq, dq_GxRQxK.reshape(-1, sizes.rows, *dq.shape[3:]), b, at)
            dv_GxSxV += dot(weight.astype(do.dtype), do_GxRQxV, (1, 1), batch=(0,))
            return dq, dk_GxSxK + dot(dlogits, stacked(q), (1, 1), batch=(0,)), dv_GxSxV

        blank = jnp.zeros(k_GxSxK.shape, wide), jnp.zeros(v_GxSxV.shape, wide)
        dq, dk_GxSxK, dv_GxSxV = _over_tiles(work, sizes.rows, n, over_tiles, (dq, *blank))
        put = lambda x, new: _paste_block(x, new.astype(x.dtype), b, block, sizes.keys)
        return dq, put(dk, dk_GxSxK), put(dv, dv_GxSxV)

    begin = jnp.zeros(q.shape, wide), jnp.zeros_like(k), jnp.zeros_like(v)
    dq, dk, dv = jax.lax.fori_loop(0, work.count, over_blocks, begin)
    return dq.astype(q.dtype), dk, dv
