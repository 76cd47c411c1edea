"""What Mamba-2's and Palimpsa's blocks share: a short convolution, decays, and the network that tells importance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Key, Segments
from cram_jax.functional.common import normal

SPREADS = ("language", "recall")
LEAST_RATE = 1e-3  # log A runs to minus infinity near 0


def causal_conv(
    x_BxTxX: Float[Array, "B T X"], weight_WxX: Float[Array, "W X"], segment_BxT: Segments | None
) -> Float[Array, "B T X"]:
    """Depthwise: each channel's last W values of its own segment, the last weight on the newest."""
    T, W = x_BxTxX.shape[1], len(weight_WxX)
    past = jnp.pad(x_BxTxX, ((0, 0), (W - 1, 0), (0, 0)))
    out_BxTxX = x_BxTxX * weight_WxX[-1]
    for back in range(1, min(W, T)):
        tap_BxTxX = past[:, W - 1 - back : W - 1 - back + T] * weight_WxX[-1 - back]
        if segment_BxT is not None:
            before_BxT = jnp.pad(segment_BxT, ((0, 0), (back, 0)), mode="edge")[:, :T]
            tap_BxTxX = jnp.where((before_BxT == segment_BxT)[..., None], tap_BxTxX, 0)
        out_BxTxX += tap_BxTxX
    return out_BxTxX


def conv_step(
    past_BxWxX: Float[Array, "B W X"], x_BxX: Float[Array, "B X"], weight_WxX: Float[Array, "W X"]
) -> tuple[Float[Array, "B W X"], Float[Array, "B X"]]:
    """One token: (the last W values, the convolution); equals `causal_conv` at that position."""
    past_BxWxX = jnp.concatenate([past_BxWxX[:, 1:], x_BxX[:, None].astype(past_BxWxX.dtype)], axis=1)
    return past_BxWxX, jnp.sum(past_BxWxX * weight_WxX, axis=1)


class Decay(NamedTuple):
    """Attributes: the decay of a token is exp(-dt A): A = exp(log_rate_H), dt = softplus(what is read + bias_H)."""

    log_rate_H: Float[Array, "H"]
    bias_H: Float[Array, "H"]


def init_decay(key: Key, H: int, spread: str) -> Decay:
    """ "language": A up to 16 and dt from 0.001 to 0.1, drawn head by head; "recall": both ramps, slow decays only."""
    rate, dt = jax.random.split(key)
    if spread == "language":
        rate_H = jnp.maximum(jax.random.uniform(rate, (H,), maxval=16.0), LEAST_RATE)
        dt_H = jnp.exp(jax.random.uniform(dt, (H,), minval=jnp.log(1e-3), maxval=jnp.log(0.1)))
    else:
        rate_H, dt_H = jnp.linspace(0.01, 0.16, H), jnp.geomspace(0.1, 1e-3, H)
    return Decay(jnp.log(rate_H), jnp.log(jnp.expm1(dt_H)))


class Importance(NamedTuple):
    """How much a write adds to what its synapses hold to be important.

    Attributes:
      down_DxR, up_RxHxV: W1 and W2, from a token to a number per value.
      scale_H: how metaplastic a head is; below 0 counts as 0 (`importance`).
    """

    down_DxR: Float[Array, "*layers D R"]
    up_RxHxV: Float[Array, "*layers R H V"]
    scale_H: Float[Array, "*layers H"]


def init_importance(key: Key, D: int, rank: int, H: int, V: int, scale: float = 1.3133) -> Importance:
    """scale: 1.3133 is the softplus(1) of the paper's code; at 0 there is no metaplasticity yet."""
    down, up = jax.random.split(key)
    bound = rank**-0.5
    up_RxHxV = jax.random.uniform(up, (rank, H, V), minval=-bound, maxval=bound)
    return Importance(normal(down, (D, rank), D), up_RxHxV, jnp.full(H, scale))


def importance(params: Importance, x: Float[Array, "... D"]) -> Float[Array, "... H V"]:
    """scale sigmoid(W2 W1 x), at least 0, in float32 or wider: beta, before the factor that scales the write.

    The scale is cut off at 0 and keeps its gradient there: a head that starts without metaplasticity can gain it, as
    one that gave it up can come back.
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    cut_H = params.scale_H + jax.lax.stop_gradient(jnp.maximum(params.scale_H, 0) - params.scale_H)
    return jax.nn.sigmoid(jnp.einsum("...d,dr,rhv->...hv", x, params.down_DxR, params.up_RxHxV)) * cut_H[:, None]
