"""Attention over a plan as two nested loops with traced trip counts, for CPUs and any GPU.

The outer loop goes over blocks of kept keys that some routed row sees, the inner one over tiles of the rows that see
the block; both lists come from the plan, so the work follows what was routed and what was kept, and a new plan does
not recompile. Softmax is taken online (Milakov and Gimelshein 2018); the backward pass recomputes the weights from
the log-sum-exp, in the same loops. Everything is added up in one order: results repeat bit by bit.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .ladder import ROWS, keys_in_tile
from .plan import SkipPlan
from .reference import precision

LOW = -1e30  # stands for minus infinity, and stays finite under subtraction


class _Sizes(NamedTuple):
    rows: int
    keys: int
    scale: float


class _Work(NamedTuple):
    """The blocks of keys that are seen, in order, and the rows that see each.

    Attributes:
      count: how many blocks.
      batch_N, block_N: sequence and number of each block; meaningful for the first `count`.
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
    o, lse = _in_one_list(partial(_forward, sizes), arrays)
    return _rows_back(o, q_BxCxHxK), _rows_back(lse, q_BxCxHxK)


def backward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float, o_BxCxHxV, lse_BxCxH, do_BxCxHxV):
    """(dq, dk, dv) for the gradient do of o."""
    sizes, arrays = _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale)
    G = k_BxSxGxK.shape[2]
    by_row = [_rows_laid_out(x, G, sizes.rows) for x in (o_BxCxHxV, lse_BxCxH, do_BxCxHxV)]
    dq, dk, dv = _in_one_list(partial(_backward, sizes), (*arrays, *by_row))
    S = k_BxSxGxK.shape[1]
    return _rows_back(dq, q_BxCxHxK), dk[:, :S], dv[:, :S]


def _pad(x, size: int):
    return jnp.pad(x, [(0, 0), (0, size), *[(0, 0)] * (x.ndim - 2)])


