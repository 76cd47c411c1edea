"""Chunk after chunk for TPUs: the products of `xla.chunk_of_head`, with the state in fast memory from one to the next.

The grid goes over sequences, heads and chunks. The gradient keeps the state before each chunk, computes a chunk once
more and takes the derivative of the same function inside the kernel; queries and keys get theirs head by head, added up
over a group in XLA.

Verified by the interpreter and by the chips' compiler, not on a chip. By the compiler's static schedule (v5e, head
dimension 128) a chunk of 128 tokens takes 1200 instructions forward and 2679 back, and four fifths of the matrix unit.
"""

from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..recurrent import from_chunks, in_chunks, wide
from ..skip_attention.tpu import STRICT
from ..skip_attention.xla import _in_one_list
from .xla import chunk_of_head

CHUNK = 128  # tokens: what there is one of per token fills the lanes


class Walk(NamedTuple):
    """How the grid is walked.

    Attributes:
      B, H, N: sequences, heads and chunks; chunks come in order.
      reverse: last chunk first.
      interpret: as `pallas_call` has it.
    """

    B: int
    H: int
    N: int
    reverse: bool
    interpret: object


def walk(kernel, name: str, how: Walk, inputs, outputs, scratch=(), scalars=()):
    """Runs the kernel on every chunk; an array's dimensions say what of it a chunk is given.

    Args:
      inputs, outputs: (B G N rows lanes): the chunk's rows, of the group of the head. (B H rows lanes): the head's, the
        same block at every chunk, so that an output stays in fast memory while its head is walked.
      scalars: which inputs are to lie in scalar memory.
    """

    def spec(x, memory=pltpu.VMEM):
        group = lambda h: jax.lax.div(h, jnp.int32(how.H // x.shape[1]))
        chunk = lambda n: how.N - 1 - n if how.reverse else n
        if len(x.shape) == 4:
            return pl.BlockSpec((None, None, *x.shape[2:]), lambda b, h, n: (b, group(h), 0, 0), memory_space=memory)
        block = (None, None, None, *x.shape[3:])
        return pl.BlockSpec(block, lambda b, h, n: (b, group(h), chunk(n), 0, 0), memory_space=memory)

    return pl.pallas_call(
        kernel,
        out_shape=tuple(outputs),
        grid=(how.B, how.H, how.N),
        in_specs=[spec(x, pltpu.SMEM if i in scalars else pltpu.VMEM) for i, x in enumerate(inputs)],
        out_specs=tuple(map(spec, outputs)),
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=how.interpret,
        name=name,
    )(*inputs)


def by_head(x_BxTxHxX, chunk: int, fill: int = 0):
    """(B H N chunk X) of (B T H X)."""
    return in_chunks(x_BxTxHxX, chunk, fill).transpose(1, 3, 0, 2, 4)


def to_tokens(x_BxHxNxQxX, T: int):
    """Back to (B T H X)."""
    return from_chunks(x_BxHxNxQxX.transpose(2, 0, 3, 1, 4), T)


def across(x_BxTxH, chunk: int, fill: int = 0):
    """(B H N 1 chunk) of (B T H): tokens along lanes."""
    return by_head(x_BxTxH[..., None], chunk, fill).swapaxes(3, 4)


def over_group(dx_BxHxNxQxK, x_BxGxNxQxK):
    """What the heads of a group have in common gets the sum of their gradients."""
    B, G = x_BxGxNxQxK.shape[:2]
    return jnp.sum(dx_BxHxNxQxK.reshape(B, G, -1, *x_BxGxNxQxK.shape[2:]), axis=2).astype(x_BxGxNxQxK.dtype)


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
    """(o_BxHxNxQxV, end_BxHxVxK), and the states before each chunk (B H N V K) if they are to be kept."""
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
    """(dq, dk, dv, dlog_decay, dstate); those of q and k head by head, in the state's dtype."""
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
    return _in_one_list(partial(_forward, sizes, False), inputs)


def _scan_fwd(sizes, *inputs):
    o, end, before = _in_one_list(partial(_forward, sizes, True), inputs)
    return (o, end), (*inputs[:-1], before)


def _scan_bwd(sizes, kept, gradients):
    q, k = kept[:2]
    dq, dk, dv, dlog_decay, dstate = _in_one_list(partial(_backward, sizes), (*kept, *gradients))
    return over_group(dq, q), over_group(dk, k), dv, dlog_decay, None, dstate


_scan.defvjp(_scan_fwd, _scan_bwd)


def scan(
    q_BxTxGxK,
    k_BxTxGxK,
    v_BxTxHxV,
    log_decay_BxTxH,
    start_BxT,
    state_BxHxVxK,
    *,
    scale: float,
    chunk=None,
    interpret=False,
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


interpreted = SimpleNamespace(scan=partial(scan, interpret=STRICT))
