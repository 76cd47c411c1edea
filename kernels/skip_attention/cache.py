"""Attention of a streamed token over its cache of keys and values.

A cache has one axis N = B G for sequences and key-value heads; the heads of a sequence are neighbours. So a read goes
through memory in order, and reads and updates use the same shape. If the two shapes differed, even by an axis of length
1, XLA would copy the cache.
"""

from functools import partial

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..checks import check_kinds, check_shapes
from ..common import accumulator, default_scale, precision
from ..meshes import automatic


def write_cache(cache_NxSxX: Float[Array, "N S X"], new_BxGxX: Float[Array, "B G X"], place_B: Int[Array, "B"]):
    """Returns the cache with one token's rows written at each sequence's place. Places beyond the end write nothing.

    Raises:
      ValueError, TypeError: if shapes do not fit each other, or numbers are of a wrong kind.
    """
    check_kinds(jnp.floating, cache_NxSxX=cache_NxSxX, new_BxGxX=new_BxGxX)
    check_kinds(jnp.integer, place_B=place_B)
    sizes = check_shapes(cache_NxSxX=cache_NxSxX, new_BxGxX=new_BxGxX, place_B=place_B)
    N, G = cache_NxSxX.shape[0], new_BxGxX.shape[1]
    if N != sizes["B"] * G:
        raise ValueError(
            f"cache_NxSxX must have N = B G = {sizes['B']} x {G} rows to go with new_BxGxX {new_BxGxX.shape}, got {N}"
        )

    def write(cache_NxSxX, new_BxGxX, place_B):
        rows_NxX = new_BxGxX.reshape(N, new_BxGxX.shape[2]).astype(cache_NxSxX.dtype)
        return cache_NxSxX.at[jnp.arange(N), jnp.repeat(place_B, G)].set(rows_NxX, mode="drop")

    return automatic(write, cache_NxSxX, new_BxGxX, place_B)


def read_cache(
    q_BxHxK: Float[Array, "B H K"],
    k_NxSxK: Float[Array, "N S K"],
    v_NxSxV: Float[Array, "N S V"],
    end_B: Int[Array, "B"],
    *,
    scale: float | None = None,
) -> Float[Array, "B H V"]:
    """Returns the attention of one query for each sequence over the first `end_B` slots of its cache; 0 for no slots.

    Args:
      k_NxSxK, v_NxSxV: finite beyond `end_B`, too, as `write_cache` leaves a cache that began with zeros.
      scale: factor on q.k; K**-0.5 by default.

    Raises:
      ValueError, TypeError: if shapes do not fit each other, or numbers are of a wrong kind.
    """
    check_kinds(jnp.floating, q_BxHxK=q_BxHxK, k_NxSxK=k_NxSxK, v_NxSxV=v_NxSxV)
    check_kinds(jnp.integer, end_B=end_B)
    check_shapes(q_BxHxK=q_BxHxK, k_NxSxK=k_NxSxK, v_NxSxV=v_NxSxV, end_B=end_B)
    B, H, K = q_BxHxK.shape
    N, S, V = v_NxSxV.shape
    if not B and not N:
        return jnp.zeros((0, H, V), v_NxSxV.dtype)
    if not (B and N) or N % B or (H * B) % N:
        raise ValueError(
            f"k_NxSxK and v_NxSxV must have N = B G rows with G a divisor of the {H} heads of q_BxHxK, got N={N} for "
            f"B={B}"
        )
    return automatic(partial(_read, default_scale(scale, K)), q_BxHxK, k_NxSxK, v_NxSxV, end_B)


def _read(scale: float, q_BxHxK, k_NxSxK, v_NxSxV, end_B):
    (B, H, K), (N, S, V) = q_BxHxK.shape, v_NxSxV.shape
    wide = accumulator(q_BxHxK.dtype)
    dot = lambda spec, x, y: jnp.einsum(spec, x, y, precision=precision(y.dtype), preferred_element_type=wide)
    q_NxQxK = q_BxHxK.reshape(N, H * B // N, K).astype(k_NxSxK.dtype)  # query heads of a group are neighbours
    logits_NxQxS = dot("nqk,nsk->nqs", q_NxQxK, k_NxSxK) * scale
    visible_NxS = jnp.arange(S) < jnp.repeat(end_B, N // B)[:, None]
    logits_NxQxS = jnp.where(visible_NxS[:, None], logits_NxQxS, -jnp.inf)
    top_NxQx1 = jnp.max(logits_NxQxS, axis=-1, keepdims=True)
    weight_NxQxS = jnp.exp(logits_NxQxS - jnp.where(jnp.isfinite(top_NxQx1), top_NxQx1, 0))
    total_NxQx1 = jnp.sum(weight_NxQxS, axis=-1, keepdims=True)
    o_NxQxV = dot("nqs,nsv->nqv", weight_NxQxS.astype(v_NxSxV.dtype), v_NxSxV)
    o_NxQxV /= jnp.where(total_NxQx1 > 0, total_NxQx1, 1)
    return o_NxQxV.reshape(B, H, V).astype(v_NxSxV.dtype)
