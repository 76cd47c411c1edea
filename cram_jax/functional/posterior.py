"""Semantic memory as a posterior: Eq 4 with W_up solved from sums, and familiarity as a variance.

Eq 4 is r^S = W_up phi(address), and Eq 5 is a least-squares loss in W_up. So W_up needs no gradient. It is the mean of
a Bayesian linear regression of retrievals on features of an address, with a ridge lambda as prior:

    A = sum w phi phi^T,  C = sum w phi r^T,  P = (A + lambda I)^-1,  W_up = P C,  u(phi) = lambda phi^T P phi

u is the posterior variance of the recall over its prior variance: 1 at an address like none before, near 0 at one that
was written. It needs no retrieval. A and C are sums, so they add over tokens, micro-batches, devices and visits.

A stream (a user, a repository, a sensor) has a memory of its own, which is made of blocks (`blocks.py`). Each block is
such a regression. This file knows regressions only: arrays have their axes in front, S in names. In a layer's state
these are the streams' axes, and then that of blocks.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Key
from cram_jax.functional.checks import check_at_least_one, check_fields
from cram_jax.kernels.meshes import automatic, by_sequence


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PosteriorConfig:
    """blocks: G, regressions of a stream; 1 or even.
    features: F, random Fourier features of an address, in each of them; even, and at least G.
    bandwidth: of their Gaussian kernel, exp(-(bandwidth distance)^2 / 2) between two unit addresses.
    ridge: lambda. A first write of weight 1 leaves u = lambda / (lambda + 1).
    keep: what `update` multiplies the weights of earlier writes by, once a visit.
    """

    blocks: int = 16
    features: int = 64
    bandwidth: float = 2.5
    ridge: float = 0.03
    keep: float = 0.95

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "features", "blocks")
        if self.features % 2:
            raise ValueError(f"features must be even (a cosine and a sine of each frequency), got {self.features}")
        if self.blocks > 1 and self.blocks % 2 or self.blocks > self.features:
            raise ValueError(
                f"blocks must be 1 or even (a direction and its opposite), and at most features={self.features}, "
                f"got {self.blocks}"
            )
        if not self.ridge > 0 or not self.bandwidth > 0:
            raise ValueError(f"ridge and bandwidth must be above 0, got {self.ridge} and {self.bandwidth}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {self.keep}; 1 forgets nothing")


class PosteriorSums(NamedTuple):
    """What a set of writes adds to the memory of each stream.

    Attributes:
      A_SxFxF: sum of w phi phi^T.
      C_SxFxD: sum of w phi r^T.
    """

    A_SxFxF: Float[Array, "*streams F F"]
    C_SxFxD: Float[Array, "*streams F D"]


class Posterior(NamedTuple):
    """The memory of each stream. Only the sums are information; the rest is solved from them.

    Attributes:
      sums: A and C.
      root_SxFxF: M with M^T M = P. A square root, so that no rounding makes a variance negative.
      up_SxFxD: W_up.
      free_share: lambda tr(P) / F, the mean of u over all directions: what u is at an address like none before. 1 in an
        empty memory, near 0 in a full one.
      ridge: lambda, as configured; data, so that `update` needs no config.
      keep: likewise.
    """

    sums: PosteriorSums
    root_SxFxF: Float[Array, "*streams F F"]
    up_SxFxD: Float[Array, "*streams F D"]
    free_share: Float[Array, "*streams"]
    ridge: Float[Array, "*streams"]
    keep: Float[Array, "*streams"]


def init(D: int, cfg: PosteriorConfig, streams: tuple[int, ...] = ()) -> Posterior:
    """Nothing written: every recall is 0 and every address is new (u = 1)."""
    F = cfg.features
    ridge, keep = (jnp.full(streams, value, float) for value in (cfg.ridge, cfg.keep))
    root_SxFxF = jnp.broadcast_to(jnp.eye(F) * cfg.ridge**-0.5, (*streams, F, F))
    sums = PosteriorSums(jnp.zeros((*streams, F, F)), jnp.zeros((*streams, F, D)))
    return Posterior(sums, root_SxFxF, jnp.zeros((*streams, F, D)), jnp.ones(streams), ridge, keep)


def frequencies(key: Key, width: int, cfg: PosteriorConfig) -> Float[Array, "E R"]:
    """Random frequencies for addresses of that width, never trained."""
    return cfg.bandwidth * jax.random.normal(key, (width, cfg.features // 2))


def features(frequencies_ExR: Float[Array, "E R"], address: Float[Array, "... E"]) -> Float[Array, "... F"]:
    """phi: cosines and sines of random projections, of norm 1 (Rahimi and Recht, 2007).

    phi . phi' is about the Gaussian kernel of the two addresses.
    """
    angle = address @ frequencies_ExR
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1) * frequencies_ExR.shape[1] ** -0.5


def recall(memory: Posterior, phi_SxTxF: Float[Array, "*streams T F"]) -> Float[Array, "*streams T D"]:
    """r^S = W_up phi: what the memory believes attention would return (Eq 4)."""
    return phi_SxTxF @ memory.up_SxFxD


def uncertainty(memory: Posterior, phi_SxTxF: Float[Array, "*streams T F"]) -> Float[Array, "*streams T"]:
    """u: the posterior variance of the recall over its prior variance, above 0 and, but for rounding, at most 1."""
    half_SxTxF = phi_SxTxF @ jnp.swapaxes(memory.root_SxFxF, -1, -2)
    return memory.ridge[..., None] * jnp.sum(half_SxTxF**2, axis=-1)


def novelty(u: Float[Array, "*shape"], free: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """u over `free`, what it is at an address like none before: about 1 there, however full the memory is.

    Features of different addresses have a little in common. So each write makes the memory a little surer everywhere,
    although it has learned nothing about other addresses.
    """
    return u / free


def weight_at(
    ridge: Float[Array, "*shape"], u: Float[Array, "*shape"], free: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The weight of all writes at an address that has little to do with others: each adds w / lambda to 1 / u."""
    return jnp.maximum(ridge / u - ridge / free, 0)


