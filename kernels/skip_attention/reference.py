"""Plain, slow, obviously right attention over a plan. Runs in any float dtype, float64 included."""

from functools import partial

import jax
import jax.numpy as jnp

from .plan import SkipPlan


def precision(dtype) -> jax.lax.Precision:
    """Of products of such numbers: float32 is float32, which accelerators round to fewer bits where they may."""
    return jax.lax.Precision.DEFAULT if dtype in (jnp.bfloat16, jnp.float16) else jax.lax.Precision.HIGHEST


def forward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float):
    """(attention o_BxCxHxV, log-sum-exp_BxCxH) of compact query rows over compact keys; 0 where a row sees nothing."""
    B, C, H, K = q_BxCxHxK.shape
    S, G, V = v_BxSxGxV.shape[1:]
    wide, narrow = jnp.promote_types(q_BxCxHxK.dtype, jnp.float32), v_BxSxGxV.dtype
    q_BxCxHxK, k_BxSxGxK, v_BxSxGxV = (x.astype(wide) for x in (q_BxCxHxK, k_BxSxGxK, v_BxSxGxV))
    Q = H // G  # query heads of a group stand under each other, as more rows
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
    some = jnp.where(total > 0, total, 1)
    o_BxGxQCxV = dot("bgqs,bgsv->bgqv", weight_BxGxQCxS, v_BxGxSxV) / some  # a row that sees nothing gives 0
    lse_BxGxQCx1 = jnp.where(total > 0, top + jnp.log(some), 0)
    back = lambda x: x.reshape(B, G, Q, C, -1).transpose(0, 3, 1, 2, 4).reshape(B, C, H, -1)
    return back(o_BxGxQCxV).astype(narrow), back(lse_BxGxQCx1)[..., 0]


def backward(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan: SkipPlan, scale: float, o_BxCxHxV, lse_BxCxH, do_BxCxHxV):
    """(dq, dk, dv) for the gradient do of o."""
    _, back = jax.vjp(lambda q, k, v: forward(q, k, v, plan, scale)[0], q_BxCxHxK, k_BxSxGxK, v_BxSxGxV)
    return back(do_BxCxHxV)
