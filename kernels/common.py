"""Helpers of several kernels: segments, padding, products, and a batching rule."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .checks import check_kinds, check_shapes
from .meshes import latest

LOW = -1e30  # stands for minus infinity, and stays finite under subtraction


def segment_starts(segment_BxT: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Returns True where a new segment begins, except at the first position of a sequence.

    Args:
      segment_BxT: number of the segment of each token. Another number starts another segment, also if a segment before
        had that number.

    Raises:
      ValueError, TypeError: if it has not two axes, or holds no whole numbers.
    """
    check_shapes(segment_BxT=segment_BxT)
    check_kinds(jnp.integer, segment_BxT=segment_BxT)
    return jnp.diff(segment_BxT, axis=1, prepend=segment_BxT[:, :1]) != 0


def segment_firsts(segment_BxT: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Returns the position at which each token's segment begins. It raises what `segment_starts` raises."""
    starts_BxT = segment_starts(segment_BxT)
    position_T = jnp.arange(segment_BxT.shape[1], dtype=jnp.int32)
    return latest(jnp.where(starts_BxT, position_T, 0), 0)


def default_scale(scale: float | None, K: int) -> float:
    """Returns the factor on q.k: `scale`, or K**-0.5 by default.

    Raises:
      TypeError, ValueError: if it is not a finite number.
    """
    if scale is None:
        return K**-0.5
    try:
        number = float(scale + 0.0)  # a number of Python, numpy or JAX: a text has no sum with 0
    except TypeError:
        raise TypeError(f"scale must be a number, or None for K**-0.5, got {scale!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"scale must be finite, got {scale}")
    return number


def pad_to(x: jax.Array, multiples: dict[int, int]) -> jax.Array:
    """Returns x, with zeros at the end of some axes so that their lengths become multiples of a size.

    Args:
      multiples: the size for each of these axes.
    """
    return jnp.pad(x, [(0, -length % multiples.get(axis, 1)) for axis, length in enumerate(x.shape)])


def accumulator(dtype) -> jnp.dtype:
    """Returns the dtype for sums of such numbers: float32, or a wider one if they are wider."""
    return jnp.promote_types(dtype, jnp.float32)


def precision(dtype) -> jax.lax.Precision:
    """Returns the precision for products. It keeps float32, which accelerators round to fewer bits by default."""
    return jax.lax.Precision.DEFAULT if dtype in (jnp.bfloat16, jnp.float16) else jax.lax.Precision.HIGHEST


def dot(x: jax.Array, y: jax.Array, contract: tuple[int, int], batch: tuple[int, ...] = ()) -> jax.Array:
    """Returns the product of x and y, summed over one axis of each, in float32 or wider.

    Args:
      contract: (axis of x, axis of y) to sum over.
      batch: batch axes, which are the same in x and y.
    """
    axes = ((contract[0],), (contract[1],)), (batch, batch)
    return jax.lax.dot_general(x, y, axes, precision=precision(x.dtype), preferred_element_type=accumulator(x.dtype))


def vmap_as_more_sequences(f: Callable, arrays):
    """Returns f(*arrays), where the first axis of every array and output is that of sequences.

    Under vmap the mapped axis is folded into it. JAX's own rule would batch the traced trip counts of f's loops, and
    then every sequence would take as long as the longest.
    """
    call = jax.custom_batching.custom_vmap(f)

    @call.def_vmap
    def fold(size, batched, *arrays):
        spread = [x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in zip(arrays, batched, strict=True)]
        out = vmap_as_more_sequences(f, [x.reshape(-1, *x.shape[2:]) for x in spread])
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda x: True, out)

    return call(*arrays)
