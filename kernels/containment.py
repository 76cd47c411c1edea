"""Numbers that are not finite spoil what sees them, and nothing else.

A mask inside a product multiplies by 0, and 0 x NaN is NaN: one such number would reach all rows of its tile or chunk,
also rows of another segment or before it. So these numbers are set to 0 before a product, and the results that see one
are set to NaN after it.
"""

import jax
import jax.numpy as jnp

from .meshes import constrained, latest


def finite(x: jax.Array) -> jax.Array:
    """Returns x with 0 in place of numbers that are not finite."""
    return jnp.where(jnp.isfinite(x), x, 0)


def spoilt(x: jax.Array, heads: int | None = None) -> jax.Array:
    """Returns True where a row of x, its last axis, holds a number that is not finite.

    Args:
      heads: the rows (... G) are those of groups, and the result is that of the heads (... H).
    """
    marks = ~jnp.all(jnp.isfinite(x), axis=-1)
    return marks if heads is None else jnp.repeat(marks, heads // marks.shape[-1], axis=-1)


def spoilt_rows(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan) -> jax.Array:
    """Returns marks (B C H) of the rows of a plan that see something, and something that is not finite."""
    H = q_BxCxHxK.shape[2]
    spoilt_BxSxG = constrained(spoilt(k_BxSxGxK) | spoilt(v_BxSxGxV), "BSG")  # each device has all marks of keys
    count_BxSxG = jnp.cumsum(spoilt_BxSxG, axis=1, dtype=jnp.int32)
    count_BxSxG = jnp.pad(count_BxSxG, ((0, 0), (1, 0), (0, 0)))  # of the slots before each slot
    before = lambda slot_BxC: jnp.take_along_axis(count_BxSxG, slot_BxC[..., None], axis=1)
    sees_BxCxG = before(plan.end_BxC) > before(plan.start_BxC)
    sees_BxCxH = jnp.repeat(sees_BxCxG, H // sees_BxCxG.shape[2], axis=2) | spoilt(q_BxCxHxK)
    return sees_BxCxH & (plan.end_BxC > plan.start_BxC)[..., None]


def spoilt_so_far(spoilt_BxTxH, start_BxT, before_BxH) -> jax.Array:
    """Returns marks (B T H) of the tokens that, or an earlier token of whose segment, are marked.

    Args:
      start_BxT: where segments start.
      before_BxH: whether the state before the first token is spoilt. It belongs to the first token's segment.
    """
    T = start_BxT.shape[1]
    first_BxT = latest(jnp.where(start_BxT, jnp.arange(T), -1), -1)
    latest_BxTxH = latest(jnp.where(spoilt_BxTxH, jnp.arange(T)[:, None], -2), -2)
    latest_BxTxH = jnp.maximum(latest_BxTxH, jnp.where(before_BxH, -1, -2)[:, None])
    return latest_BxTxH >= first_BxT[..., None]
