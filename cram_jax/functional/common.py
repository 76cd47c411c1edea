"""Pieces that all layers use: norm, feed-forward network, rotary positions, randomness by position."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Int, Key, Scalar


def normal(key: Key, shape: tuple[int, ...], fan_in: int) -> Array:
    """Gaussian weights that keep unit variance: standard deviation fan_in**-0.5."""
    return jax.random.normal(key, shape) * fan_in**-0.5


def cast(tree, dtype: str | None):
    """The tree in that dtype; unchanged if it is None."""
    return tree if dtype is None else jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def rms_norm(
    scale: Float[Array, "*#parts D"], x: Float[Array, "... D"], epsilon: float = 1e-6
) -> Float[Array, "... D"]:
    """x divided by its root mean square, times a learned scale. Statistics are in float32 or wider."""
    x32 = wide(x)
    return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + epsilon)).astype(x.dtype) * scale


class FeedForward(NamedTuple):
    """A network with one hidden layer.

    Attributes:
      in_DxF, bias_F: from the input to the hidden units.
      out_FxD: from the hidden units to the output.
    """

    in_DxF: Float[Array, "D F"]
    bias_F: Float[Array, "F"]
    out_FxD: Float[Array, "F D"]


def init_feed_forward(key: Key, D: int, F: int, out: int | None = None) -> FeedForward:
    """A network from D features, over F hidden units, to `out` features (D by default)."""
    read, write = jax.random.split(key)
    return FeedForward(normal(read, (D, F), D), jnp.zeros(F), normal(write, (F, out or D), F))


def silent(network: FeedForward) -> FeedForward:
    """The network with an output of 0, whatever it reads, until it is trained."""
    return network._replace(out_FxD=jnp.zeros_like(network.out_FxD))


def feed_forward(params: FeedForward, x: Float[Array, "... D"]) -> Float[Array, "... O"]:
    """W_out gelu(W_in x + b)."""
    return jax.nn.gelu(x @ params.in_DxF + params.bias_F) @ params.out_FxD


def rotate(x_BxTxHxK: Float[Array, "B T H K"], position_BxT: Int[Array, "B T"]) -> Float[Array, "B T H K"]:
    """Rotary positions (RoFormer, Su et al. 2021): q.k depends on the distance only.

    With an odd K the last coordinate is not rotated.
    """
    half = x_BxTxHxK.shape[-1] // 2
    # Angles in float32 or wider: bfloat16 does not tell position 1000 from 1001.
    x32_BxTxHxK = wide(x_BxTxHxK)
    rate_K = 10000.0 ** (-jnp.arange(half, dtype=x32_BxTxHxK.dtype) / half)
    angle_BxTx1xK = (position_BxT[..., None] * rate_K)[:, :, None]
    left, right, rest = jnp.split(x32_BxTxHxK, (half, 2 * half), axis=-1)
    cos, sin = jnp.cos(angle_BxTx1xK), jnp.sin(angle_BxTx1xK)
    rotated = jnp.concatenate([left * cos - right * sin, left * sin + right * cos, rest], axis=-1)
    return rotated.astype(x_BxTxHxK.dtype)


def wide(x: Array) -> Array:
    """In float32 or wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def total(x: Array, where: Array | None = None) -> Scalar:
    """The sum in float32 or wider: in bfloat16 a count stops at 256, and in float16 sums overflow."""
    return jnp.sum(wide(x), where=where)


def uniforms(key: Key, position_T, B: int, count: int) -> Float[Array, "B T count"]:
    """Uniform numbers in (0, 1), a function of (key, position).

    So a sequence gets the same ones whether it is processed whole, in pieces or token by token.
    """
    draw = lambda t: jax.random.uniform(jax.random.fold_in(key, t), (B, count), minval=1e-6, maxval=1 - 1e-6)
    return jnp.moveaxis(jax.vmap(draw)(position_T), 0, 1)
