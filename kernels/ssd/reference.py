"""The SSD scan as a plain loop over tokens: slow and easy to check. It runs in any float dtype, also float64."""

import jax
import jax.numpy as jnp

from ..backends import Call
from ..recurrent import exact_einsum, to_heads, wide


def supported(call: Call) -> str | None:
    """Returns None: it runs everywhere."""
    return None


def scan(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, log_decay_BxTxH, start_BxT, state_BxHxVxK, *, scale: float, chunk=None):
    """Returns (o_BxTxHxV, state_BxHxVxK). `chunk` is not used here."""
    del chunk
    H, narrow = v_BxTxHxV.shape[2], v_BxTxHxV.dtype
    q, k, v, log_decay, state = wide(
        to_heads(q_BxTxGxK, H), to_heads(k_BxTxGxK, H), v_BxTxHxV, log_decay_BxTxH, state_BxHxVxK
    )

    def token(state_BxHxVxK, now):
        q_BxHxK, k_BxHxK, v_BxHxV, log_decay_BxH, start_B = now
        decay_BxH = jnp.where(start_B[:, None], 0, jnp.exp(log_decay_BxH))
        state_BxHxVxK = decay_BxH[..., None, None] * state_BxHxVxK + v_BxHxV[..., None] * k_BxHxK[..., None, :]
        return state_BxHxVxK, scale * exact_einsum("bhvk,bhk->bhv", state_BxHxVxK, q_BxHxK)

    over_time = [x.swapaxes(0, 1) for x in (q, k, v, log_decay, start_BxT)]
    state, o_TxBxHxV = jax.lax.scan(token, state, over_time)
    return o_TxBxHxV.swapaxes(0, 1).astype(narrow), state
