"""Attention that is computed only for routed queries over kept keys: the dispatch over backends."""

from functools import partial
from types import SimpleNamespace

import jax
from jaxtyping import Array, Float

from . import gpu, reference, tpu, xla
from .cache import read_cache, write_cache
from .ladder import on_ladder, switch
from .plan import SkipPlan, make_plan

# Each has `forward` and `backward` over compact rows. The interpreted ones run an accelerator's kernels on a CPU,
# checked for races, and slowly.
BACKENDS = {
    "reference": reference,
    "xla": xla,
    "tpu": tpu,
    "tpu_interpret": tpu.interpreted,
    "gpu": gpu,
    "gpu_interpret": SimpleNamespace(
        forward=partial(gpu.forward, interpret=True), backward=partial(gpu.backward, interpret=True)
    ),
}
SHORT = 128  # keys: up to here a batch of small products is faster on a CPU than a loop over them

__all__ = [
    "SkipPlan",
    "make_plan",
    "on_ladder",
    "read_cache",
    "resolve",
    "skip_attention",
    "skip_attention_compact",
    "write_cache",
]


def resolve(backend: str, keys: int) -> str:
    """The name of the backend that "auto" stands for here, where a plan has so many slots; another name stays.

    Call it outside a ladder: rungs of different lengths have to agree on a backend, as on tiles (`ladder.py`), or a
    token's result would depend, in its last bits, on how many others attend.

    Raises:
      ValueError: for an unknown name.
    """
    if backend == "auto":
        on_cpu = "reference" if keys <= SHORT else "xla"
        backend = {"tpu": "tpu", "cpu": on_cpu}.get(jax.default_backend(), "xla")
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {backend!r}")
    return backend


def _scale(scale: float | None, q, k) -> float:
    H, K = q.shape[2:]
    G = k.shape[2]
    if H % G:
        raise ValueError(f"query heads must be a multiple of key-value heads, got H={H} and G={G}")
    return K**-0.5 if scale is None else float(scale)


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
      backend: "auto" picks by platform among backends whose numbers were verified: "tpu" on TPUs (interpreter and
        compiler), else "xla", or "reference" on a CPU where there are few keys. "gpu" (Hopper and newer) goes by name
        until it ran on one: see `gpu.py`.

    Raises:
      ValueError: where H is not a multiple of G, or the backend is unknown.
    """
    backend = resolve(backend, plan.slots_BxS.shape[1])
    return _whole(backend, _scale(scale, q_BxTxHxK, k_BxTxGxK), q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, plan)


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
    backend = resolve(backend, k_BxSxGxK.shape[1])
    return _compact(backend, _scale(scale, q_BxCxHxK, k_BxSxGxK), q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _compact(backend, scale, q, k, v, plan):
    return BACKENDS[backend].forward(q, k, v, plan, scale)[0]


def _compact_fwd(backend, scale, q, k, v, plan):
    o, lse = BACKENDS[backend].forward(q, k, v, plan, scale)
    return o, (q, k, v, plan, o, lse)


def _compact_bwd(backend, scale, kept, do):
    q, k, v, plan, o, lse = kept
    return *BACKENDS[backend].backward(q, k, v, plan, scale, o, lse, do), None


_compact.defvjp(_compact_fwd, _compact_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _whole(backend, scale, q, k, v, plan):
    return _whole_fwd(backend, scale, q, k, v, plan)[0]


def _whole_fwd(backend, scale, q, k, v, plan):
    def attend(plan, q, k, v):
        compact = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v)
        return [plan.scatter(x, q.shape[1]) for x in BACKENDS[backend].forward(*compact, plan, scale)]

    o, lse = switch(attend, plan, q, k, v)
    return o, (q, k, v, plan, o, lse)


def _whole_bwd(backend, scale, kept, do):
    def back(plan, q, k, v, o, lse, do):
        T = q.shape[1]
        compact = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v)
        rows = [plan.gather_queries(x) for x in (o, lse, do)]
        dq, dk, dv = BACKENDS[backend].backward(*compact, plan, scale, *rows)
        return plan.scatter(dq, T), plan.scatter_keys(dk, T), plan.scatter_keys(dv, T)

    q, k, v, plan, o, lse = kept
    return *switch(back, plan, q, k, v, o, lse, do), None


_whole.defvjp(_whole_fwd, _whole_bwd)
