"""Pieces that several kernels share: segments, padding, products, and a batching rule."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

LOW = -1e30  # stands for minus infinity, and stays finite under subtraction


def segment_starts(segment_BxT: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True where a new segment begins, and False at the first position of a sequence.

    Args:
      segment_BxT: a number for each segment; equal numbers are contiguous.
    """
    return jnp.diff(segment_BxT, axis=1, prepend=segment_BxT[:, :1]) != 0


def default_scale(scale: float | None, K: int) -> float:
    """The factor on q.k: the one given, or K**-0.5."""
    return K**-0.5 if scale is None else float(scale)


def pad_to(x: jax.Array, multiples: dict[int, int]) -> jax.Array:
    """x with zeros at the end of some axes, up to a multiple of a size.

    Args:
      multiples: size by axis.
    """
    return jnp.pad(x, [(0, -length % multiples.get(axis, 1)) for axis, length in enumerate(x.shape)])


def accumulator(dtype) -> jnp.dtype:
    """The dtype in which sums of such numbers are kept: float32, or wider where they are."""
    return jnp.promote_types(dtype, jnp.float32)


def precision(dtype) -> jax.lax.Precision:
    """Precision of products of such numbers. Float32 stays float32; by default accelerators round it to fewer bits."""
    return jax.lax.Precision.DEFAULT if dtype in (jnp.bfloat16, jnp.float16) else jax.lax.Precision.HIGHEST


def dot(x: jax.Array, y: jax.Array, contract: tuple[int, int], batch: tuple[int, ...] = ()) -> jax.Array:
    """Products of x and y over one axis of each, added up in float32 or wider.

    Args:
      contract: the axis of x and the axis of y that are summed over.
      batch: axes that x and y share.
    """
    axes = ((contract[0],), (contract[1],)), (batch, batch)
    return jax.lax.dot_general(x, y, axes, precision=precision(x.dtype), preferred_element_type=accumulator(x.dtype))


def vmap_as_more_sequences(f: Callable, arrays):
    """f(*arrays), where every array and every output has sequences on its first axis.

    Under vmap the mapped axis is folded into that of the sequences. JAX's own rule would batch the traced trip counts
    of f, and then every sequence would run as long as the longest.
    """
    call = jax.custom_batching.custom_vmap(f)

    @call.def_vmap
    def fold(size, batched, *arrays):
        spread = [x if has else jnp.broadcast_to(x, (size, *x.shape)) for x, has in zip(arrays, batched, strict=True)]
        out = vmap_as_more_sequences(f, [x.reshape(-1, *x.shape[2:]) for x in spread])
        return jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), out), jax.tree.map(lambda x: True, out)

    return call(*arrays)
