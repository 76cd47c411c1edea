"""Pieces every layer uses: norm, feed-forward, rotary positions, per-position randomness, checks of inputs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Float, Gaps, Int, Key, Segments, Tokens


def normal(key: Key, shape: tuple[int, ...], fan_in: int) -> Array:
    """Gaussian weights that keep unit variance: standard deviation fan_in**-0.5."""
    return jax.random.normal(key, shape) * fan_in**-0.5


def at_least_one(cfg, *names: str) -> None:
    """Raises ValueError for a configuration in which one of these fields is below 1, naming it."""
    for name in names:
        if getattr(cfg, name) < 1:
            raise ValueError(f"{type(cfg).__name__}.{name} must be at least 1, got {getattr(cfg, name)}")


COMPUTE = ("float32", "bfloat16")


def check_compute(dtype: str | None) -> None:
    """Raises ValueError where a configuration's `compute_dtype` is none."""
    if dtype is not None and dtype not in COMPUTE:
        raise ValueError(f"compute_dtype must be one of {COMPUTE}, or None for that of the tokens, got {dtype!r}")


def cast(tree, dtype: str | None):
    """The tree in a layer's compute dtype; as it is where that is None."""
    return tree if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def rms_norm(
    scale: Float[Array, "*#parts D"], x: Float[Array, "... D"], epsilon: float = 1e-6
) -> Float[Array, "... D"]:
    """x over its root mean square, times a learned scale; statistics at float32 or better."""
    x32 = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + epsilon)).astype(x.dtype) * scale


class FeedForward(NamedTuple):
    """Attributes:
    in_DxF, bias_F: reads the token.
    out_FxD: writes; starts small.
    """

    in_DxF: Float[Array, "D F"]
    bias_F: Float[Array, "F"]
    out_FxD: Float[Array, "F D"]


def init_feed_forward(key: Key, D: int, F: int, out: int | None = None) -> FeedForward:
    """A one-hidden-layer network from D to `out` (D by default) features."""
    read, write = jax.random.split(key)
    return FeedForward(normal(read, (D, F), D), jnp.zeros(F), normal(write, (F, out or D), F))


def feed_forward(params: FeedForward, x: Float[Array, "... D"]) -> Float[Array, "... O"]:
    """W_out gelu(W_in x + b)."""
    return jax.nn.gelu(x @ params.in_DxF + params.bias_F) @ params.out_FxD


def rotate(x_BxTxHxK: Float[Array, "B T H K"], position_BxT: Int[Array, "B T"]) -> Float[Array, "B T H K"]:
    """Rotary positions (RoFormer, Su et al. 2021): q.k depends on the distance only. An odd last coordinate stays."""
    half = x_BxTxHxK.shape[-1] // 2
    # In float32 at least, and rounded at the end: 8 bits do not tell position 1000 from 1001.
    wide = jnp.promote_types(x_BxTxHxK.dtype, jnp.float32)
    rate_K = 10000.0 ** (-jnp.arange(half, dtype=wide) / half)
    angle_BxTx1xK = (position_BxT[..., None] * rate_K)[:, :, None]
    left, right, rest = jnp.split(x_BxTxHxK.astype(wide), (half, 2 * half), axis=-1)
    cos, sin = jnp.cos(angle_BxTx1xK), jnp.sin(angle_BxTx1xK)
    turned = jnp.concatenate([left * cos - right * sin, left * sin + right * cos, rest], axis=-1)
    return turned.astype(x_BxTxHxK.dtype)


def uniforms(key: Key, position_T, B: int, count: int) -> Float[Array, "B T count"]:
    """Random numbers in (0, 1), a function of (key, position): the same whole, in pieces or token by token."""
    draw = lambda t: jax.random.uniform(jax.random.fold_in(key, t), (B, count), minval=1e-6, maxval=1 - 1e-6)
    return jnp.moveaxis(jax.vmap(draw)(position_T), 0, 1)


def segment_starts(segment_BxT: Segments) -> Bool[Array, "B T"]:
    """True where a new segment begins, the first position excepted."""
    return jnp.diff(segment_BxT, axis=1, prepend=segment_BxT[:, :1]) != 0


def check_inputs(x_BxTxD: Tokens, D: int, gap_BxT: Gaps | None, segment_BxT: Segments | None) -> None:
    """Raises ValueError or TypeError for inputs a layer of width D cannot take.

    Gaps must be finite and not negative; their values are looked at outside transformations only, where there are some.
    """
    if x_BxTxD.ndim != 3 or x_BxTxD.shape[-1] != D:
        raise ValueError(f"x_BxTxD must have shape (batch, time, {D}) for a layer of width D={D}, got {x_BxTxD.shape}")
    if not jnp.issubdtype(x_BxTxD.dtype, jnp.floating):
        raise TypeError(f"x_BxTxD must be floating point, got {x_BxTxD.dtype}; embed token ids first")
    for name, array in (("gap_BxT", gap_BxT), ("segment_BxT", segment_BxT)):
        if array is not None and array.shape != x_BxTxD.shape[:2]:
            raise ValueError(f"{name} has shape {array.shape}, but x_BxTxD has batch and time {x_BxTxD.shape[:2]}")
    if gap_BxT is not None and not isinstance(gap_BxT, jax.core.Tracer):
        wrong = np.argwhere(~(np.isfinite(gap_BxT) & (np.asarray(gap_BxT) >= 0)))
        if len(wrong):
            b, t = wrong[0]
            place = f"sequence {b}, position {t}"
            raise ValueError(f"gap_BxT must be finite and at least 0, got {gap_BxT[b, t]} at {place}")
