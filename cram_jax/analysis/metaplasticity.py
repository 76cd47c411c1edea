"""Importance, learning rate and memory window of a metaplastic layer, token by token over one sequence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float
from cram_jax.functional.palimpsa import Writes

QUANTILES = (0.1, 0.5, 0.9)


class Plasticity(NamedTuple):
    """Statistics of a head's synapses (the numbers of its state) after each token of one sequence.

    Attributes:
      importance_TxHx3: the quantiles QUANTILES of the importance L = J + prior over a head's synapses.
      learning_rate_TxHx3: the same quantiles of the learning rate 1 / L: the share of an error that a synapse learns.
      window_TxH: memory window 1 / (1 - a) in tokens, where a is the decay at a token. Important synapses last longer.
    """

    importance_TxHx3: Float[Array, "T H 3"]
    learning_rate_TxHx3: Float[Array, "T H 3"]
    window_TxH: Float[Array, "T H"]


def plasticity(writes: Writes, rate_H: Float[Array, "H"], prior_H: Float[Array, "H"]) -> Plasticity:
    """Returns the statistics for the first sequence of a batch.

    Args:
      writes: what the layer writes (`palimpsa.writes`).
      rate_H: decay rate of each head; a = exp(-dt * rate).
      prior_H: importance of a synapse before any write.
    """
    k_TxHxK, beta_TxHxV, dt_TxH = writes.k_BxTxHxK[0], writes.beta_BxTxHxV[0], writes.dt_BxTxH[0]
    decay_TxH = jnp.exp(-dt_TxH * rate_H)
    quantiles = jnp.array(QUANTILES)

    def token(J_HxVxK, now):
        k_HxK, beta_HxV, decay_H = now
        J_HxVxK = decay_H[:, None, None] * J_HxVxK + beta_HxV[..., None] * k_HxK[:, None] ** 2
        L_HxN = (J_HxVxK + prior_H[:, None, None]).reshape(len(J_HxVxK), -1)
        of_head = lambda x_HxN: jnp.quantile(x_HxN, quantiles, axis=1).T
        return J_HxVxK, (of_head(L_HxN), of_head(1 / L_HxN))

    begin = jnp.zeros((*beta_TxHxV.shape[1:], k_TxHxK.shape[-1]))
    _, (importance, learning_rate) = jax.lax.scan(token, begin, (k_TxHxK, beta_TxHxV, decay_TxH))
    return Plasticity(importance, learning_rate, 1 / -jnp.expm1(-dt_TxH * rate_H))
