"""The Palimpsa scan, token after token, on a state that stays in a processor's cache.

The importance divides element by element, so a chunk has no matrix products (the exception: `shared_importance_scan`).
What can be saved is memory: the gradient keeps only the states between chunks, and recomputes those of a chunk. It
never divides by the decay, so it is right where almost everything is forgotten.

States are (H K V) here: sums over K are then sums of whole vectors.
"""

from functools import partial

import jax
import jax.numpy as jnp

from .. import backends
from ..backends import Call
from ..recurrent import exact_einsum, in_chunks, to_heads, wide
from .state import PalimpsaState

CHUNK = 32  # tokens


def supported(call: Call) -> str | None:
    """None: XLA compiles it for every platform."""
    return None


def preferred(call: Call) -> bool:
    """Everywhere: it is the last that "auto" tries."""
    return True


def _write(state, k_HxK, v_HxV, beta_HxV, decay_H):
    """(M, J) after one token."""
    decay_Hx1x1, k_HxKx1 = decay_H[:, None, None], k_HxK[..., None]
    M, J = state
    return decay_Hx1x1 * M + k_HxKx1 * v_HxV[:, None], decay_Hx1x1 * J + k_HxKx1**2 * beta_HxV[:, None]


def _sum_over_keys(K: int, term):
    """The sum of term(j) over the K keys, term by term: XLA's reduction took a CPU longer than all the rest."""
    return sum((term(j) for j in range(1, K)), term(0))


def _forward(state, inputs, prior_H):
    def token(state, now):
        q_HxK, *write = now
        M, J = _write(state, *write)
        read = lambda j: M[:, j] / (J[:, j] + prior_H[:, None]) * q_HxK[:, j, None]
        return (M, J), _sum_over_keys(q_HxK.shape[1], read)

    return jax.lax.scan(token, state, inputs)


@jax.custom_vjp
def chunk_of_sequence(state, inputs, prior_H):
    """(state, o_QxHxV). The state is (M, J), both (H K V); inputs are q, k (Q H K), v, beta (Q H V), decay (Q H)."""
    return _forward(state, inputs, prior_H)


def _backward(kept, gradients):
    """The gradients from the last token to the first; P and R are those of M and J (Bonnet et al. 2026)."""
    state, inputs, prior_H = kept
    (P, R), do_QxHxV = gradients
    before = lambda state, now: (_write(state, *now[1:]), state)
    _, states = jax.lax.scan(before, state, inputs)

    def token(carry, now):
        """P and R one token earlier, and the gradients of that token's inputs."""
        P, R, dprior_H = carry
        (M_before, J_before), (q_HxK, k_HxK, v_HxV, beta_HxV, decay_H), do_HxV = now
        M, J = _write((M_before, J_before), k_HxK, v_HxV, beta_HxV, decay_H)
        rate = 1 / (J + prior_H[:, None, None])
        mean = M * rate
        step = rate * q_HxK[..., None] * do_HxV[:, None]
        P, R = P + step, R - step * mean
        # Stored once. Otherwise XLA computes them again for each of the sums below.
        P, R, mean, rate = jax.lax.optimization_barrier((P, R, mean, rate))
        by_key = lambda x_HxKxV, y_HxV: exact_einsum("hkv,hv->hk", x_HxKxV, y_HxV)
        dq = by_key(mean, do_HxV)
        dk = by_key(P, v_HxV) + 2 * k_HxK * by_key(R, beta_HxV)
        dv = _sum_over_keys(k_HxK.shape[1], lambda j: P[:, j] * k_HxK[:, j, None])
        dbeta = _sum_over_keys(k_HxK.shape[1], lambda j: R[:, j] * k_HxK[:, j, None] ** 2)
        ddecay = jnp.sum(by_key(P * M_before + R * J_before, jnp.ones_like(v_HxV)), axis=1)
        dprior_H -= jnp.sum(q_HxK * by_key(rate * mean, do_HxV), axis=1)
        decay_Hx1x1 = decay_H[:, None, None]
        return (decay_Hx1x1 * P, decay_Hx1x1 * R, dprior_H), (dq, dk, dv, dbeta, ddecay)

    begin = (P, R, jnp.zeros_like(prior_H))
    (P, R, dprior_H), dinputs = jax.lax.scan(token, begin, (states, inputs, do_QxHxV), reverse=True)
    return (P, R), dinputs, dprior_H


chunk_of_sequence.defvjp(lambda *inputs: (_forward(*inputs), inputs), _backward)


def scan(q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, beta_BxTxHxV, decay_BxTxH, prior_H, state, *, scale: float, chunk=None):
    """As `reference.scan`."""
    T, H, _ = v_BxTxHxV.shape[1:]
    Q = min(chunk or CHUNK, T)
    q, k = to_heads(q_BxTxGxK, H), to_heads(k_BxTxGxK, H)
    q, *inputs, decay = wide(q, k, v_BxTxHxV, beta_BxTxHxV, decay_BxTxH)
    inputs = [in_chunks(x, Q) for x in (q * scale, *inputs)] + [in_chunks(decay, Q, fill=1)]
    turned = [x.swapaxes(2, 3) for x in wide(*state)]
    prior_H = prior_H.astype(turned[0].dtype)

    def sequence(state, inputs):
        state, o_NxQxHxV = jax.lax.scan(lambda state, now: chunk_of_sequence(state, now, prior_H), state, inputs)
        return state, o_NxQxHxV.reshape(-1, *o_NxQxHxV.shape[2:])[:T]

    by_sequence = tuple(turned), tuple(x.swapaxes(0, 1) for x in inputs)
    # On a CPU, one sequence after the other: the state then stays in the cache. Several devices would send each other
    # their sequences for it.
    one_by_one = backends.platform() == "cpu" and jax.device_count() == 1
    over_batch = partial(jax.lax.map, lambda x: sequence(*x)) if one_by_one else lambda x: jax.vmap(sequence)(*x)
    state, o_BxTxHxV = over_batch(by_sequence)
    return o_BxTxHxV.astype(v_BxTxHxV.dtype), PalimpsaState(*(x.swapaxes(2, 3) for x in state))
