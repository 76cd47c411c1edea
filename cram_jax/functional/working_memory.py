"""Working memory: cheap local dynamics (CRAM, Eq 2), and recurrent bodies behind the same signature.

| body | what it carries along the sequence |
|---|---|
| ct_ode | nothing; K Euler steps of the paper's gap-gated dynamics from h = 0, for each event by itself |
| gated_scan | W numbers: a gated linear recurrence whose decay follows the time gap |
| ssd | 16 W numbers: a matrix a head, written by keys and values (`matrix_memory.py`) |
| palimpsa | 32 W numbers: the same with an importance for each |
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional import matrix_memory
from cram_jax.functional.common import at_least_one, normal, segment_starts
from cram_jax.functional.matrix_memory import MatrixParams

BODIES = ("ct_ode", "gated_scan", "ssd", "palimpsa")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class WorkingConfig:
    """body: one of BODIES.
    width: W, numbers in the state, or those read from it; a multiple of 16 for ssd and palimpsa.
    steps: Euler steps K of ct_ode over one unit of time; the others take none.
    """

    body: str = "ct_ode"
    width: int = 64
    steps: int = 2

    def __post_init__(self):
        if self.body not in BODIES:
            raise ValueError(f"working memory body must be one of {BODIES}, got {self.body!r}")
        at_least_one(self, "width", "steps")
        if self.body in ("ssd", "palimpsa") and self.width % matrix_memory.VALUES:
            raise ValueError(f"width must be a multiple of {matrix_memory.VALUES} for {self.body}, got {self.width}")


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


Params = ODEParams | ScanParams | MatrixParams


def init(key: Key, D: int, cfg: WorkingConfig) -> Params:
    """Unit-variance reads. ct_ode's gates turn at gaps from 1 to 19; gated_scan forgets over about 1 to 1000 events."""
    W = cfg.width
    if cfg.body in ("ssd", "palimpsa"):
        return matrix_memory.init(key, D, W, cfg.body == "palimpsa")
    a, b, c, d = jax.random.split(key, 4)
    if cfg.body == "ct_ode":
        # Each gate opens or closes at a gap of its own, from 1 to 19, so that the dynamics can follow the gap finely.
        slope_W = 4 * jax.random.normal(d, (W,))
        turn_W = jnp.linspace(jnp.log(2.0), jnp.log(20.0), W)  # of log(1 + gap)
        rate_bias_W = -slope_W * turn_W
        return ODEParams(
            slope_W, rate_bias_W, normal(a, (W, W), W), normal(b, (D, W), D), jnp.zeros(W), normal(c, (W, D), W)
        )
    rate_W = jnp.logspace(0, -3, W)
    bias_W = jnp.log(jnp.expm1(rate_W))  # softplus^-1
    return ScanParams(
        0.1 * normal(a, (D, W), D), bias_W, normal(b, (D, W), D), normal(c, (D, W), D), normal(d, (W, D), W)
    )


def init_cache(cfg: WorkingConfig, batch: int) -> Float[Array, "B W"]:
    """What the body carries from token to token; W = 0 for a body that carries nothing."""
    numbers = {"ct_ode": 0, "gated_scan": cfg.width}
    numbers |= {body: matrix_memory.numbers(cfg.width, body == "palimpsa") for body in ("ssd", "palimpsa")}
    return jnp.zeros((batch, numbers[cfg.body]))


def _ode(params: ODEParams, x: Float[Array, "... D"], gap: Float[Array, "..."], steps: int):
    """h <- h + dt sigmoid(W_tau log(1 + gap)) tanh(W1 h + W2 x), `steps` times from 0 (Eq 2)."""
    rate = jax.nn.sigmoid(jnp.log1p(gap)[..., None] * params.rate_W + params.rate_bias_W) / steps
    drive = x @ params.input_DxW + params.bias_W
    h = rate * jnp.tanh(drive)  # the first step, from h = 0
    for _ in range(steps - 1):
        h = h + rate * jnp.tanh(h @ params.state_WxW + drive)
    return h


def _scan_inputs(params: ScanParams, x: Float[Array, "... D"], gap: Float[Array, "..."]):
    """Decay a and stored input b of h <- a h + b; a is exp(-rate log(1 + gap)), b what the decay leaves room for."""
    rate = jax.nn.softplus(x @ params.decay_DxW + params.decay_bias_W)
    decay = jnp.exp(-rate * jnp.log1p(gap)[..., None])
    return decay, jnp.sqrt(1 - decay**2 + 1e-6) * (x @ params.input_DxW)


def _show(params: ScanParams | MatrixParams, h, x):
    return (h * jax.nn.silu(x @ params.gate_DxW)) @ params.out_WxD + x


def _magnitude(h: Float[Array, "... W"]) -> Float[Array, "..."]:
    return jnp.sqrt(jnp.mean(h**2, axis=-1) + 1e-12)


def apply(
    params: Params, x_BxTxD: Tokens, gap_BxT: Gaps, segment_BxT: Segments | None, cfg: WorkingConfig
) -> tuple[Tokens, Float[Array, "B T"]]:
    """The whole sequence: (f_CT = W_o h + x, root mean square of the dynamics h), causal."""
    if isinstance(params, ODEParams):
        h_BxTxW = _ode(params, x_BxTxD, gap_BxT, cfg.steps)
        return h_BxTxW @ params.out_WxD + x_BxTxD, _magnitude(h_BxTxW)
    if isinstance(params, MatrixParams):
        h_BxTxW, _ = matrix_memory.scan(params, None, x_BxTxD, gap_BxT, segment_BxT)
        return _show(params, h_BxTxW, x_BxTxD), _magnitude(h_BxTxW)
    decay_BxTxW, input_BxTxW = _scan_inputs(params, x_BxTxD, gap_BxT)
    if segment_BxT is not None:  # a new segment starts from nothing
        decay_BxTxW = jnp.where(segment_starts(segment_BxT)[..., None], 0, decay_BxTxW)
    join = lambda early, late: (early[0] * late[0], early[1] * late[0] + late[1])
    _, h_BxTxW = jax.lax.associative_scan(join, (decay_BxTxW, input_BxTxW), axis=1)
    return _show(params, h_BxTxW, x_BxTxD), _magnitude(h_BxTxW)


def step(
    params: Params, cache_BxW: Float[Array, "B W"], x_BxD: Token, gap_B: Gap, cfg: WorkingConfig
) -> tuple[Token, Float[Array, "B W"], Float[Array, "B"]]:
    """One event: (output, cache, magnitude); equals `apply` at that position."""
    if isinstance(params, ODEParams):
        h_BxW = _ode(params, x_BxD, gap_B, cfg.steps)
        return h_BxW @ params.out_WxD + x_BxD, cache_BxW, _magnitude(h_BxW)
    if isinstance(params, MatrixParams):
        h_Bx1xW, cache_BxW = matrix_memory.scan(params, cache_BxW, x_BxD[:, None], gap_B[:, None], None)
        return _show(params, h_Bx1xW[:, 0], x_BxD), cache_BxW, _magnitude(h_Bx1xW[:, 0])
    decay_BxW, input_BxW = _scan_inputs(params, x_BxD, gap_B)
    h_BxW = decay_BxW * cache_BxW + input_BxW
    return _show(params, h_BxW, x_BxD), h_BxW, _magnitude(h_BxW)
