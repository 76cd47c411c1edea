"""Attention that is computed only for routed queries over kept keys: the dispatch over backends."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
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
# Rows and keys up to which a batch of products over all of them is faster than a loop over tiles, by platform. A GPU
# starts every product of the loop by itself: where 1.6% of 8 x 2048 rows are routed, in bfloat16, 2.9 ms against 0.9
# (`others_2048` of `experiments/gpu.py`, an H200). It takes rows x keys numbers a head.
SHORT = {"cpu": 128, "gpu": 2048}

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


def resolve(backend: str, rows: int, keys: int, dtype=jnp.float32, platform: str | None = None) -> str:
    """The name of the backend that "auto" stands for here, where a plan has so many rows and slots; another name stays.

    Call it outside a ladder: rungs of different lengths have to agree on a backend, as on tiles (`ladder.py`), or a
    token's result would depend, in its last bits, on how many others attend.

    Args:
      dtype: of queries, keys and values.
      platform: that the choice is for, as JAX calls it; the default one where it is None.

    Raises:
      ValueError: for an unknown name, or "gpu" on one that is no Hopper.
    """
    platform = platform or jax.default_backend()
    if backend == "auto":
        if platform == "gpu" and dtype == jnp.bfloat16 and gpu.is_hopper():
            backend = "gpu"
        elif max(rows, keys) <= SHORT.get(platform, 0):
            backend = "reference"
        else:
            backend = "tpu" if platform == "tpu" else "xla"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {('auto', *BACKENDS)}, got {backend!r}")
    if backend == "gpu" and platform == "gpu" and not gpu.is_hopper():
        raise ValueError('backend "gpu" is for Hopper GPUs (compute capability 9.0): here, take "auto"')
    return backend


def _check(q, k, v, plan: SkipPlan, whole: bool) -> None:
    """Raises ValueError for arrays that do not fit each other, or the plan."""
    B, rows, H, K = q.shape
    G = k.shape[2]
    if k.shape[:3] != v.shape[:3] or k.shape[0] != B or k.shape[3] != K:
        raise ValueError(f"keys {k.shape} and values {v.shape} must go with queries {q.shape}: (B S G K) and (B S G V)")
    if H % G:
        raise ValueError(f"query heads must be a multiple of key-value heads, got H={H} and G={G}")
    rows_BxC, slots_BxS = plan.rows_BxC.shape, plan.slots_BxS.shape
    longest = max(rows_BxC[1], slots_BxS[1])
    if whole and (k.shape[1] != rows or B != rows_BxC[0] or rows < longest):
        raise ValueError(
            f"queries {q.shape} and keys {k.shape} must be of the sequences the plan was made for: {rows_BxC[0]} of at "
            f"least {longest} positions"
        )
    if not whole and ((B, rows), k.shape[:2]) != (rows_BxC, slots_BxS):
        raise ValueError(
            f"compact queries {q.shape} and keys {k.shape} must have the rows {rows_BxC} and slots {slots_BxS} of the "
            "plan: gather with plan.gather_queries and plan.gather_keys"
        )


def _scale(scale: float | None, q) -> float:
    return q.shape[3] ** -0.5 if scale is None else float(scale)


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
        compiler), "gpu" on Hopper GPUs for bfloat16 (run on one), else "xla", or "reference" where there are few keys.

    Raises:
      ValueError: for arrays that do not fit each other or the plan, or an unknown backend.
    """
    _check(q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, plan, whole=True)
    backend = resolve(backend, plan.rows_BxC.shape[1], plan.slots_BxS.shape[1], q_BxTxHxK.dtype)
    return _whole_jitted(backend, _scale(scale, q_BxTxHxK), q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, plan)


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
    _check(q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan, whole=False)
    backend = resolve(backend, q_BxCxHxK.shape[1], k_BxSxGxK.shape[1], q_BxCxHxK.dtype)
    return _compact_jitted(backend, _scale(scale, q_BxCxHxK), q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan)


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

# A call outside of any jit would otherwise compile its branches anew each time.
_whole_jitted, _compact_jitted = (jax.jit(f, static_argnums=(0, 1)) for f in (_whole, _compact))
