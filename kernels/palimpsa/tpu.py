"""The Palimpsa scan for TPUs, token after token, on a state that stays in fast memory.

The importance divides element by element, so this is work for the vector unit. A state lies (K V): keys along sublanes,
values along lanes. The kernels walk it in slabs of eight keys, for eight tokens each; a slab stays in registers
meanwhile. Sums over keys add up the slabs; the eight rows of the result are summed only at the end. A token's keys are
needed as a column: the keys of eight tokens are transposed at once.

The gradient keeps only the states before chunks. The backward pass recomputes a chunk's states and keeps those before
each eight tokens; it recomputes the ones between in registers. It never divides by the decay (`xla._backward` has the
formulas).

Verified by the interpreter and by the chips' compiler, not on a chip. By the compiler's static schedule (v5e, head
dimensions of 128) a token takes 200 instructions forward and 470 back, where some sums do not fit in registers.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ..backends import Call
from ..common import dot, pad_to, vmap_as_more_sequences
from ..recurrent import wide
from ..tpu_common import Walk, across, by_head, over_group, to_tokens, walk
from .state import PalimpsaState

CHUNK = 64  # tokens
ROWS = 8  # rows of a register: tokens, or keys of a slab


def supported(call: Call, interpret=False) -> str | None:
    """None: it compiles for every TPU, also on a machine that has none."""
    return None


def preferred(call: Call) -> bool:
    """Always: the interpreter and the chips' compiler verified it."""
    return True


def _eight(i):
    return pl.ds(pl.multiple_of(i * ROWS, ROWS), ROWS)


def _rows(x_QxV, i):
    """The rows of the i-th eight tokens, each (1 V)."""
    x_RxV = x_QxV[_eight(i)]
    return [x_RxV[j : j + 1] for j in range(ROWS)]


def _columns(x_KxR, slab, V: int):
    """The slab's keys of eight tokens, each (ROWS V): spread over the lanes once, and used many times."""
    x_RxR = x_KxR[_eight(slab)]
    return [jnp.broadcast_to(x_RxR[:, j : j + 1], (ROWS, V)) for j in range(ROWS)]


def _over_keys(x_RxV):
    return jnp.sum(x_RxV, axis=0, keepdims=True)


def _over_values(x_RxV):
    return jnp.sum(x_RxV, axis=1, keepdims=True)


def _write(state, k_RxV, v_1xV, beta_1xV, decay):
    """(M, J) of a slab after one token."""
    M, J = state
    return decay * M + k_RxV * v_1xV, decay * J + (k_RxV * k_RxV) * beta_1xV


