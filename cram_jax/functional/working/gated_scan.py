"""A gated linear recurrence whose decay follows the time gap: h <- a h + b, with W numbers for a state."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional.common import normal
from cram_jax.functional.working import WorkingConfig
from cram_jax.kernels.containment import finite, spoilt_so_far
from cram_jax.kernels.meshes import before, constrained, in_parts, parts


class ScanParams(NamedTuple):
    """Attributes:
    decay_DxW, decay_bias_W: the token's rate of forgetting per unit of log time.
    input_DxW: what is stored. gate_DxW: what of it is shown. out_WxD: writes.
    """

    decay_DxW: Float[Array, "D W"]
    decay_bias_W: Float[Array, "W"]
    input_DxW: Float[Array, "D W"]
    gate_DxW: Float[Array, "D W"]
    out_WxD: Float[Array, "W D"]


def init(key: Key, D: int, cfg: WorkingConfig) -> ScanParams:
    """Unit-variance reads; forgets over about 1 to 1000 events."""
    W = cfg.width
    a, b, c, d = jax.random.split(key, 4)
    rate_W = jnp.logspace(0, -3, W)
    bias_W = jnp.log(jnp.expm1(rate_W))  # softplus^-1
    return ScanParams(
        0.1 * normal(a, (D, W), D), bias_W, normal(b, (D, W), D), normal(c, (D, W), D), normal(d, (W, D), W)
    )


def numbers(cfg: WorkingConfig) -> int:
    """h itself."""
    return cfg.width


def _inputs(params: ScanParams, x: Float[Array, "... D"], gap: Float[Array, "..."]):
    """Decay a = exp(-rate log(1 + gap)), and stored input b, scaled to what the decay leaves room for."""
    rate = jax.nn.softplus(x @ params.decay_DxW + params.decay_bias_W)
    decay = jnp.exp(-rate * jnp.log1p(gap)[..., None])
    return decay, jnp.sqrt(1 - decay**2 + 1e-6) * (x @ params.input_DxW)


def show(params, h: Float[Array, "... W"], x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """f_CT = W_o (h * SiLU(W_gate x)) + x."""
    return (h * jax.nn.silu(x @ params.gate_DxW)) @ params.out_WxD + x


def apply(params: ScanParams, x_BxTxD: Tokens, gap_BxT: Gaps, segment_BxT: Segments | None, cfg: WorkingConfig):
    """(f_CT, h) of whole sequences."""
    decay_BxTxW, input_BxTxW = _inputs(params, x_BxTxD, gap_BxT)
    if segment_BxT is None:
        h_BxTxW = _scan(decay_BxTxW, input_BxTxW)
    else:  # a new segment starts from nothing, whatever was before
        start_BxT = kernels.segment_starts(segment_BxT)
        h_BxTxW = _scan(jnp.where(start_BxT[..., None], 0, finite(decay_BxTxW)), finite(input_BxTxW))
        unfit_BxTxW = ~(jnp.isfinite(decay_BxTxW) & jnp.isfinite(input_BxTxW))
        spoilt_BxTxW = spoilt_so_far(unfit_BxTxW, start_BxT, jnp.zeros_like(unfit_BxTxW[:, 0]))
        h_BxTxW = jnp.where(spoilt_BxTxW, jnp.nan, h_BxTxW)
    return show(params, h_BxTxW, x_BxTxD), h_BxTxW


def _scan(decay_BxTxW, input_BxTxW):
    """h_t = a_t h_{t-1} + b_t, from h = 0. Each device goes through its own tokens, and hears what came before."""
    join = lambda early, late: (early[0] * late[0], early[1] * late[0] + late[1])
    scan = partial(jax.lax.associative_scan, join)
    if (number := parts(decay_BxTxW.shape[1])) == 1:
        return scan((decay_BxTxW, input_BxTxW), axis=1)[1]
    left, own = scan(tuple(in_parts(x, number) for x in (decay_BxTxW, input_BxTxW)), axis=2)
    _, ends_BxPxW = scan(tuple(constrained(x[:, :, -1], "BS") for x in (left, own)), axis=1)
    return (own + left * before(ends_BxPxW, 0)[:, :, None]).reshape(input_BxTxW.shape)


def step(params: ScanParams, cache_BxW: Float[Array, "B W"], x_BxD: Token, gap_B: Gap, cfg: WorkingConfig):
    """(f_CT, cache, h) of one event."""
    decay_BxW, input_BxW = _inputs(params, x_BxD, gap_B)
    h_BxW = decay_BxW * cache_BxW + input_BxW
    return show(params, h_BxW, x_BxD), h_BxW, h_BxW


def operations(D: int, cfg: WorkingConfig) -> int:
    """Decay, input and gate from the token, and the output."""
    return 3 * 2 * D * cfg.width + 2 * cfg.width * D
