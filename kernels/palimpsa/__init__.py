"""The Palimpsa scan: gated linear attention with an importance for each synapse (Bonnet et al., arXiv 2602.09075)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..backends import PALIMPSA
from ..checks import check_shapes
from ..containment import finite, spoilt, spoilt_so_far
from ..meshes import automatic
from ..recurrent import check_heads, contained, empty_state, run, starts_of, to_heads, wide
from ..ssd import ssd_scan
from .state import PalimpsaState

__all__ = ["PalimpsaState", "palimpsa_scan", "shared_importance_scan"]


# Of the arguments of a backend's scan
SHAPES = "BTGK", "BTGK", "BTHV", "BTHV", "BTH", "H", PalimpsaState("BHVK", "BHVK")


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
    """Runs the Palimpsa scan: each synapse has a mean and an importance, and important synapses change slowly.

        a_t = exp(-dt_t rate)
        M_t = a_t M_{t-1} + v_t k_t^T          J_t = a_t J_{t-1} + beta_t (k_t^2)^T
        o_t = scale (M_t / (J_t + prior)) q_t

    A synapse's learning rate is 1 / (J + prior). With beta = 0 and prior = 1 this is `ssd_scan` with
    log_decay = -dt rate.

    Args:
      beta_BxTxHxV: importance that a write adds, at least 0.
      dt_BxTxH, rate_H: time step and decay rate, at least 0.
      prior_H: importance of a synapse before any write, above 0.
      state: state before the first token, float32; zeros by default. It belongs to the first token's segment.
      scale: factor on the outputs; K**-0.5 by default, 1 in MetaMamba2.
      chunk: tokens between two states that are kept for the gradient; the backend's choice by default.
      segment_BxT, backend: as in `ssd_scan`.

    Returns:
      (o, state): the outputs in the values' dtype, and the state after the last token, in float32 or wider.

    Raises:
      ValueError: as `ssd_scan`, and if beta, dt or rate is below 0, or prior is not above 0. Values are checked only on
        concrete arrays, not under jit.
    """
    B, T, H, V = check_shapes(v_BxTxHxV=v_BxTxHxV).values()
    K = q_BxTxGxK.shape[-1]
    _check(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, ("beta_BxTxHxV", beta_BxTxHxV, (B, T, H, V)), dt_BxTxH, rate_H, prior_H)
    carried = {f"state.{name}": (x, (B, H, V, K)) for name, x in (state._asdict() if state else {}).items()}
    check_heads(v_BxTxHxV, {}, {"segment_BxT": (segment_BxT, (B, T))} | carried)

    def whole(v, q, k, beta, dt, rate_H, prior_H, segment_BxT, state):
        state = PalimpsaState(*[empty_state(v, K)] * 2) if state is None else state
        start_BxT = starts_of(segment_BxT, B, T)
        _, decay = _decay(dt, rate_H, start_BxT)
        scan = lambda q, k, v, gates, state: run(
            PALIMPSA,
            backend,
            q,
            k,
            v,
            *gates,
            prior_H,
            state,
            shapes=SHAPES,
            written=_written,
            scale=scale,
            chunk=chunk,
        )
        return contained(scan, q, k, v, (beta, decay), start_BxT, state)

    arrays = v_BxTxHxV, q_BxTxGxK, k_BxTxGxK, beta_BxTxHxV, dt_BxTxH, rate_H, prior_H, segment_BxT, state
    return automatic(whole, *arrays, carried=state)


def _written(q, k_BxTxGxK, v_BxTxHxV, beta_BxTxHxV, decay_BxTxH, prior_H):
    return [(v_BxTxHxV, k_BxTxGxK), (beta_BxTxHxV, k_BxTxGxK**2)], decay_BxTxH


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
    """Runs `palimpsa_scan` from an empty state if all values of a head share one beta. It is exact, and faster.

    The importance is then one vector for each head. Dividing the queries by it leaves matrix products.

    Raises:
      ValueError: as `palimpsa_scan`.
    """
    B, T, H, _ = check_shapes(v_BxTxHxV=v_BxTxHxV).values()
    _check(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, ("beta_BxTxH", beta_BxTxH, (B, T, H)), dt_BxTxH, rate_H, prior_H)
    check_heads(v_BxTxHxV, {}, {"segment_BxT": (segment_BxT, (B, T))})
    f = partial(_shared_importance, scale, backend)
    return automatic(f, v_BxTxHxV, q_BxTxGxK, k_BxTxGxK, beta_BxTxH, dt_BxTxH, rate_H, prior_H, segment_BxT)


def _shared_importance(scale, backend, v_BxTxHxV, q, k, beta_BxTxH, dt_BxTxH, rate_H, prior_H, segment_BxT):
    B, T, H, _ = v_BxTxHxV.shape
    # Importance is summed over the sequence: float32 or wider
    q, k, v, beta_BxTxH, prior_H = wide(q, k, v_BxTxHxV, beta_BxTxH, prior_H)
    q_BxTxHxK, k_BxTxHxK = to_heads(q, H), to_heads(k, H)
    start_BxT = starts_of(segment_BxT, B, T)
    log_decay_BxTxH, decay_BxTxH = _decay(dt_BxTxH, rate_H, start_BxT)
    added_BxTxHxK = beta_BxTxH[..., None] * k_BxTxHxK**2
    join = lambda early, late: (early[0] * late[0], late[0] * early[1] + late[1])
    inputs = finite(decay_BxTxH)[..., None], finite(added_BxTxHxK)
    _, J_BxTxHxK = jax.lax.associative_scan(join, inputs, axis=1)
    spoilt_BxTxH = spoilt(added_BxTxHxK) | ~jnp.isfinite(decay_BxTxH)
    spoilt_BxTxH = spoilt_so_far(spoilt_BxTxH, start_BxT, jnp.zeros((B, H), bool))
    J_BxTxHxK = jnp.where(spoilt_BxTxH[..., None], jnp.nan, J_BxTxHxK)
    q_BxTxHxK = q_BxTxHxK / (J_BxTxHxK + prior_H[:, None])
    options = {"scale": scale, "segment_BxT": segment_BxT, "backend": backend}
    return ssd_scan(q_BxTxHxK, k_BxTxHxK, v, log_decay_BxTxH, **options)[0].astype(v_BxTxHxV.dtype)


def _decay(dt_BxTxH, rate_H, start_BxT):
    """(log_decay_BxTxH, decay_BxTxH): -dt rate in float32 or wider, and its exponential, 0 where a segment starts."""
    dt_BxTxH, rate_H = wide(dt_BxTxH, rate_H)
    log_decay_BxTxH = -dt_BxTxH * rate_H
    return log_decay_BxTxH, jnp.where(start_BxT[..., None], 0, jnp.exp(log_decay_BxTxH))


def _check(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, beta: tuple, dt_BxTxH, rate_H, prior_H) -> None:
    B, T, H, _ = v_BxTxHxV.shape
    name, values, shape = beta
    by_head = {name: (values, shape), "dt_BxTxH": (dt_BxTxH, (B, T, H))}
    by_head |= {"rate_H": (rate_H, (H,)), "prior_H": (prior_H, (H,))}
    check_heads(v_BxTxHxV, {"q_BxTxGxK": q_BxTxGxK, "k_BxTxGxK": k_BxTxGxK}, by_head)
    for name, (x, _) in by_head.items():
        if isinstance(x, jax.core.Tracer) or not x.size:
            continue
        lowest, above = float(np.min(np.asarray(x))), name == "prior_H"
        if not (lowest > 0 if above else lowest >= 0):
            raise ValueError(f"{name} must be {'above' if above else 'at least'} 0, got {lowest}")
