"""Helpers of the TPU kernels: their interpreter, and a walk over the chunks of a scan."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .recurrent import from_chunks, in_chunks

# Races and reads out of bounds are errors; memory that was never written reads NaN.
STRICT = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", out_of_bounds_reads="raise")


def interpreter(interpret):
    """Returns the argument `interpret` of `pallas_call`: the strict interpreter for True; other values stay."""
    return STRICT if interpret is True else interpret


class Walk(NamedTuple):
    """The grid of a scan, and its order.

    Attributes:
      B, H, N: sequences, heads and chunks. The chunks of a head come in order.
      reverse: last chunk first.
      interpret: of `interpreter`.
    """

    B: int
    H: int
    N: int
    reverse: bool
    interpret: object


def walk(kernel, name: str, how: Walk, inputs, outputs, scratch=(), scalars=()):
    """Runs the kernel on every chunk. The number of an array's dimensions says which part of it a chunk gets.

    Args:
      inputs, outputs: (B G N rows lanes): the rows of the chunk, from the group of the head. (B H rows lanes): those of
        the head, the same block at every chunk; such an output stays in fast memory while its head is walked.
      scalars: which inputs lie in scalar memory.
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
        interpret=interpreter(how.interpret),
        name=name,
    )(*inputs)


def by_head(x_BxTxHxX, chunk: int, fill: int = 0):
    """Returns (B H N chunk X) from (B T H X)."""
    return in_chunks(x_BxTxHxX, chunk, fill).transpose(1, 3, 0, 2, 4)


def to_tokens(x_BxHxNxQxX, T: int):
    """Returns (B T H X): the inverse of `by_head`."""
    return from_chunks(x_BxHxNxQxX.transpose(2, 0, 3, 1, 4), T)


def across(x_BxTxH, chunk: int, fill: int = 0):
    """Returns (B H N 1 chunk) from (B T H): tokens lie along lanes."""
    return by_head(x_BxTxH[..., None], chunk, fill).swapaxes(3, 4)


def over_group(dx_BxHxNxQxK, x_BxGxNxQxK):
    """Returns the gradient of x, which the heads of a group share: the sum over these heads."""
    B, G = x_BxGxNxQxK.shape[:2]
    return jnp.sum(dx_BxHxNxQxK.reshape(B, G, -1, *x_BxGxNxQxK.shape[2:]), axis=2).astype(x_BxGxNxQxK.dtype)