def expected_error(novelty: Float[Array, "*shape"], square: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The squared distance to expect between a recall and the retrieval: novelty^3/2 (E|r|^2 + E|r^S|^2).

    At an address like none before, recall and retrieval have nothing in common. If all retrievals at an address are
    equal, the square falls as u^2 with each write: a write divides the distance by the same factor as u, 1 + w u /
    lambda. If they differ as much as lambda supposes, it falls as u. The power 3/2 was chosen between the two by
    measurement. The noise of the retrieval itself is not in it.

    Args:
      square: in brackets, the squared distance to expect at an address like none before.
    """
    return novelty**1.5 * square


def _free_share(root_SxFxF, ridge) -> Float[Array, "*streams"]:
    return ridge * jnp.sum(root_SxFxF**2, axis=(-1, -2)) / root_SxFxF.shape[-1]


def writes(
    phi_SxTxF: Float[Array, "*streams T F"],
    r_SxTxD: Float[Array, "*streams T D"],
    weight_SxT: Float[Array, "*streams T"],
) -> PosteriorSums:
    """The sums of writes with these weights. Rows of weight 0 are not looked at, NaN included. No gradient."""
    phi, r = (jnp.where(weight_SxT[..., None] != 0, a, 0) for a in (phi_SxTxF, r_SxTxD))
    weighted = jnp.swapaxes(weight_SxT[..., None] * phi, -1, -2)
    return jax.lax.stop_gradient(PosteriorSums(weighted @ phi, weighted @ r))


def solve(memory: Posterior, sums: PosteriorSums) -> Posterior:
    """The memory of these sums: root and W_up, by a Cholesky factorisation of A + lambda I.

    A is a sum of squares and lambda above 0, so the factorisation exists. In float32 it holds as long as the largest
    eigenvalue of A is below some 10^5 lambda; `keep` bounds it.
    """
    eye = jnp.eye(sums.A_SxFxF.shape[-1], dtype=sums.A_SxFxF.dtype)
    system = sums.A_SxFxF + memory.ridge[..., None, None] * eye, sums.C_SxFxD
    by_platform = lambda A, C: jax.lax.platform_dependent(A, C, cpu=_one_by_one, default=_solved)
    # The axis of streams, if there is one, is that before the blocks: each device solves those of its streams.
    of_streams = partial(by_sequence, by_platform, axis=system[0].ndim - 4)
    root, up = automatic(of_streams if system[0].ndim > 3 else by_platform, *system)
    return memory._replace(sums=sums, root_SxFxF=root, up_SxFxD=up, free_share=_free_share(root, memory.ridge))


def _solved(A_SxFxF, C_SxFxD):
    """(root of the inverse of A, W_up)."""
    F = A_SxFxF.shape[-1]
    lower = jnp.linalg.cholesky(A_SxFxF)
    eye = jnp.broadcast_to(jnp.eye(F, dtype=lower.dtype), lower.shape)
    half = jax.scipy.linalg.solve_triangular(lower, jnp.concatenate([eye, C_SxFxD], axis=-1), lower=True)
    root, half = jnp.split(half, [F], axis=-1)
    return root, jax.scipy.linalg.solve_triangular(lower, half, lower=True, trans="T")


def _one_by_one(A_SxFxF, C_SxFxD):
    """The same for CPUs, where two batches that are solved at once can wait for each other for ever.

    Each keeps a thread of XLA's pool until other threads have done its parts (jaxlib 0.10). On few cores a loop is as
    fast.
    """
    flat = lambda a: a.reshape(-1, *a.shape[-2:])
    solved = jax.lax.map(lambda system: _solved(*system), (flat(A_SxFxF), flat(C_SxFxD)))
    return tuple(a.reshape(*A_SxFxF.shape[:-2], *a.shape[1:]) for a in solved)


def update(memory: Posterior, sums: PosteriorSums) -> Posterior:
    """The memory after a visit with these writes. What was there before weighs `keep` times as much from now on.

    So what is not written again becomes uncertain, and its share of the memory is free again. What the memory believes
    stays as it is: C is changed with A, so that (A + lambda I) W_up = C holds for the same W_up. Without that, the
    ridge would pull W_up towards 0 at each visit.
    """
    keep, ridge = (of_stream[..., None, None] for of_stream in (memory.keep, memory.ridge))
    A_SxFxF = keep * memory.sums.A_SxFxF + sums.A_SxFxF
    C_SxFxD = keep * memory.sums.C_SxFxD + (1 - keep) * ridge * memory.up_SxFxD + sums.C_SxFxD
    return solve(memory, PosteriorSums(A_SxFxF, C_SxFxD))


def write_one(
    memory: Posterior,
    phi_SxF: Float[Array, "*streams F"],
    r_SxD: Float[Array, "*streams D"],
    weight_S: Float[Array, "*streams"],
) -> Posterior:
    """The memory after one write to each stream, nothing forgotten: recursive least squares in square-root form.

    It takes F (F + D) operations. In float32 its rounding adds up; the sums stay exact, so `solve` refreshes root and
    W_up, say once a visit.
    """
    sums = jax.tree.map(jnp.add, memory.sums, writes(phi_SxF[..., None, :], r_SxD[..., None, :], weight_S[..., None]))
    phi_SxF, r_SxD = (jnp.where(weight_S[..., None] != 0, a, 0) for a in (phi_SxF, r_SxD))
    half_SxF = jnp.einsum("...gf,...f->...g", memory.root_SxFxF, phi_SxF)
    across_SxF = jnp.einsum("...gf,...g->...f", memory.root_SxFxF, half_SxF)  # P phi
    variance_S = jnp.sum(half_SxF**2, axis=-1)
    grown_S = 1 + weight_S * variance_S
    # (I - shrink h h^T)^2 = I - weight / grown h h^T
    shrink_S = (1 - grown_S**-0.5) / jnp.maximum(variance_S, jnp.finfo(phi_SxF.dtype).tiny)
    root = memory.root_SxFxF - shrink_S[..., None, None] * half_SxF[..., :, None] * across_SxF[..., None, :]
    error_SxD = r_SxD - jnp.einsum("...f,...fd->...d", phi_SxF, memory.up_SxFxD)
    gain_SxF = (weight_S / grown_S)[..., None] * across_SxF
    up = memory.up_SxFxD + gain_SxF[..., :, None] * error_SxD[..., None, :]
    return memory._replace(sums=sums, root_SxFxF=root, up_SxFxD=up, free_share=_free_share(root, memory.ridge))


def reset(memory: Posterior, fresh_S: Bool[Array, "*streams"]) -> Posterior:
    """Nothing written in the marked streams; the others as they are."""
    F = memory.root_SxFxF.shape[-1]
    wide_S = fresh_S[..., None, None]
    blank = lambda a: jnp.where(wide_S, 0, a)
    empty = memory.ridge[..., None, None] ** -0.5 * jnp.eye(F, dtype=memory.root_SxFxF.dtype)
    return memory._replace(
        sums=jax.tree.map(blank, memory.sums),
        root_SxFxF=jnp.where(wide_S, empty, memory.root_SxFxF),
        up_SxFxD=blank(memory.up_SxFxD),
        free_share=jnp.where(fresh_S, 1, memory.free_share),
    )


def merge(memory: Posterior, sums: PosteriorSums) -> Posterior:
    """The memory that also holds these sums, with nothing forgotten: of another stream, or of what was saved.

    Both must be made with one configuration and one set of frequencies.
    """
    return solve(memory, jax.tree.map(jnp.add, memory.sums, sums))