def _forward_kernel(
    scale, decay_1xQ, prior_1x1, q_QxK, k_QxK, v_QxV, beta_QxV, M_begin, J_begin, o_QxV, M_end, J_end, *rest
):
    *before, q_KxR, k_KxR = rest
    (Q, K), V, prior = q_QxK.shape, v_QxV.shape[1], prior_1x1[0, 0]

    @pl.when(pl.program_id(2) == 0)
    def _():
        M_end[...], J_end[...] = M_begin[...], J_begin[...]

    for x, now in zip(before, (M_end, J_end), strict=False):  # `before` is empty if no states are kept
        x[...] = now[...]

    def tokens(i, _):
        q_KxR[...], k_KxR[...] = q_QxK[_eight(i)].T, k_QxK[_eight(i)].T
        v, beta = _rows(v_QxV, i), _rows(beta_QxV, i)
        decay = [decay_1xQ[0, i * ROWS + j] for j in range(ROWS)]

        def slab(s, o):
            q, k = _columns(q_KxR, s, V), _columns(k_KxR, s, V)
            state, sums = (M_end[_eight(s)], J_end[_eight(s)]), []
            for j in range(ROWS):
                M, J = state = _write(state, k[j], v[j], beta[j], decay[j])
                sums.append(o[j] + M / (J + prior) * q[j])
            M_end[_eight(s)], J_end[_eight(s)] = state
            return sums

        zero_RxV = jnp.zeros((ROWS, V), o_QxV.dtype)
        o = jax.lax.fori_loop(0, K // ROWS, slab, [zero_RxV] * ROWS)
        o_QxV[_eight(i)] = scale * jnp.concatenate([_over_keys(x) for x in o], axis=0)

    jax.lax.fori_loop(0, Q // ROWS, tokens, None)


def _backward_kernel(
    scale,
    decay_1xQ,
    prior_1x1,
    q_QxK,
    k_QxK,
    v_QxV,
    beta_QxV,
    M_begin,
    J_begin,
    do_QxV,
    dM_end,
    dJ_end,
    dq_QxK,
    dk_QxK,
    dv_QxV,
    dbeta_QxV,
    ddecay_1xQ,
    dprior_RxV,
    dM,
    dJ,
    M_kept,
    J_kept,
    q_KxR,
    k_KxR,
    dq_KxR,
    dk_KxR,
    ddecay_QxV,
):
    """dM and dJ (P and R in the formulas) stay in fast memory from one chunk to the one before."""
    (Q, K), V, prior = q_QxK.shape, v_QxV.shape[1], prior_1x1[0, 0]

    @pl.when(pl.program_id(2) == 0)  # the last chunk
    def _():
        dM[...], dJ[...] = dM_end[...], dJ_end[...]
        dprior_RxV[...] = jnp.zeros_like(dprior_RxV)

    def states(s, i, k, v, beta, decay):
        """The states of a slab: before the i-th eight tokens, and after each of them."""
        out = [(M_kept[i, _eight(s)], J_kept[i, _eight(s)])]
        for j in range(ROWS):
            out.append(_write(out[-1], k[j], v[j], beta[j], decay[j]))
        return out

    M_kept[0], J_kept[0] = M_begin[...], J_begin[...]

    def again(i, _):
        k_KxR[...] = k_QxK[_eight(i)].T
        rows = _rows(v_QxV, i), _rows(beta_QxV, i), [decay_1xQ[0, i * ROWS + j] for j in range(ROWS)]

        def slab(s, _):
            M_kept[i + 1, _eight(s)], J_kept[i + 1, _eight(s)] = states(s, i, _columns(k_KxR, s, V), *rows)[-1]

        jax.lax.fori_loop(0, K // ROWS, slab, None)

    jax.lax.fori_loop(0, Q // ROWS - 1, again, None)

    def tokens(later, _):
        """Eight tokens; the last eight come first."""
        i = Q // ROWS - 1 - later
        q_KxR[...], k_KxR[...] = q_QxK[_eight(i)].T, k_QxK[_eight(i)].T
        v, beta, do = (_rows(x, i) for x in (v_QxV, beta_QxV, do_QxV))
        do = [scale * x for x in do]
        decay = [decay_1xQ[0, i * ROWS + j] for j in range(ROWS)]

        def slab(s, carry):
            """Eight keys of these tokens: their gradients, and what they add to the sums over keys."""
            dprior, sums = carry
            q, k = _columns(q_KxR, s, V), _columns(k_KxR, s, V)
            of_slab = states(s, i, k, v, beta, decay)
            P, R, by_token = dM[_eight(s)], dJ[_eight(s)], []
            for j in reversed(range(ROWS)):
                (M_before, J_before), (M, J) = of_slab[j : j + 2]
                rate = 1 / (J + prior)
                mean = M * rate
                step = rate * q[j] * do[j]
                through_mean = step * mean
                P, R, dprior = P + step, R - through_mean, dprior - through_mean
                dq, dk = _over_values(mean * do[j]), _over_values(P * v[j] + 2 * k[j] * (R * beta[j]))
                terms = P * k[j], R * (k[j] * k[j]), P * M_before + R * J_before
                by_token.append((dq, dk, [total + x for total, x in zip(sums[j], terms, strict=True)]))
                P, R = decay[j] * P, decay[j] * R
            dM[_eight(s)], dJ[_eight(s)] = P, R
            dq, dk, sums = zip(*reversed(by_token), strict=True)
            dq_KxR[_eight(s)], dk_KxR[_eight(s)] = jnp.concatenate(dq, axis=1), jnp.concatenate(dk, axis=1)
            return dprior, list(sums)

        zero_RxV = jnp.zeros_like(dprior_RxV)
        dprior_RxV[...], sums = jax.lax.fori_loop(0, K // ROWS, slab, (dprior_RxV[...], [[zero_RxV] * 3] * ROWS))
        dq_QxK[_eight(i)], dk_QxK[_eight(i)] = dq_KxR[...].T, dk_KxR[...].T
        for x_QxV, of_tokens in zip((dv_QxV, dbeta_QxV, ddecay_QxV), zip(*sums, strict=True), strict=True):
            x_QxV[_eight(i)] = jnp.concatenate([_over_keys(x) for x in of_tokens], axis=0)

    jax.lax.fori_loop(0, Q // ROWS, tokens, None)
    # A product with ones sums over lanes, and leaves tokens along lanes
    ddecay_1xQ[...] = dot(jnp.ones((1, V), ddecay_QxV.dtype), ddecay_QxV[...], (1, 1))


class _Sizes(NamedTuple):
    scale: float
    interpret: object


def _forward(sizes: _Sizes, keep: bool, q, k, v, beta, decay, prior, M, J):
    """(o_BxHxNxQxV, M, J), and with `keep` the (M, J) before each chunk (B H N K V)."""
    B, H, N = v.shape[:3]
    q, k, v, beta = wide(q, k, v, beta)
    before = [jax.ShapeDtypeStruct((B, H, N, *x.shape[2:]), x.dtype) for x in (M, J) if keep]
    return walk(
        partial(_forward_kernel, sizes.scale),
        "palimpsa_forward",
        Walk(B, H, N, False, sizes.interpret),
        (decay, prior, q, k, v, beta, M, J),
        (*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, M, J)), *before),
        scratch=[pltpu.VMEM((q.shape[-1], ROWS), q.dtype)] * 2,
        scalars=(0, 1),
    )


def _backward(sizes: _Sizes, q, k, v, beta, decay, prior, M, J, do, dM, dJ):
    """Gradients of all inputs; M and J are the states before each chunk. dq and dk are for each head."""
    (B, H, N, Q, V), K = v.shape, q.shape[-1]
    q, k, v, beta, do = wide(q, k, v, beta, do)
    by_head = lambda x: jax.ShapeDtypeStruct((B, H, *x.shape[2:]), x.dtype)
    dprior = jax.ShapeDtypeStruct((B, H, ROWS, V), prior.dtype)
    kept, turned = pltpu.VMEM((Q // ROWS, K, V), M.dtype), pltpu.VMEM((K, ROWS), q.dtype)
    return walk(
        partial(_backward_kernel, sizes.scale),
        "palimpsa_backward",
        Walk(B, H, N, True, sizes.interpret),
        (decay, prior, q, k, v, beta, M, J, do, dM, dJ),
        (*map(by_head, (q, k, v, beta, decay)), dprior, by_head(dM), by_head(dJ)),
        scratch=(*[kept] * 2, *[turned] * 4, pltpu.VMEM((Q, V), M.dtype)),
        scalars=(0, 1),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(sizes, *inputs):
    return vmap_as_more_sequences(partial(_forward, sizes, False), inputs)


def _scan_fwd(sizes, *inputs):
    o, *end, M_before, J_before = vmap_as_more_sequences(partial(_forward, sizes, True), inputs)
    return (o, *end), (*inputs[:-2], M_before, J_before)


def _scan_bwd(sizes, kept, gradients):
    q, k, v, beta = kept[:4]
    dq, dk, dv, dbeta, ddecay, dprior, dM, dJ = vmap_as_more_sequences(partial(_backward, sizes), (*kept, *gradients))
    dv, dbeta = dv.astype(v.dtype), dbeta.astype(beta.dtype)
    dprior_BxHx1x1 = jnp.sum(dprior, axis=(2, 3), keepdims=True)
    return over_group(dq, q), over_group(dk, k), dv, dbeta, ddecay, dprior_BxHx1x1, dM, dJ


_scan.defvjp(_scan_fwd, _scan_bwd)


def scan(
    q_BxTxGxK, k_BxTxGxK, v_BxTxHxV, beta_BxTxHxV, decay_BxTxH, prior_H, state, *, scale, chunk=None, interpret=False
):
    """As `reference.scan`; `chunk` and K are padded to multiples of 8."""
    B, T, H, _ = v_BxTxHxV.shape
    Q, K = -(-min(chunk or CHUNK, T) // ROWS) * ROWS, q_BxTxGxK.shape[-1]
    decay, prior_H, *turned = wide(decay_BxTxH, prior_H, *(x.swapaxes(2, 3) for x in state))
    o, *end = _scan(
        _Sizes(scale, interpret),
        *(by_head(pad_to(x, {3: ROWS}), Q) for x in (q_BxTxGxK, k_BxTxGxK)),
        *(by_head(x, Q) for x in (v_BxTxHxV, beta_BxTxHxV)),
        across(decay, Q, fill=1),
        jnp.broadcast_to(prior_H[:, None, None], (B, H, 1, 1)),
        *(pad_to(x, {2: ROWS}) for x in turned),
    )
    return to_tokens(o, T).astype(v_BxTxHxV.dtype), PalimpsaState(*(x[:, :, :K].swapaxes(2, 3) for x in end))