def _rows_laid_out(x_BxCxH, G: int, rows: int):
    """(B G C Q ...), with a tile of padding: tiles start anywhere. Nobody sees the rows and keys of padding."""
    B, _, H = x_BxCxH.shape[:3]
    return _pad(x_BxCxH, rows).reshape(B, -1, G, H // G, *x_BxCxH.shape[3:]).swapaxes(1, 2)


def _rows_back(x_BxGxCxQ, q_BxCxHxK):
    B, C, H = q_BxCxHxK.shape[:3]
    return x_BxGxCxQ.swapaxes(1, 2).reshape(B, -1, H, *x_BxGxCxQ.shape[4:])[:, :C]


def _laid_out(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, scale):
    C, S, G = q_BxCxHxK.shape[1], *k_BxSxGxK.shape[1:3]
    # Fewer rows in a tile waste less where few are routed, more multiply faster.
    sizes = _Sizes(min(ROWS, C), keys_in_tile(S), float(scale))
    keys = [_pad(x, -S % sizes.keys) for x in (k_BxSxGxK, v_BxSxGxV)]
    limits = [_pad(x, sizes.rows) for x in (plan.start_BxC, plan.end_BxC)]
    return sizes, (_rows_laid_out(q_BxCxHxK, G, sizes.rows), *keys, *limits)


def _work(start_BxC, end_BxC, S: int, keys: int) -> _Work:
    """Limits grow along the rows, so the rows that see a block are neighbours."""
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


# Keys stay as they come, and a block is turned when it is used: turning all of them before took a tenth of a step's
# time where 1.6% of the rows are routed.
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


def _dot(x, y, contract: tuple[int, int]):
    """Products over one axis of each, the first axis of both being a batch, added up in float32 or better."""
    kind = jnp.promote_types(x.dtype, jnp.float32)
    axes = ((contract[0],), (contract[1],)), ((0,), (0,))
    return jax.lax.dot_general(x, y, axes, precision=precision(x.dtype), preferred_element_type=kind)


def _logits(sizes, q_GxRxQxK, k_GxSxK, visible_RxS):
    """(G RQ S) scaled logits, and what of them counts."""
    G, R, Q, K = q_GxRxQxK.shape
    logits = _dot(q_GxRxQxK.reshape(G, R * Q, K), k_GxSxK, (2, 2)) * sizes.scale
    return logits, jnp.repeat(visible_RxS, Q, axis=0)


def _forward(sizes: _Sizes, q, k, v, start_BxC, end_BxC):
    """(o, log-sum-exp), by rows; both 0 where a row sees nothing."""
    B, G, C, Q, _ = q.shape
    V = v.shape[-1]
    kind = jnp.promote_types(q.dtype, jnp.float32)
    work = _work(start_BxC, end_BxC, k.shape[1], sizes.keys)

    def over_blocks(n, carry):
        b, block = work.batch_N[n], work.block_N[n]
        k_GxSxK, v_GxSxV = (_cut_block(x, b, block, sizes.keys) for x in (k, v))

        def over_tiles(at, carry):
            """Adds the block to the softmax of one tile of rows."""
            top, total, o = carry
            visible = _visible(start_BxC, end_BxC, b, at, block, sizes)
            logits, visible = _logits(sizes, _cut(q, b, at, sizes.rows), k_GxSxK, visible)
            flat = lambda x: _cut(x, b, at, sizes.rows).reshape(G, sizes.rows * Q, -1)
            old_top = flat(top)
            new_top = jnp.maximum(old_top, jnp.max(jnp.where(visible, logits, LOW), axis=2, keepdims=True))
            weight = jnp.where(visible, jnp.exp(logits - new_top), 0)
            fade = jnp.exp(old_top - new_top)
            new_total = flat(total) * fade + jnp.sum(weight, axis=2, keepdims=True)
            new_o = flat(o) * fade + _dot(weight.astype(v.dtype), v_GxSxV, (2, 1))
            back = lambda x, new: _paste(x, new.reshape(G, sizes.rows, *x.shape[3:]), b, at)
            return back(top, new_top), back(total, new_total), back(o, new_o)

        return _over_tiles(work, sizes.rows, n, over_tiles, carry)

    begin = jnp.full((B, G, C, Q), LOW, kind), jnp.zeros((B, G, C, Q), kind), jnp.zeros((B, G, C, Q, V), kind)
    top, total, o = jax.lax.fori_loop(0, work.count, over_blocks, begin)
    some = jnp.where(total > 0, total, 1)
    return (o / some[..., None]).astype(v.dtype), jnp.where(total > 0, top + jnp.log(some), 0)


def _backward(sizes: _Sizes, q, k, v, start_BxC, end_BxC, o, lse, do):
    """(dq, dk, dv): each block of keys is finished before the next, dq is added to in between."""
    G, Q = q.shape[1], q.shape[3]
    kind = jnp.promote_types(q.dtype, jnp.float32)
    delta = jnp.sum(do.astype(kind) * o.astype(kind), axis=-1)
    work = _work(start_BxC, end_BxC, k.shape[1], sizes.keys)

    def over_blocks(n, carry):
        dq, dk, dv = carry
        b, block = work.batch_N[n], work.block_N[n]
        k_GxSxK, v_GxSxV = (_cut_block(x, b, block, sizes.keys) for x in (k, v))

        def over_tiles(at, carry):
            """One tile of rows: its share of dq, and what it adds to dk and dv of the block."""
            dq, dk_GxSxK, dv_GxSxV = carry
            visible = _visible(start_BxC, end_BxC, b, at, block, sizes)
            logits, visible = _logits(sizes, _cut(q, b, at, sizes.rows), k_GxSxK, visible)
            flat = lambda x: _cut(x, b, at, sizes.rows).reshape(G, sizes.rows * Q, -1)
            weight = jnp.where(visible, jnp.exp(logits - flat(lse)), 0)
            do_GxRQxV = flat(do)
            dlogits = weight * (_dot(do_GxRQxV, v_GxSxV, (2, 2)) - flat(delta)) * sizes.scale
            dlogits = dlogits.astype(q.dtype)
            dq_GxRQxK = flat(dq) + _dot(dlogits, k_GxSxK, (2, 1))
            dq = _paste(dq, dq_GxRQxK.reshape(G, sizes.rows, *dq.shape[3:]), b, at)
            dv_GxSxV += _dot(weight.astype(do.dtype), do_GxRQxV, (1, 1))
            return dq, dk_GxSxK + _dot(dlogits, flat(q), (1, 1)), dv_GxSxV

        blank = jnp.zeros(k_GxSxK.shape, kind), jnp.zeros(v_GxSxV.shape, kind)
        dq, dk_GxSxK, dv_GxSxV = _over_tiles(work, sizes.rows, n, over_tiles, (dq, *blank))
        put = lambda x, new: _paste_block(x, new.astype(x.dtype), b, block, sizes.keys)
        return dq, put(dk, dk_GxSxK), put(dv, dv_GxSxV)

    begin = jnp.zeros(q.shape, kind), jnp.zeros_like(k), jnp.zeros_like(v)
    dq, dk, dv = jax.lax.fori_loop(0, work.count, over_blocks, begin)
    return dq.astype(q.dtype), dk, dv


def _in_one_list(f, arrays):
    """f(*arrays) whose vmap makes more sequences of one list: batched trip counts would make all run the longest."""
    call = jax.custom_batching.custom_vmap(f)

    @call.def_vmap
    def fold(size, batched, *arrays):
        spread = [x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in zip(arrays, batched, strict=True)]
        out = _in_one_list(f, [x.reshape(-1, *x.shape[2:]) for x in spread])
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda x: True, out)

    return call(*arrays)
