"""The state-space dual scan: Mamba-2, gated linear attention with one decay a head, RetNet, linear attention."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..backends import SSD
from ..checks import check_shapes
from ..meshes import automatic
from ..recurrent import check_heads, contained, empty_state, run, starts_of, wide

# Of the arguments of a backend's scan
SHAPES = "BTGK", "BTGK", "BTHV", "BTH", "BT", "BHVK"


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
    """Runs the scan S_t = exp(log_decay_t) S_{t-1} + v_t k_t^T, o_t = scale S_t q_t. A token reads its own write, too.

    Args:
      log_decay_BxTxH: log of the decay, at most 0 and finite. To forget everything, start a segment.
      state: S before the first token, float32; zeros by default. It belongs to the first token's segment.
      scale: factor on the outputs; K**-0.5 by default, 1 in Mamba-2.
      chunk: tokens in a chunk, which is computed with matrix products; the backend's choice by default.
      segment_BxT: number of each token's segment. A token sees only its own, which begins where the number changes.
      backend: "auto" is "tpu" on TPUs (verified by interpreter and compiler) and "xla" elsewhere. Or "xla", "tpu",
        "reference", or "tpu_interpret": the TPU's kernels on a CPU, checked for races, and slow.

    Returns:
      (o, state): the outputs in the values' dtype, and the state after the last token, in float32 or wider.

    Raises:
      ValueError: if shapes do not fit each other, chunk is below 1, or the backend is unknown or cannot run here.
    """
    B, T, H, V = check_shapes(v_BxTxHxV=v_BxTxHxV).values()
    K = q_BxTxGxK.shape[-1]
    by_head = {"log_decay_BxTxH": (log_decay_BxTxH, (B, T, H)), "state": (state, (B, H, V, K))}
    by_head |= {"segment_BxT": (segment_BxT, (B, T))}
    check_heads(v_BxTxHxV, {"q_BxTxGxK": q_BxTxGxK, "k_BxTxGxK": k_BxTxGxK}, by_head)

    def whole(v, q, k, log_decay, segment_BxT, state):
        state = empty_state(v, K) if state is None else state
        start_BxT = starts_of(segment_BxT, B, T)
        scan = lambda q, k, v, gates, state: run(
            SSD, backend, q, k, v, *gates, start_BxT, state, shapes=SHAPES, written=_written, scale=scale, chunk=chunk
        )
        return contained(scan, q, k, v, (log_decay,), start_BxT, state)

    arrays = v_BxTxHxV, q_BxTxGxK, k_BxTxGxK, log_decay_BxTxH, segment_BxT, state
    return automatic(whole, *arrays, carried=state)


def _written(q, k_BxTxGxK, v_BxTxHxV, log_decay_BxTxH, start_BxT):
    return [(v_BxTxHxV, k_BxTxGxK)], jnp.where(start_BxT[..., None], 0, jnp.exp(*wide(log_decay_BxTxH)))
