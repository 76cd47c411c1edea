"""The Palimpsa scan as a plain loop over tokens: slow and easy to check. It runs in any float dtype."""

import jax

from ..backends import Call
from ..recurrent import exact_einsum, to_heads, wide
from .state import PalimpsaState


def supported(call: Call) -> str | None:
    """Returns None: it runs everywhere."""
    return None


def scan(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, beta_BxTxHxV, decay_BxTxH, prior_H, state, *, scale: float, chunk=None):
    """Returns (o_BxTxHxV, PalimpsaState). The decay is 0 where a segment starts. `chunk` is not used here."""
    del chunk
    H, narrow = v_BxTxHxV.shape[2], v_BxTxHxV.dtype
    inputs = wide(to_heads(q_BxTxGxK, H), to_heads(k_BxTxGxK, H), v_BxTxHxV, beta_BxTxHxV, decay_BxTxH)
    prior_Hx1x1 = prior_H[:, None, None]

    def token(state, now):
        q_BxHxK, k_BxHxK, v_BxHxV, beta_BxHxV, decay_BxH = now
        outer = lambda x_BxHxV, y_BxHxK: x_BxHxV[..., None] * y_BxHxK[..., None, :]
        M = decay_BxH[..., None, None] * state.mean_BxHxVxK + outer(v_BxHxV, k_BxHxK)
        J = decay_BxH[..., None, None] * state.importance_BxHxVxK + outer(beta_BxHxV, k_BxHxK**2)
        return PalimpsaState(M, J), scale * exact_einsum("bhvk,bhk->bhv", M / (J + prior_Hx1x1), q_BxHxK)

    state, o_TxBxHxV = jax.lax.scan(token, PalimpsaState(*wide(*state)), [x.swapaxes(0, 1) for x in inputs])
    return o_TxBxHxV.swapaxes(0, 1).astype(narrow), state
