"""The SSD scan in chunks: matrix products inside a chunk, and a state from one chunk to the next.

See Dao and Gu 2024, section 6. The gradient keeps the states between chunks and recomputes the rest of a chunk, so its
memory grows with T / chunk.
"""

from functools import partial

import jax
import jax.numpy as jnp

from ..backends import Call
from ..common import dot
from ..recurrent import from_chunks, in_chunks, wide

CHUNK = 32  # tokens


def supported(call: Call) -> str | None:
    """None: XLA compiles it for every platform."""
    return None


def preferred(call: Call) -> bool:
    """Everywhere: it is the last that "auto" tries."""
    return True


def chunk_of_head(state_VxK, q_QxK, k_QxK, v_QxV, log_decay_1xQ, part_1xQ):
    """(state, o_QxV) after one chunk of one head. All steps are two-dimensional: the TPU kernel is made of them, too.

    Args:
      part_1xQ: how many segments started in the chunk up to each token, that token included.
    """
    Q = q_QxK.shape[0]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (Q, Q), axis) for axis in (0, 1))
    upright = lambda x_1xQ: jnp.sum(jnp.where(row == column, x_1xQ, 0), axis=1, keepdims=True)
    # The exponent between two tokens is summed directly. As a difference of two sums from the chunk's start it would
    # lose its digits after a strong decay.
    until_t = jnp.where(column <= row, log_decay_1xQ, 0)
    between_QxQ = dot(until_t, (row > column).astype(until_t.dtype), (1, 0))
    since_start_Qx1 = jnp.sum(until_t, axis=1, keepdims=True)
    to_end_Qx1 = jnp.sum(jnp.where(column > row, log_decay_1xQ, 0), axis=1, keepdims=True)
    part_Qx1, last = upright(part_1xQ), jnp.max(part_1xQ)

    visible_QxQ = (column <= row) & (part_Qx1 == part_1xQ)
    weight_QxQ = dot(q_QxK, k_QxK, (1, 1)) * jnp.where(visible_QxQ, jnp.exp(between_QxQ), 0)
    carried_Qx1 = jnp.where(part_Qx1 == 0, jnp.exp(since_start_Qx1), 0)
    o_QxV = dot(weight_QxQ, v_QxV, (1, 0)) + carried_Qx1 * dot(q_QxK, state_VxK, (1, 1))

    left_Qx1 = jnp.where(part_Qx1 == last, jnp.exp(to_end_Qx1), 0)
    kept = jnp.where(last == 0, jnp.exp(jnp.sum(log_decay_1xQ, keepdims=True)), 0)
    return kept * state_VxK + dot(v_QxV * left_Qx1, k_QxK, (0, 0)), o_QxV


def _over_heads(f, H: int, G: int):
    """f of one head for all of a batch: (B H V K), (B Q G K) twice, (B Q H V), (B Q H) and (B Q) to (state, o)."""
    of_group = jax.vmap(f, (0, None, None, 1, 1, None), (0, 1))  # heads that share queries and keys
    of_sequence = jax.vmap(of_group, (0, 1, 1, 1, 1, None), (0, 1))

    def call(state_BxHxVxK, q, k, v, log_decay, part):
        split = lambda x, axis: x.reshape(*x.shape[:axis], G, H // G, *x.shape[axis + 1 :])
        state, o = jax.vmap(of_sequence)(split(state_BxHxVxK, 1), q, k, split(v, 2), split(log_decay, 2), part)
        return state.reshape(state_BxHxVxK.shape), o.reshape(v.shape)

    return call


def scan(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, log_decay_BxTxH, start_BxT, state_BxHxVxK, *, scale: float, chunk=None):
    """As `reference.scan`, in chunks."""
    T, H, _ = v_BxTxHxV.shape[1:]
    G = q_BxTxGxK.shape[2]
    q, k, v, log_decay, state = wide(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, log_decay_BxTxH, state_BxHxVxK)
    cut = partial(in_chunks, chunk=min(chunk or CHUNK, T))
    part = jnp.cumsum(cut(start_BxT), axis=2, dtype=jnp.int32)

    one = lambda state, q, k, v, log_decay, part: chunk_of_head(state, q, k, v, log_decay[None], part[None])
    step = _over_heads(one, H, G)
    state, o = jax.lax.scan(
        jax.checkpoint(lambda state, now: step(state, *now), prevent_cse=False),
        state,
        (*map(cut, (q * scale, k, v, log_decay)), part),
    )
    return from_chunks(o, T).astype(v_BxTxHxV.dtype), state
