"""What the scans over a recurrent state share: checks, segments, and sequences cut into chunks.

Tokens may be packed: a segment that starts at a position sees nothing of what came before it. Inside a chunk this is a
number per token, how many segments have started in the chunk so far; 0 is the segment that goes on from before. It is
never a decay of minus infinity, whose gradients would be NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp

# Float32 products are float32, which accelerators round to fewer bits where they may.
exact_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def check_heads(v_BxTxHxV, grouped: dict, by_head: dict) -> None:
    """Raises ValueError for shapes that do not go with those of the values.

    Args:
      grouped: arrays (B T G K) by name; G divides H, and they agree.
      by_head: arrays by name, with the shape each has to have.
    """
    B, T, H, _ = v_BxTxHxV.shape
    if T < 1:
        raise ValueError(f"there must be at least one token, got v_BxTxHxV of shape {v_BxTxHxV.shape}")
    shapes = {name: x.shape for name, x in grouped.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"these must have one shape, got {shapes}")
    for name, shape in shapes.items():
        if shape[:2] != (B, T) or H % shape[2]:
            raise ValueError(
                f"{name} must have shape ({B}, {T}, G, K) with G a divisor of the {H} heads of v_BxTxHxV, got {shape}"
            )
    for name, (x, shape) in by_head.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to go with v_BxTxHxV of {v_BxTxHxV.shape}, got {x.shape}")


def starts(segment_BxT, B: int, T: int):
    """(B T): True where a new segment begins; the first token goes on from the state that is handed in."""
    if segment_BxT is None:
        return jnp.zeros((B, T), bool)
    return jnp.diff(segment_BxT, axis=1, prepend=segment_BxT[:, :1]) != 0


def to_heads(x_BxTxGxK, H: int):
    """(B T H K): each group's for all its heads."""
    return jnp.repeat(x_BxTxGxK, H // x_BxTxGxK.shape[2], axis=2)


def wide(*arrays):
    """In float32 at least: what is added up over a sequence."""
    return [x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in arrays]


def in_chunks(x_BxT, chunk: int, fill: int = 0):
    """(chunks, B, chunk, ...), filled up so that nothing happens: no write, no start, and no decay."""
    B, T = x_BxT.shape[:2]
    widths = [(0, 0), (0, -T % chunk), *[(0, 0)] * (x_BxT.ndim - 2)]
    x_BxT = jnp.pad(x_BxT, widths, constant_values=fill)
    return x_BxT.reshape(B, -1, chunk, *x_BxT.shape[2:]).swapaxes(0, 1)


def from_chunks(x_NxBxQ, T: int):
    """Back to (B T ...)."""
    N, B, Q = x_NxBxQ.shape[:3]
    return x_NxBxQ.swapaxes(0, 1).reshape(B, N * Q, *x_NxBxQ.shape[3:])[:, :T]


def check_backend(backend: str, backends: dict) -> None:
    """Raises ValueError for a name that is no backend of a scan."""
    if backend == "gpu":
        raise ValueError('there is no GPU kernel of this scan; GPUs take backend="xla", as "auto" does')
    if backend not in backends:
        raise ValueError(f"backend must be one of {('auto', *backends)}, got {backend!r}")


def on_this_platform() -> str:
    """The backend that "auto" stands for."""
    return "tpu" if jax.default_backend() == "tpu" else "xla"
