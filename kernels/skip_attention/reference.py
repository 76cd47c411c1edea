"""Plain attention over a plan, of all rows to all keys: slow and easy to check. It runs in any float dtype."""

from functools import partial

import jax
import jax.numpy as jnp

from ..backends import Call
from ..common import accumulator, precision
from .plan import SkipPlan

# By platform: up to so many rows and keys, one product over all of them is faster than a loop over tiles. A GPU
# launches each product of the loop separately: with 1.6% of 8 x 2048 rows routed, in bfloat16, the loop takes 2.9 ms
# and this 0.9 ms (`others_2048` of `experiments/gpu.py`, on an H200). The logits take rows x keys numbers a head.
SHORT = {"cpu": 128, "gpu": 2048}


def supported(call: Call) -> str | None:
    """Returns None: it runs everywhere."""
    return None


def preferred(call: Call) -> bool:
    """True if there are few rows and keys."""
    return max(call.rows, call.keys) <= SHORT.get(call.platform, 0)


def forward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float):
    """(attention o_BxCxHxV, log-sum-exp_BxCxH) of compact query rows over compact keys; 0 where a row sees nothing."""
    B, C, H, K = q_BxCxHxK.shape
    S, G, V = v_BxSxGxV.shape[1:]
    wide, narrow = accumulator(q_BxCxHxK.dtype), v_BxSxGxV.dtype
    q_BxCxHxK, k_BxSxGxK, v_BxSxGxV = (x.astype(wide) for x in (q_BxCxHxK, k_BxSxGxK, v_BxSxGxV))
    Q = H // G  # the query heads of a group share its keys: they are stacked as more rows
    q_BxGxQCxK = q_BxCxHxK.reshape(B, C, G, Q, K).transpose(0, 2, 3, 1, 4).reshape(B, G, Q * C, K)
    k_BxGxSxK, v_BxGxSxV = k_BxSxGxK.swapaxes(1, 2), v_BxSxGxV.swapaxes(1, 2)
    visible_BxCxS = (jnp.arange(S) >= plan.start_BxC[..., None]) & (jnp.arange(S) < plan.end_BxC[..., None])
    visible_Bx1xQCxS = jnp.tile(visible_BxCxS, (1, Q, 1))[:, None]

    dot = partial(jnp.einsum, precision=precision(wide))
    logits_BxGxQCxS = dot("bgqk,bgsk->bgqs", q_BxGxQCxK, k_BxGxSxK) * scale  # `@` would transpose the keys first
    logits_BxGxQCxS = jnp.where(visible_Bx1xQCxS, logits_BxGxQCxS, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(logits_BxGxQCxS, axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0)
    weight_BxGxQCxS = jnp.exp(logits_BxGxQCxS - top)
    total = jnp.sum(weight_BxGxQCxS, axis=-1, keepdims=True)
    positive = jnp.where(total > 0, total, 1)
    o_BxGxQCxV = dot("bgqs,bgsv->bgqv", weight_BxGxQCxS, v_BxGxSxV) / positive  # a row that sees nothing gives 0
    lse_BxGxQCx1 = jnp.where(total > 0, top + jnp.log(positive), 0)
    back = lambda x: x.reshape(B, G, Q, C, -1).transpose(0, 3, 1, 2, 4).reshape(B, C, H, -1)
    return back(o_BxGxQCxV).astype(narrow), back(lse_BxGxQCx1)[..., 0]


def backward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float, o_BxCxHxV, lse_BxCxH, do_BxCxHxV):
    """(dq, dk, dv) for the gradient do of o."""
    _, back = jax.vjp(lambda q, k, v: forward(q, k, v, plan, scale)[0], q_BxCxHxK, k_BxSxGxK, v_BxSxGxV)
    return back(do_BxCxHxV)
