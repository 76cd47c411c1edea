"""The SSD scan for TPUs, chunk after chunk: the products of `xla.chunk_of_head`, with the state kept in fast memory.

The grid runs over sequences, heads and chunks. The backward pass keeps the state before each chunk, recomputes a chunk,
and differentiates `chunk_of_head` inside the kernel. Queries and keys get a gradient for each head; XLA adds those of a
group.

Verified by the interpreter and by the chips' compiler, not on a chip. By the compiler's static schedule (v5e, head
dimension 128) a chunk of 128 tokens takes 1200 instructions forward and 2679 back, with four fifths of the matrix unit.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from ..backends import Call
from ..common import vmap_as_more_sequences
from ..recurrent import in_chunks, wide
from ..tpu_common import Walk, across, by_head, over_group, to_tokens, walk
from .xla import chunk_of_head

CHUNK = 128  # tokens: numbers per token then fill the lanes


def supported(call: Call, interpret=False) -> str | None:
    """None: it compiles for every TPU, also on a machine that has none."""
    return None


def preferred(call: Call) -> bool:
    """Always: the interpreter and the chips' compiler verified it."""
    return True


def _forward_kernel(scale, q_QxK, k_QxK, v_QxV, log_decay_1xQ, part_1xQ, state_VxK, o_QxV, end_VxK, *before_VxK):
    @pl.when(pl.program_id(2) == 0)
    def _():
        end_VxK[...] = state_VxK[...]

    for x in before_VxK:
        x[...] = end_VxK[...]
    q, k, v, log_decay = wide(q_QxK[...], k_QxK[...], v_QxV[...], log_decay_1xQ[...])
    end_VxK[...], o = chunk_of_head(end_VxK[...], q * scale, k, v, log_decay, part_1xQ[...])
    o_QxV[...] = o.astype(o_QxV.dtype)


def _backward_kernel(
    scale, q_QxK, k_QxK, v_QxV, log_decay_1xQ, part_1xQ, before_VxK, do_QxV, dend_VxK, dq, dk, dv, dlog_decay, dstate
):
    @pl.when(pl.program_id(2) == 0)  # the last chunk
    def _():
        dstate[...] = dend_VxK[...]

    part = part_1xQ[...]
    chunk = lambda state, q, k, v, log_decay: chunk_of_head(state, q * scale, k, v, log_decay, part)
    inputs = wide(before_VxK[...], q_QxK[...], k_QxK[...], v_QxV[...], log_decay_1xQ[...])
    _, back = jax.vjp(chunk, *inputs)
    gradients = back((dstate[...], *wide(do_QxV[...])))
    for dx, gradient in zip((dstate, dq, dk, dv, dlog_decay), gradients, strict=True):
        dx[...] = gradient.astype(dx.dtype)


class _Sizes(NamedTuple):
    scale: float
    interpret: object


def _forward(sizes: _Sizes, keep: bool, q, k, v, log_decay, part, state):
    """(o_BxHxNxQxV, end_BxHxVxK), and with `keep` the states before each chunk (B H N V K)."""
    B, H, N, _, V = v.shape
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    before = [jax.ShapeDtypeStruct((B, H, N, *state.shape[2:]), state.dtype)] if keep else []
    return walk(
        partial(_forward_kernel, sizes.scale),
        "ssd_forward",
        Walk(B, H, N, False, sizes.interpret),
        (q, k, v, log_decay, part, state),
        (like(v), like(state), *before),
    )


def _backward(sizes: _Sizes, q, k, v, log_decay, part, before, do, dend):
    """(dq, dk, dv, dlog_decay, dstate); dq and dk for each head, in the state's dtype."""
    B, H, N = v.shape[:3]
    by_head = lambda x, dtype: jax.ShapeDtypeStruct((B, H, *x.shape[2:]), dtype)
    outputs = (
        *(by_head(x, dend.dtype) for x in (q, k)),
        *(by_head(x, x.dtype) for x in (v, log_decay, dend)),
    )
    return walk(
        partial(_backward_kernel, sizes.scale),
        "ssd_backward",
        Walk(B, H, N, True, sizes.interpret),
        (q, k, v, log_decay, part, before, do, dend),
        outputs,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(sizes, *inputs):
    return vmap_as_more_sequences(partial(_forward, sizes, False), inputs)


def _scan_fwd(sizes, *inputs):
    o, end, before = vmap_as_more_sequences(partial(_forward, sizes, True), inputs)
    return (o, end), (*inputs[:-1], before)


def _scan_bwd(sizes, kept, gradients):
    q, k = kept[:2]
    dq, dk, dv, dlog_decay, dstate = vmap_as_more_sequences(partial(_backward, sizes), (*kept, *gradients))
    return over_group(dq, q), over_group(dk, k), dv, dlog_decay, None, dstate


_scan.defvjp(_scan_fwd, _scan_bwd)


def scan(
    q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, log_decay_BxTxH, start_BxT, state_BxHxVxK, *, scale, chunk=None, interpret=False
):
    """As `reference.scan`, in chunks."""
    T = v_BxTxHxV.shape[1]
    Q = min(chunk or CHUNK, T)
    (log_decay, state) = wide(log_decay_BxTxH, state_BxHxVxK)
    part_BxNxQ = jnp.cumsum(in_chunks(start_BxT, Q), axis=2, dtype=jnp.int32).swapaxes(0, 1)
    o, end = _scan(
        _Sizes(scale, interpret),
        *(by_head(x, Q) for x in (q_BxTxGxK, k_BxTxGxK, v_BxTxHxV)),
        across(log_decay, Q),
        part_BxNxQ[:, None, :, None],
        state,
    )
    return to_tokens(o, T), end
