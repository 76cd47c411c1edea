"""Helpers of the scans over a recurrent state: checks, the choice of a backend, and cutting sequences into chunks.

Sequences may be packed: a token sees nothing of earlier segments. Inside a chunk, `part` is a number for each token:
how many segments have started in the chunk so far. 0 is the segment that continues from the chunk before. A start of a
segment is not a log decay of minus infinity, because gradients would be NaN.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from .backends import Backends, Call, device_of, platform
from .checks import check_kinds, check_shapes, check_whole
from .common import accumulator, default_scale, segment_starts
from .containment import finite, spoilt, spoilt_so_far
from .meshes import SEQUENCE, divided, parts, varying_like

# Float32 products stay float32; by default accelerators round them to fewer bits.
exact_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def check_heads(v_BxTxHxV, grouped: dict, by_head: dict) -> None:
    """Raises ValueError unless the shapes agree with the shape of the values, TypeError for numbers of a wrong kind.

    Args:
      grouped: arrays (B T G K) by name. All have one shape, and G divides H.
      by_head: (array or None, the shape that it must have) by name.
    """
    B, T, H, _ = check_shapes(v_BxTxHxV=v_BxTxHxV).values()
    shapes = {name: x.shape for name, x in grouped.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"these must have one shape, got {shapes}")
    for name, shape in shapes.items():
        if shape[:2] != (B, T) or H % shape[2]:
            raise ValueError(
                f"{name} must have shape ({B}, {T}, G, K) with G a divisor of the {H} heads of v_BxTxHxV, got {shape}"
            )
    check_kinds(jnp.floating, v_BxTxHxV=v_BxTxHxV, **grouped)
    for name, (x, shape) in by_head.items():
        check_kinds(jnp.integer if name == "segment_BxT" else jnp.floating, **{name: x})
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to go with v_BxTxHxV of {v_BxTxHxV.shape}, got {x.shape}")


def contained(scan, q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, gates: tuple, start_BxT, state):
    """Returns scan(q, k, v, gates, state): (o, state), where what is not finite spoils only what sees it.

    Args:
      scan: each token sees the earlier ones of its segment, and itself.
      gates: arrays (B T H) or (B T H V).
      start_BxT: where segments start.
      state: arrays (B H V K); () for none.
    """
    H = v_BxTxHxV.shape[2]
    if 0 in v_BxTxHxV.shape[:2]:
        return jnp.zeros_like(v_BxTxHxV), jax.tree.map(lambda x: wide(x)[0], state)
    written_BxTxH = spoilt(k_BxTxGxK, H) | spoilt(v_BxTxHxV)
    for gate in gates:
        written_BxTxH |= spoilt(gate if gate.ndim == 4 else gate[..., None])
    carried_BxH = jnp.zeros(written_BxTxH[:, 0].shape, bool)
    for x_BxHxVxK in jax.tree.leaves(state):
        carried_BxH |= jnp.any(spoilt(x_BxHxVxK), axis=-1)
    spoilt_BxTxH = spoilt_so_far(written_BxTxH, start_BxT, carried_BxH)
    o_BxTxHxV, state = scan(*jax.tree.map(finite, (q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, gates, state)))
    o_BxTxHxV = jnp.where((spoilt_BxTxH | spoilt(q_BxTxGxK, H))[..., None], jnp.nan, o_BxTxHxV)
    return o_BxTxHxV, jax.tree.map(lambda x: jnp.where(spoilt_BxTxH[:, -1, :, None, None], jnp.nan, x), state)


def run(
    backends: Backends,
    backend: str,
    q_BxTxGxK,
    *others,
    shapes: tuple,
    written: Callable,
    scale: float | None,
    chunk: int | None,
):
    """Runs a family's scan on the chosen backend; on a mesh each device runs it on its own sequences, heads and tokens.

    Args:
      others: arguments of the scan after the queries; the last one is the state.
      shapes: letters of all arguments, see `meshes.divided`.
      written: what tokens write, from all arguments but the state: (rows and keys of each array of the state, decay).
      scale: factor on the outputs; K**-0.5 by default.
      chunk: tokens in a chunk; the backend's choice by default.

    Raises:
      ValueError: if chunk is below 1, or the backend is unknown or cannot run here.
    """
    check_whole(chunk=chunk)
    T, K = q_BxTxGxK.shape[1], q_BxTxGxK.shape[3]
    call = Call(platform(), rows=T, keys=T, dtype=q_BxTxGxK.dtype, device=device_of(q_BxTxGxK))
    scan = backends[backends.resolve(backend, call)].scan
    arrays = varying_like((q_BxTxGxK, *others), q_BxTxGxK, *others)
    scan = partial(scan, scale=default_scale(scale, K), chunk=chunk)
    f = scan if parts(T) == 1 else partial(_own_tokens, scan, written)
    return divided(f, arrays, shapes, ("BTHV", shapes[-1]))


def _own_tokens(scan: Callable, written: Callable, *arrays):
    """(o of this device's tokens, state after those of all), where the tokens are divided among devices.

    A state is linear in the state before. So each device first computes what its own tokens write, and how much of
    an earlier state they leave. From these of all devices, it computes the state before its own tokens.
    """
    *tokens, state = arrays
    writes, decay_BxTxH = written(*tokens)
    left_BxTxH = jax.lax.cumprod(decay_BxTxH, axis=1, reverse=True)  # of what was there before each token
    after_BxTxH = jnp.pad(left_BxTxH[:, 1:], ((0, 0), (0, 1), (0, 0)), constant_values=1)
    H = decay_BxTxH.shape[2]
    add = lambda row, key: exact_einsum("bth,bthv,bthk->bhvk", after_BxTxH, *wide(row, to_heads(key, H)))
    own = jax.lax.all_gather(([add(*one) for one in writes], left_BxTxH[:, 0, :, None, None]), SEQUENCE)
    state, structure = jax.tree.flatten(state)
    before, state = state, wide(*state)
    for device in range(jax.lax.axis_size(SEQUENCE)):
        here = jax.lax.axis_index(SEQUENCE) == device
        before = [jnp.where(here, now, then) for now, then in zip(state, before, strict=True)]
        added, left = jax.tree.map(lambda x, device=device: x[device], own)
        state = [left * now + new for now, new in zip(state, added, strict=True)]
    o_BxTxHxV, _ = scan(*tokens, jax.tree.unflatten(structure, before))
    return o_BxTxHxV, jax.tree.unflatten(structure, state)


def empty_state(v_BxTxHxV, K: int):
    """Returns an empty state: zeros (B H V K), in float32 or wider."""
    B, _, H, V = v_BxTxHxV.shape
    return jnp.zeros((B, H, V, K), accumulator(v_BxTxHxV.dtype))


def starts_of(segment_BxT, B: int, T: int):
    """Returns marks (B T) of the tokens that start a segment. None means that all tokens are in one segment."""
    return jnp.zeros((B, T), bool) if segment_BxT is None else segment_starts(segment_BxT)


def to_heads(x_BxTxGxK, H: int):
    """Returns (B T H K): each head gets the rows of its group."""
    return jnp.repeat(x_BxTxGxK, H // x_BxTxGxK.shape[2], axis=2)


def wide(*arrays):
    """Returns the arrays in float32 or wider, as sums over a sequence need."""
    return [x.astype(accumulator(x.dtype)) for x in arrays]


def in_chunks(x_BxT, chunk: int, fill: int = 0):
    """Cuts (B T ...) into chunks: returns (chunks, B, chunk, ...).

    The last chunk is padded. Padding must write nothing and start no segment.

    Args:
      fill: value of the padding: 1 for decays, 0 for all else.
    """
    B, T = x_BxT.shape[:2]
    widths = [(0, 0), (0, -T % chunk), *[(0, 0)] * (x_BxT.ndim - 2)]
    x_BxT = jnp.pad(x_BxT, widths, constant_values=fill)
    return x_BxT.reshape(B, -1, chunk, *x_BxT.shape[2:]).swapaxes(0, 1)


def from_chunks(x_NxBxQ, T: int):
    """Returns (B T ...): the inverse of `in_chunks`."""
    N, B, Q = x_NxBxQ.shape[:3]
    return x_NxBxQ.swapaxes(0, 1).reshape(B, N * Q, *x_NxBxQ.shape[3:])[:, :T]
