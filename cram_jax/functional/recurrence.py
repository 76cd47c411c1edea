"""What Mamba-2's and Palimpsa's layers share: a short convolution, decays, and the network for importance."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax import kernels
from cram_jax.dims import Array, Float, Key, Segments
from cram_jax.functional.common import normal, wide
from cram_jax.kernels.meshes import constrained

SPREADS = ("language", "recall")
LEAST_RATE = 1e-3  # near 0, log A runs to minus infinity


def by_head(f: Callable, shapes: tuple, *weights):
    """f of the columns of weights that each part of a projection has, where devices have their own heads.

    To split the tokens after a product with all columns would send them from device to device.

    Args:
      f: from the columns of each of the weights (... X) to (... X).
      shapes: (heads, numbers of a head) of each part; a part with other heads than the first is whole on all devices.
    """
    edges = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def own(weight, shape):
        weight = constrained(weight, "." * weight.ndim)  # split while it is whole
        by_head = weight.reshape(*weight.shape[:-1], *shape)
        letter = "H" if shape[0] == shapes[0][0] else "."
        return constrained(by_head, "." * (weight.ndim - 1) + letter + ".").reshape(weight.shape)

    split = [jnp.split(weight, edges, axis=-1) for weight in weights]
    return [f(*(own(one, shape) for one in part)) for shape, *part in zip(shapes, *split, strict=True)]


def causal_conv(
    x_BxTxX: Float[Array, "B T X"], weight_WxX: Float[Array, "W X"], segment_BxT: Segments | None
) -> Float[Array, "B T X"]:
    """Depthwise convolution over a channel's last W values in the same segment; the last weight is the newest's."""
    T, W = x_BxTxX.shape[1], len(weight_WxX)
    past = jnp.pad(x_BxTxX, ((0, 0), (W - 1, 0), (0, 0)))
    out_BxTxX = x_BxTxX * weight_WxX[-1]
    since_BxT = None if segment_BxT is None else jnp.arange(T) - kernels.segment_firsts(segment_BxT)
    for back in range(1, min(W, T)):
        tap_BxTxX = past[:, W - 1 - back : W - 1 - back + T] * weight_WxX[-1 - back]
        if since_BxT is not None:
            tap_BxTxX = jnp.where((since_BxT >= back)[..., None], tap_BxTxX, 0)
        out_BxTxX += tap_BxTxX
    return out_BxTxX


def conv_step(
    past_BxWxX: Float[Array, "B W X"], x_BxX: Float[Array, "B X"], weight_WxX: Float[Array, "W X"]
) -> tuple[Float[Array, "B W X"], Float[Array, "B X"]]:
    """One token: (the last W values, the convolution); equals `causal_conv` at that position."""
    past_BxWxX = jnp.concatenate([past_BxWxX[:, 1:], x_BxX[:, None].astype(past_BxWxX.dtype)], axis=1)
    return past_BxWxX, jnp.sum(past_BxWxX * weight_WxX, axis=1)


def init_scan_state(
    shape: tuple[int, int, int, int], metaplastic: bool
) -> Float[Array, "B H V K"] | kernels.PalimpsaState:
    """A scan's state (B H V K) before the first token; with metaplasticity there is an importance for each number."""
    blank = lambda: jnp.zeros(shape)
    return kernels.PalimpsaState(blank(), blank()) if metaplastic else blank()


def unit(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """x divided by its length. Zero stays zero, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


class Decay(NamedTuple):
    """A token's decay is exp(-dt A), with A = exp(log_rate_H) and dt = softplus(projection of the token + bias_H)."""

    log_rate_H: Float[Array, "H"]
    bias_H: Float[Array, "H"]


def init_decay(key: Key, H: int, spread: str) -> Decay:
    """Initial decays.

    Args:
      spread: "language": A up to 16 and dt from 0.001 to 0.1, random for each head. "recall": ramps over the heads, A
        from 0.01 to 0.16 and dt from 0.1 to 0.001, so that all decays are slow.
    """
    rate, dt = jax.random.split(key)
    if spread == "language":
        rate_H = jnp.maximum(jax.random.uniform(rate, (H,), maxval=16.0), LEAST_RATE)
        dt_H = jnp.exp(jax.random.uniform(dt, (H,), minval=jnp.log(1e-3), maxval=jnp.log(0.1)))
    else:
        rate_H, dt_H = jnp.linspace(0.01, 0.16, H), jnp.geomspace(0.1, 1e-3, H)
    return Decay(jnp.log(rate_H), jnp.log(jnp.expm1(dt_H)))


class Importance(NamedTuple):
    """How much a write adds to the importance of its synapses.

    Attributes:
      down_DxR, up_RxHxV: W1 and W2, from a token to a number per value.
      scale_H: how metaplastic a head is; a value below 0 counts as 0 (`importance`).
    """

    down_DxR: Float[Array, "*layers D R"]
    up_RxHxV: Float[Array, "*layers R H V"]
    scale_H: Float[Array, "*layers H"]


def init_importance(key: Key, D: int, rank: int, H: int, V: int, scale: float = 1.3133) -> Importance:
    """scale: the paper's code starts at softplus(1) = 1.3133. At 0 there is no metaplasticity yet."""
    down, up = jax.random.split(key)
    bound = rank**-0.5
    up_RxHxV = jax.random.uniform(up, (rank, H, V), minval=-bound, maxval=bound)
    return Importance(normal(down, (D, rank), D), up_RxHxV, jnp.full(H, scale))


def importance(params: Importance, x: Float[Array, "... D"]) -> Float[Array, "... H V"]:
    """scale sigmoid(W2 W1 x), at least 0, in float32 or wider: beta without the factor that scales the write.

    The scale is cut off at 0 but keeps its gradient there, so that a head without metaplasticity can gain it (back).
    """
    x = wide(x)
    cut_H = params.scale_H + jax.lax.stop_gradient(jnp.maximum(params.scale_H, 0) - params.scale_H)
    return jax.nn.sigmoid(jnp.einsum("...d,dr,rhv->...hv", x, params.down_DxR, params.up_RxHxV)) * cut_H[:, None]
