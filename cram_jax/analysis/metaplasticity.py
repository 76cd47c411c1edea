"""What metaplasticity does over a sequence: how sure a head's synapses are, how fast they learn, how long they last."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float
from cram_jax.functional.palimpsa import Writes

QUANTILES = (0.1, 0.5, 0.9)


class Plasticity(NamedTuple):
    """Of one sequence, token by token and head by head.

    Attributes:
      importance_TxHx3: tenth, half and nine tenths of the synapses have at most this L = J + prior.
      learning_rate_TxHx3: likewise of 1 / L: how much of an error a synapse takes up.
      window_TxH: 1 / (1 - a), tokens a memory lasts where nothing is held to be important.
    """

    importance_TxHx3: Float[Array, "T H 3"]
    learning_rate_TxHx3: Float[Array, "T H 3"]
    window_TxH: Float[Array, "T H"]


def plasticity(writes: Writes, rate_H: Float[Array, "H"], prior_H: Float[Array, "H"]) -> Plasticity:
    """From what a layer writes (`palimpsa.writes`) for the first sequence of a batch."""
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
