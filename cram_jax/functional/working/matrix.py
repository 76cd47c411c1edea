"""Working memories that hold a matrix a head: the SSD scan and Palimpsa's, in place of the paper's dynamics.

Forgetting follows the time gap, as in `gated_scan.py`: a head's rate is per unit of log time.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional.common import normal
from cram_jax.functional.recurrence import Importance, importance, init_importance, unit
from cram_jax.functional.working import WorkingConfig
from cram_jax.functional.working.gated_scan import show

VALUES, KEYS, RANK = 16, 16, 8  # of a head; hidden units of the network for importance


class MatrixParams(NamedTuple):
    """Attributes:
    decay_DxH, decay_bias_H: the token's rate of forgetting per unit of log time.
    query_DxHxK, key_DxHxK: normalised to unit length.
    value_DxHxV: what is stored; write_DxH: how much of it.
    gate_DxW, out_WxD: what of a read is shown, and where; W = H V.
    importance: () for SSD.
    """

    decay_DxH: Float[Array, "*layers D H"]
    decay_bias_H: Float[Array, "*layers H"]
    query_DxHxK: Float[Array, "*layers D H K"]
    key_DxHxK: Float[Array, "*layers D H K"]
    value_DxHxV: Float[Array, "*layers D H V"]
    write_DxH: Float[Array, "*layers D H"]
    gate_DxW: Float[Array, "*layers D W"]
    out_WxD: Float[Array, "*layers W D"]
    importance: Importance | tuple[()]


def init(key: Key, D: int, cfg: WorkingConfig, *, metaplastic: bool) -> MatrixParams:
    """Unit-variance reads; heads forget over about 1 to 1000 events."""
    W, keys = cfg.width, jax.random.split(key, 8)
    H = W // VALUES
    read = lambda i, *shape: normal(keys[i], (D, *shape), D)
    rate_H = jnp.logspace(0, -3, H)
    return MatrixParams(
        decay_DxH=0.1 * read(0, H),
        decay_bias_H=jnp.log(jnp.expm1(rate_H)),
        query_DxHxK=read(1, H, KEYS),
        key_DxHxK=read(2, H, KEYS),
        value_DxHxV=read(3, H, VALUES),
        write_DxH=read(4, H),
        gate_DxW=read(5, W),
        out_WxD=normal(keys[6], (W, D), W),
        importance=init_importance(keys[7], D, RANK, H, VALUES) if metaplastic else (),
    )


def numbers(cfg: WorkingConfig, *, metaplastic: bool) -> int:
    """Numbers in the state of one sequence."""
    if cfg.width % VALUES:
        raise ValueError(f"width must be a multiple of {VALUES} for {cfg.body}, got {cfg.width}")
    return (2 if metaplastic else 1) * cfg.width * KEYS


def scan(
    params: MatrixParams, state: Float[Array, "B N"] | None, x_BxTxD: Tokens, gap_BxT, segment_BxT: Segments | None
) -> tuple[Float[Array, "B T W"], Float[Array, "B N"]]:
    """(what is read at each token, the state after the last one). The state is flat."""
    B, T, _ = x_BxTxD.shape
    H = params.decay_bias_H.shape[-1]
    q, k = (unit(jnp.einsum("btd,dhk->bthk", x_BxTxD, w)) for w in (params.query_DxHxK, params.key_DxHxK))
    dt_BxTxH = jax.nn.softplus(x_BxTxD @ params.decay_DxH + params.decay_bias_H) * jnp.log1p(gap_BxT)[..., None]
    write_BxTxHx1 = jax.nn.sigmoid(x_BxTxD @ params.write_DxH)[..., None]
    v_BxTxHxV = write_BxTxHx1 * jnp.einsum("btd,dhv->bthv", x_BxTxD, params.value_DxHxV)
    backend = "reference" if T == 1 else "auto"
    if params.importance:
        beta_BxTxHxV, one_H = write_BxTxHx1 * importance(params.importance, x_BxTxD), jnp.ones(H)
        if state is not None:
            state = kernels.PalimpsaState(*jnp.moveaxis(state.reshape(B, 2, H, VALUES, KEYS), 1, 0))
        o, end = kernels.palimpsa_scan(
            q, k, v_BxTxHxV, beta_BxTxHxV, dt_BxTxH, one_H, one_H, state,
            scale=1.0, segment_BxT=segment_BxT, backend=backend,
        )  # fmt: skip
        end = jnp.stack(end, axis=1)
    else:
        state = None if state is None else state.reshape(B, H, VALUES, KEYS)
        o, end = kernels.ssd_scan(
            q, k, v_BxTxHxV, -dt_BxTxH, state, scale=1.0, segment_BxT=segment_BxT, backend=backend
        )
    return o.reshape(B, T, H * VALUES), end.reshape(B, math.prod(end.shape[1:]))


def apply(params: MatrixParams, x_BxTxD: Tokens, gap_BxT: Gaps, segment_BxT: Segments | None, cfg: WorkingConfig):
    """(f_CT, h) of whole sequences."""
    h_BxTxW, _ = scan(params, None, x_BxTxD, gap_BxT, segment_BxT)
    return show(params, h_BxTxW, x_BxTxD), h_BxTxW


def step(params: MatrixParams, cache_BxN: Float[Array, "B N"], x_BxD: Token, gap_B: Gap, cfg: WorkingConfig):
    """(f_CT, cache, h) of one event."""
    h_Bx1xW, cache_BxN = scan(params, cache_BxN, x_BxD[:, None], gap_B[:, None], None)
    return show(params, h_Bx1xW[:, 0], x_BxD), cache_BxN, h_Bx1xW[:, 0]


def operations(D: int, cfg: WorkingConfig, *, metaplastic: bool) -> int:
    """Projections; 5 operations for a number of the state, 10 with an importance (see `operations.recurrent`)."""
    W = cfg.width
    H = W // VALUES
    projections = D * (2 * H + 2 * H * KEYS + W) + 2 * D * W
    weights = RANK * (D + W) if metaplastic else 0
    return 2 * (projections + weights) + (10 if metaplastic else 5) * W * KEYS
