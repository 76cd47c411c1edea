"""The Palimpsa scan: gated linear attention whose synapses know how sure they are (Bonnet et al., arXiv 2602.09075)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..recurrent import check_backend, check_heads, on_this_platform, starts, to_heads, wide
from ..ssd import ssd_scan
from . import reference, tpu, xla
from .state import PalimpsaState

BACKENDS = {"reference": reference, "xla": xla, "tpu": tpu, "tpu_interpret": tpu.interpreted}

__all__ = ["PalimpsaState", "palimpsa_scan", "shared_importance_scan"]


def palimpsa_scan(
    q_BxTxGxK: Float[Array, "B T G K"],
    k_BxTxGxK: Float[Array, "B T G K"],
    v_BxTxHxV: Float[Array, "B T H V"],
    beta_BxTxHxV: Float[Array, "B T H V"],
    dt_BxTxH: Float[Array, "B T H"],
    rate_H: Float[Array, "H"],
    prior_H: Float[Array, "H"],
    state: PalimpsaState | None = None,
    *,
    scale: float | None = None,
    chunk: int | None = None,
    segment_BxT: Int[Array, "B T"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Array, "B T H V"], PalimpsaState]:
    """A mean and an importance per synapse; what matters is learned slowly and forgotten slowly.

        a_t = exp(-dt_t rate)
        M_t = a_t M_{t-1} + v_t k_t^T          J_t = a_t J_{t-1} + beta_t (k_t^2)^T
        o_t = scale (M_t / (J_t + prior)) q_t

    1 / (J + prior) is the rate at which a synapse learns. With beta = 0 and prior = 1 it is `ssd_scan`, with
    log_decay = -dt rate.

    Args:
      beta_BxTxHxV: at least 0: how much a write adds to what is held to be important.
      dt_BxTxH, rate_H: at least 0.
      prior_H: above 0: the precision of a synapse about which nothing is known.
      state: before the first token, float32; zeros by default. It belongs to the first token's segment.
      scale: factor on what is read; K**-0.5 by default, 1 in MetaMamba2.
      chunk: tokens between two states that are kept for the gradient; the backend's choice by default.
      segment_BxT: a token sees only tokens of its own segment; segments are contiguous.
      backend: "auto" ("tpu" on TPUs, verified by interpreter and compiler, else "xla"), "xla", "tpu", "reference", or
        "tpu_interpret": the TPU's kernels on a CPU, checked for races, and slowly.

    Returns:
      What was read, in the values' dtype, and the state after the last token, in float32 or wider.

    Raises:
      ValueError: for shapes that do not fit each other, a chunk below 1, an unknown backend, and, outside of
        transformations, for beta, dt or rate below 0 or a prior that is not above 0.
    """
    B, T, H, V = v_BxTxHxV.shape
    K = q_BxTxGxK.shape[-1]
    _check(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, ("beta_BxTxHxV", beta_BxTxHxV, (B, T, H, V)), dt_BxTxH, rate_H, prior_H)
    check_heads(
        v_BxTxHxV,
        {},
        {"segment_BxT": (segment_BxT, (B, T))}
        | {f"state.{name}": (x, (B, H, V, K)) for name, x in (state._asdict() if state else {}).items()},
    )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 (or None for the backend's choice), got {chunk}")
    backend = on_this_platform() if backend == "auto" else backend
    check_backend(backend, BACKENDS)
    if state is None:
        zero_BxHxVxK = jnp.zeros((B, H, V, K), jnp.promote_types(v_BxTxHxV.dtype, jnp.float32))
        state = PalimpsaState(zero_BxHxVxK, zero_BxHxVxK)
    scale = K**-0.5 if scale is None else float(scale)
    log_decay_BxTxH = -dt_BxTxH.astype(jnp.promote_types(dt_BxTxH.dtype, jnp.float32)) * rate_H
    decay_BxTxH = jnp.where(starts(segment_BxT, B, T)[..., None], 0, jnp.exp(log_decay_BxTxH))
    return BACKENDS[backend].scan(
        q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, beta_BxTxHxV, decay_BxTxH, prior_H, state, scale=scale, chunk=chunk
    )


def shared_importance_scan(
    q_BxTxGxK: Float[Array, "B T G K"],
    k_BxTxGxK: Float[Array, "B T G K"],
    v_BxTxHxV: Float[Array, "B T H V"],
    beta_BxTxH: Float[Array, "B T H"],
    dt_BxTxH: Float[Array, "B T H"],
    rate_H: Float[Array, "H"],
    prior_H: Float[Array, "H"],
    *,
    scale: float | None = None,
    segment_BxT: Int[Array, "B T"] | None = None,
    backend: str = "auto",
) -> Float[Array, "B T H V"]:
    """`palimpsa_scan` from an empty state where one beta holds for all values of a head: exact, in matrix products.

    The importance is then one vector a head, so it can be divided out of the queries.

    Raises:
      ValueError: as `palimpsa_scan`.
    """
    B, T, H, _ = v_BxTxHxV.shape
    _check(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, ("beta_BxTxH", beta_BxTxH, (B, T, H)), dt_BxTxH, rate_H, prior_H)
    q, k, v, beta_BxTxH, dt, rate_H, prior_H = wide(
        q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, beta_BxTxH, dt_BxTxH, rate_H, prior_H
    )  # importance is added up over the sequence
    q_BxTxHxK, k_BxTxHxK = to_heads(q, H), to_heads(k, H)
    log_decay_BxTxH = -dt * rate_H
    decay_BxTxH = jnp.where(starts(segment_BxT, B, T)[..., None], 0, jnp.exp(log_decay_BxTxH))
    added_BxTxHxK = beta_BxTxH[..., None] * k_BxTxHxK**2
    join = lambda early, late: (early[0] * late[0], late[0] * early[1] + late[1])
    _, J_BxTxHxK = jax.lax.associative_scan(join, (decay_BxTxH[..., None], added_BxTxHxK), axis=1)
    o_BxTxHxV, _ = ssd_scan(
        q_BxTxHxK / (J_BxTxHxK + prior_H[:, None]),
        k_BxTxHxK,
        v,
        log_decay_BxTxH,
        scale=scale,
        segment_BxT=segment_BxT,
        backend=backend,
    )
    return o_BxTxHxV.astype(v_BxTxHxV.dtype)


def _check(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, beta: tuple, dt_BxTxH, rate_H, prior_H) -> None:
    B, T, H, _ = v_BxTxHxV.shape
    name, values, shape = beta
    by_head = {name: (values, shape), "dt_BxTxH": (dt_BxTxH, (B, T, H))}
    by_head |= {"rate_H": (rate_H, (H,)), "prior_H": (prior_H, (H,))}
    check_heads(v_BxTxHxV, {"q_BxTxGxK": q_BxTxGxK, "k_BxTxGxK": k_BxTxGxK}, by_head)
    for name, (x, _) in by_head.items():
        if isinstance(x, jax.core.Tracer):
            continue
        lowest, above = float(np.min(np.asarray(x))), name == "prior_H"
        if not (lowest > 0 if above else lowest >= 0):
            raise ValueError(f"{name} must be {'above' if above else 'at least'} 0, got {lowest}")
