"""Prediction uncertainty: how unsure a layer is of the next token.

The paper lists it among the router's inputs and does not define it. Ours: a linear read-out of the token predicts a
discrete code of the *next* token, which is the largest of U fixed random projections of it. The read-out is trained
inside the layer. The uncertainty is the normalised entropy of its prediction, from 0 (sure) to 1.
"""

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Scalar, Segments, Tokens
from cram_jax.functional.common import total

CODES = 16


def init(D: int) -> Float[Array, "D U"]:
    """All codes are equally likely: uncertainty 1."""
    return jnp.zeros((D, CODES))


def uncertainty(readout_DxU: Float[Array, "D U"], x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Entropy of the predicted code over log U. The token gets no gradient."""
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(x) @ readout_DxU)
    return jax.lax.stop_gradient(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1) / jnp.log(CODES))


def loss(readout_DxU: Float[Array, "D U"], x_BxTxD: Tokens, segment_BxT: Segments | None) -> tuple[Scalar, Scalar]:
    """(summed cross-entropy of the next token's code, number of predictions). Only the read-out gets a gradient."""
    x_BxTxD = jax.lax.stop_gradient(x_BxTxD)
    project_DxU = jax.random.normal(jax.random.key(0), readout_DxU.shape, x_BxTxD.dtype)
    code_BxT = jnp.argmax(x_BxTxD[:, 1:] @ project_DxU, axis=-1)
    log_p = jax.nn.log_softmax(x_BxTxD[:, :-1] @ readout_DxU)
    nats_BxT = -jnp.take_along_axis(log_p, code_BxT[..., None], axis=-1)[..., 0]
    same_BxT = jnp.ones(nats_BxT.shape, bool) if segment_BxT is None else segment_BxT[:, 1:] == segment_BxT[:, :-1]
    return total(nats_BxT, where=same_BxT), total(same_BxT)
