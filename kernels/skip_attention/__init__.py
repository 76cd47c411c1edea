"""Attention that is computed only for routed queries over kept keys: the dispatch over backends."""

from jaxtyping import Array, Float

from . import reference
from .plan import SkipPlan, make_plan

BACKENDS = {"reference": reference.attend}

__all__ = ["BACKENDS", "SkipPlan", "make_plan", "skip_attention", "skip_attention_compact"]


def _backend(name: str):
    if name == "auto":
        name = "reference"
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {name!r}")
    return BACKENDS[name]


def skip_attention(
    q_BxTxHxK: Float[Array, "B T H K"],
    k_BxTxGxK: Float[Array, "B T G K"],
    v_BxTxGxV: Float[Array, "B T G V"],
    plan: SkipPlan,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Array, "B T H V"]:
    """Attention for the plan's routed queries; exact 0 where not routed, and where nothing is visible.

    Args:
      scale: factor on q.k; K**-0.5 by default.
      backend: "auto" picks by platform among backends whose numbers were verified.

    Raises:
      ValueError: where H is not a multiple of G, or the backend is unknown.
    """
    T = q_BxTxHxK.shape[1]
    o_BxCxHxV = skip_attention_compact(
        plan.gather_queries(q_BxTxHxK),
        plan.gather_keys(k_BxTxGxK),
        plan.gather_keys(v_BxTxGxV),
        plan,
        scale=scale,
        backend=backend,
    )
    return plan.scatter(o_BxCxHxV, T)


def skip_attention_compact(
    q_BxCxHxK: Float[Array, "B C H K"],
    k_BxSxGxK: Float[Array, "B S G K"],
    v_BxSxGxV: Float[Array, "B S G V"],
    plan: SkipPlan,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Array, "B C H V"]:
    """As `skip_attention`, on rows gathered before projecting (`plan.gather_queries`, `plan.gather_keys`)."""
    H, K = q_BxCxHxK.shape[2:]
    G = k_BxSxGxK.shape[2]
    if H % G:
        raise ValueError(f"query heads must be a multiple of key-value heads, got H={H} and G={G}")
    return _backend(backend)(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, K**-0.5 if scale is None else scale)
