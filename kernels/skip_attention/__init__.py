"""The public functions of skipped attention: only the queries in a plan attend, and only to the keys that it keeps."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import backends
from ..backends import SKIP_ATTENTION, Call, device_of
from ..checks import check_kinds, check_shapes, check_whole
from ..common import default_scale
from ..containment import finite, spoilt_rows
from ..meshes import SEQUENCE, TENSOR, automatic, divided, own_heads, parts, varying_like
from .buckets import in_buckets, in_smallest
from .cache import read_cache, write_cache
from .plan import SkipPlan, make_plan

# What each axis of rows, of keys and of a plan is, for `divided`: each device has its own rows, and all keys.
ROWS, KEYS, PLAN = "BCHK", "BSGK", SkipPlan("BC", "BS", "BC", "BC", "B", "B")

__all__ = [
    "SkipPlan",
    "in_buckets",
    "in_smallest",
    "make_plan",
    "read_cache",
    "resolve",
    "skip_attention",
    "skip_attention_compact",
    "write_cache",
]


def resolve(backend: str, rows: int, keys: int, dtype=jnp.float32, platform: str | None = None) -> str:
    """Returns the name of the backend that "auto" chooses for a plan with so many rows and slots; other names stay.

    Call it outside `in_buckets`: all buckets must use the same backend and the same size of tiles (`buckets.py`).
    Otherwise the last bits of a token's result would depend on how many other tokens attend.

    Args:
      dtype: dtype of queries, keys and values.
      platform: "cpu", "gpu" or "tpu"; JAX's default platform by default.

    Raises:
      ValueError: if the name is unknown, or the backend cannot run here, or rows or keys is below 0.
      TypeError: if rows or keys is no whole number.
    """
    if rows is None or keys is None:
        raise TypeError(f"rows and keys must be whole numbers, got rows={rows} and keys={keys}")
    check_whole(least=0, rows=rows, keys=keys)
    return SKIP_ATTENTION.resolve(backend, Call(platform or backends.platform(), rows, keys, dtype))


def skip_attention(
    q_BxTxHxK: Float[Array, "B T H K"],
    k_BxTxGxK: Float[Array, "B T G K"],
    v_BxTxGxV: Float[Array, "B T G V"],
    plan: SkipPlan,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Array, "B T H V"]:
    """Returns softmax(scale q.k) v for each query in the plan, over the keys that it sees.

    The result is exactly 0 for all other tokens, and for queries that see no key.

    Args:
      scale: factor on q.k; K**-0.5 by default.
      backend: "auto" picks by platform among backends whose numbers were verified. On TPUs it is "tpu" (verified by
        interpreter and compiler). On Hopper GPUs it is "gpu" for bfloat16 (run on one). Elsewhere it is "xla", or
        "reference" for few rows and keys. "tpu_interpret" and "gpu_interpret" run those kernels on a CPU, slowly.

    Raises:
      ValueError: if arrays do not fit each other or the plan, or the backend is unknown or cannot run here.
      TypeError: if they are not floating point.
    """
    _check_heads(q_BxTxHxK=q_BxTxHxK, k_BxTxGxK=k_BxTxGxK, v_BxTxGxV=v_BxTxGxV)
    B, T = q_BxTxHxK.shape[:2]
    (batch, rows), slots = plan.rows_BxC.shape, plan.slots_BxS.shape[1]
    if B != batch or T < max(rows, slots):
        raise ValueError(
            f"q_BxTxHxK {q_BxTxHxK.shape} must be of the sequences the plan was made for: {batch} of at least "
            f"{max(rows, slots)} positions"
        )
    return _attend(_whole_jitted, backend, scale, q_BxTxHxK, k_BxTxGxK, v_BxTxGxV, plan)


def skip_attention_compact(
    q_BxCxHxK: Float[Array, "B C H K"],
    k_BxSxGxK: Float[Array, "B S G K"],
    v_BxSxGxV: Float[Array, "B S G V"],
    plan: SkipPlan,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Float[Array, "B C H V"]:
    """Runs `skip_attention` on compact rows, which come from `plan.gather_queries` and `plan.gather_keys`.

    Gather first and project afterwards: then the projection, too, is computed only for these rows.
    """
    _check_heads(q_BxCxHxK=q_BxCxHxK, k_BxSxGxK=k_BxSxGxK, v_BxSxGxV=v_BxSxGxV)
    if (q_BxCxHxK.shape[:2], k_BxSxGxK.shape[:2]) != (plan.rows_BxC.shape, plan.slots_BxS.shape):
        raise ValueError(
            f"q_BxCxHxK {q_BxCxHxK.shape} and k_BxSxGxK {k_BxSxGxK.shape} must have the rows {plan.rows_BxC.shape} and "
            f"slots {plan.slots_BxS.shape} of the plan: gather with plan.gather_queries and plan.gather_keys"
        )
    return _attend(_compact_jitted, backend, scale, q_BxCxHxK, k_BxSxGxK, v_BxSxGxV, plan)


def _check_heads(**arrays) -> None:
    """Raises ValueError unless queries, keys and values fit each other, TypeError if they are not floating point."""
    check_kinds(jnp.floating, **arrays)
    sizes = check_shapes(**arrays)
    if sizes["H"] % sizes["G"]:
        q, k, v = arrays
        raise ValueError(
            f"query heads must be a multiple of key-value heads: {q} has H={sizes['H']}, {k} and {v} have "
            f"G={sizes['G']}"
        )


def _attend(f, backend: str, scale: float | None, q, k, v, plan: SkipPlan):
    rows, slots = plan.rows_BxC.shape[1], plan.slots_BxS.shape[1]
    if 0 in q.shape[:2]:
        return jnp.zeros((*q.shape[:3], v.shape[3]), v.dtype)
    backend = SKIP_ATTENTION.resolve(backend, Call(backends.platform(), rows, slots, q.dtype, device_of(q)))
    arrays = varying_like((q, k, v, plan), q, k, v, plan)
    return automatic(partial(f, backend, default_scale(scale, q.shape[3])), *arrays)


def _forward(backend, scale, q, k, v, plan):
    """(o, log-sum-exp) of compact rows; o is NaN in rows that see something that is not finite."""
    spoilt_BxCxH = spoilt_rows(q, k, v, plan)
    # `finite` on each device: before, the compiler would send what it computes it from
    forward = lambda q, k, v, plan: SKIP_ATTENTION[backend].forward(*map(finite, (q, k, v)), plan, scale=scale)
    o, lse = divided(forward, (q, k, v, plan), (ROWS, KEYS, KEYS, PLAN), (ROWS, "BCH"))
    return jnp.where(spoilt_BxCxH[..., None], jnp.nan, o), lse


def _backward(backend, scale, q, k, v, plan, o, lse, do):
    """(dq, dk, dv). Spoilt rows add nothing: a loss that takes one is NaN itself."""
    spoilt_BxCxHx1 = spoilt_rows(q, k, v, plan)[..., None]
    rows = [jnp.where(spoilt_BxCxHx1, 0, x) for x in (o, do)]
    # Devices share keys whose rows are on several of them, or the one head of keys that all heads look at
    over = [SEQUENCE] * (parts(q.shape[1]) > 1) + [TENSOR] * (own_heads(q.shape[2]) and k.shape[2] == 1)

    def backward(q, k, v, plan, *rows):
        dq, dk, dv = SKIP_ATTENTION[backend].backward(*map(finite, (q, k, v)), plan, scale, *rows)
        return (dq, *jax.lax.psum((dk, dv), over)) if over else (dq, dk, dv)

    arrays = q, k, v, plan, rows[0], lse, rows[1]
    return divided(backward, arrays, (ROWS, KEYS, KEYS, PLAN, ROWS, "BCH", ROWS), (ROWS, KEYS, KEYS))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _compact(backend, scale, q, k, v, plan):
    return _forward(backend, scale, q, k, v, plan)[0]


def _compact_fwd(backend, scale, q, k, v, plan):
    o, lse = _forward(backend, scale, q, k, v, plan)
    return o, (q, k, v, plan, o, lse)


def _compact_bwd(backend, scale, kept, do):
    q, k, v, plan, o, lse = kept
    return *_backward(backend, scale, q, k, v, plan, o, lse, do), None


_compact.defvjp(_compact_fwd, _compact_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _whole(backend, scale, q, k, v, plan):
    return _whole_fwd(backend, scale, q, k, v, plan)[0]


def _whole_fwd(backend, scale, q, k, v, plan):
    def attend(plan, q, k, v):
        compact = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v)
        return [plan.scatter(x, q.shape[1]) for x in _forward(backend, scale, *compact, plan)]

    o, lse = in_smallest(attend, plan, q, k, v)
    return o, (q, k, v, plan, o, lse)


def _whole_bwd(backend, scale, kept, do):
    def back(plan, q, k, v, o, lse, do):
        T = q.shape[1]
        compact = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v)
        rows = [plan.gather_queries(x) for x in (o, lse, do)]
        dq, dk, dv = _backward(backend, scale, *compact, plan, *rows)
        return plan.scatter(dq, T), plan.scatter_keys(dk, T), plan.scatter_keys(dv, T)

    q, k, v, plan, o, lse = kept
    return *in_smallest(back, plan, q, k, v, o, lse, do), None


_whole.defvjp(_whole_fwd, _whole_bwd)

# Jitted here, because a call outside of any jit would compile its branches anew each time.
_whole_jitted, _compact_jitted = (jax.jit(f, static_argnums=(0, 1)) for f in (_whole, _compact))
