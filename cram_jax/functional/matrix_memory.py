"""Working memory that holds a matrix a head: the SSD scan, or Palimpsa's, in place of the paper's dynamics.

Forgetting follows the time gap, as in `gated_scan`: a head's rate is per unit of log time.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Key, Segments, Tokens
from cram_jax.functional.common import normal
from cram_jax.functional.recurrence import Importance, importance, init_importance

VALUES, KEYS, RANK = 16, 16, 8  # of a head; hidden units of the network that tells importance


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


def init(key: Key, D: int, W: int, metaplastic: bool) -> MatrixParams:
    """Unit-variance reads; heads forget over about 1 to 1000 events."""
    H, keys = W // VALUES, jax.random.split(key, 8)
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


def numbers(W: int, metaplastic: bool) -> int:
    """In the state of one sequence."""
    return (2 if metaplastic else 1) * W * KEYS


def scan(
    params: MatrixParams, state: Float[Array, "B N"] | None, x_BxTxD: Tokens, gap_BxT, segment_BxT: Segments | None
) -> tuple[Float[Array, "B T W"], Float[Array, "B N"]]:
    """(what is read at each token, the state after the last); the state is kept flat."""
    B, T, _ = x_BxTxD.shape
    H = params.decay_bias_H.shape[-1]
    unit = lambda x: x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)
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
    return o.reshape(B, T, -1), end.reshape(B, -1)
