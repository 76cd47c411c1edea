"""The paper's working memory: gap-gated dynamics of continuous time, from h = 0 for each event (CRAM, Eq 2)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional.common import normal
from cram_jax.functional.working import WorkingConfig


class ODEParams(NamedTuple):
    """Attributes:
    rate_W, rate_bias_W: W_tau, from log(1 + gap) to the gate on the dynamics.
    state_WxW: W1. input_DxW: W2. out_WxD: W_o. bias_W: inside the tanh.
    """

    rate_W: Float[Array, "W"]
    rate_bias_W: Float[Array, "W"]
    state_WxW: Float[Array, "W W"]
    input_DxW: Float[Array, "D W"]
    bias_W: Float[Array, "W"]
    out_WxD: Float[Array, "W D"]


def init(key: Key, D: int, cfg: WorkingConfig) -> ODEParams:
    """Unit-variance reads. Each gate opens or closes at a gap of its own, from 1 to 19, to follow the gap finely."""
    W = cfg.width
    a, b, c, d = jax.random.split(key, 4)
    slope_W = 4 * jax.random.normal(d, (W,))
    turn_W = jnp.linspace(jnp.log(2.0), jnp.log(20.0), W)  # of log(1 + gap)
    rate_bias_W = -slope_W * turn_W
    return ODEParams(
        slope_W, rate_bias_W, normal(a, (W, W), W), normal(b, (D, W), D), jnp.zeros(W), normal(c, (W, D), W)
    )


def numbers(cfg: WorkingConfig) -> int:
    """Nothing is carried."""
    return 0


def dynamics(params: ODEParams, x: Float[Array, "... D"], gap: Float[Array, "..."], steps: int):
    """h <- h + dt sigmoid(W_tau log(1 + gap)) tanh(W1 h + W2 x), `steps` times from 0 (Eq 2)."""
    rate = jax.nn.sigmoid(jnp.log1p(gap)[..., None] * params.rate_W + params.rate_bias_W) / steps
    drive = x @ params.input_DxW + params.bias_W
    h = rate * jnp.tanh(drive)  # the first step, from h = 0
    for _ in range(steps - 1):
        h = h + rate * jnp.tanh(h @ params.state_WxW + drive)
    return h


def apply(params: ODEParams, x_BxTxD: Tokens, gap_BxT: Gaps, segment_BxT: Segments | None, cfg: WorkingConfig):
    """(f_CT, h). Segments change nothing: no event sees another."""
    h_BxTxW = dynamics(params, x_BxTxD, gap_BxT, cfg.steps)
    return h_BxTxW @ params.out_WxD + x_BxTxD, h_BxTxW


def step(params: ODEParams, cache_Bx0: Float[Array, "B 0"], x_BxD: Token, gap_B: Gap, cfg: WorkingConfig):
    """(f_CT, cache, h) of one event."""
    h_BxW = dynamics(params, x_BxD, gap_B, cfg.steps)
    return h_BxW @ params.out_WxD + x_BxD, cache_Bx0, h_BxW


def operations(D: int, cfg: WorkingConfig) -> int:
    """W2 and W_o once, W1 in each step but the first."""
    W = cfg.width
    return 2 * D * W + 2 * W * W * (cfg.steps - 1) + 2 * W * D
