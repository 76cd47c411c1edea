"""The state-space dual scan: Mamba-2, gated linear attention with one decay a head, RetNet, linear attention."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..recurrent import check_backend, check_heads, on_this_platform, starts
from . import reference, tpu, xla

BACKENDS = {"reference": reference, "xla": xla, "tpu": tpu, "tpu_interpret": tpu.interpreted}


def ssd_scan(
    q_BxTxGxK: Float[Array, "B T G K"],
    k_BxTxGxK: Float[Array, "B T G K"],
    v_BxTxHxV: Float[Array, "B T H V"],
    log_decay_BxTxH: Float[Array, "B T H"],
    state: Float[Array, "B H V K"] | None = None,
    *,
    scale: float | None = None,
    chunk: int | None = None,
    segment_BxT: Int[Array, "B T"] | None = None,
    backend: str = "auto",
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H V K"]]:
    """S_t = exp(log_decay_t) S_{t-1} + v_t k_t^T and o_t = scale S_t q_t: reads come after writes.

    Args:
      log_decay_BxTxH: at most 0, and finite: what is to be forgotten at once starts a segment.
      state: S before the first token, float32; zeros by default. It belongs to the first token's segment.
      scale: factor on what is read; K**-0.5 by default, 1 in Mamba-2.
      chunk: tokens whose matrix products are taken at once; the backend's choice by default.
      segment_BxT: a token sees only tokens of its own segment; segments are contiguous.
      backend: "auto" ("tpu" on TPUs, verified by interpreter and compiler, else "xla"), "xla", "tpu", "reference", or
        "tpu_interpret": the TPU's kernels on a CPU, checked for races, and slowly.

    Returns:
      What was read, in the values' dtype, and the state after the last token, in float32 or wider.

    Raises:
      ValueError: for shapes that do not fit each other, a chunk below 1, or an unknown backend.
    """
    B, T, H, V = v_BxTxHxV.shape
    K = q_BxTxGxK.shape[-1]
    check_heads(
        v_BxTxHxV,
        {"q_BxTxGxK": q_BxTxGxK, "k_BxTxGxK": k_BxTxGxK},
        {
            "log_decay_BxTxH": (log_decay_BxTxH, (B, T, H)),
            "state": (state, (B, H, V, K)),
            "segment_BxT": (segment_BxT, (B, T)),
        },
    )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1 (or None for the backend's choice), got {chunk}")
    backend = on_this_platform() if backend == "auto" else backend
    check_backend(backend, BACKENDS)
    state = jnp.zeros((B, H, V, K), jnp.promote_types(v_BxTxHxV.dtype, jnp.float32)) if state is None else state
    scale = K**-0.5 if scale is None else float(scale)
    start_BxT = starts(segment_BxT, B, T)
    return BACKENDS[backend].scan(
        q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, log_decay_BxTxH, start_BxT, state, scale=scale, chunk=chunk
    )
