"""What the memory of a stream learns from a visit: who writes what, with which weight, and the state after it."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float
from cram_jax.functional import consolidation, posterior
from cram_jax.functional.addressed import Lookup
from cram_jax.functional.consolidation import ConsolidationState, ConsolidationStats
from cram_jax.functional.posterior import Posterior, PosteriorSums
from cram_jax.functional.routing import SEMANTIC, WORKING
from cram_jax.functional.two_stage import Decisions

LEAST = 1e-6  # smallest divisor


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """first, growth: a retrieval is written with the weight first + growth times what is at its address already.
        So what is met once takes little of the memory, and a new value outweighs the one that it contradicts.
    most: the largest weight of a write. Many tokens may write at one address in one visit. Without a bound each of them
        would multiply what is there.
    rehearsal: weight of the write of a token that semantic memory answered. It writes its own recall again, so what
        is used stays, and what is not fades.
    decay: of the running mean and variance of retrievals, per visit; 0.99 remembers about 100 visits.
    """

    first: float = 0.2
    growth: float = 2.0
    most: float = 5.0
    rehearsal: float = 0.5
    decay: float = 0.99

    def __post_init__(self):
        if not self.first > 0:
            raise ValueError(f"first must be above 0, got {self.first}; with 0 nothing is ever written")
        if self.most < self.first:
            raise ValueError(f"most must be at least first, got {self.most} and {self.first}")
        if self.growth < 0 or self.rehearsal < 0:
            raise ValueError(f"growth and rehearsal must be at least 0, got {self.growth} and {self.rehearsal}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")


class StreamState(NamedTuple):
    """Attributes:
    retrievals: their running mean and variance, and whether the router decides.
    memory: semantic memory, with an axis of streams if each sequence of a batch has its own.
    """

    retrievals: ConsolidationState
    memory: Posterior


class StreamStats(NamedTuple):
    """What a visit teaches. Sums: they add over tokens and micro-batches.

    Attributes:
      retrievals: sums of what was retrieved.
      written: sums of what is written into semantic memory, for each sequence.
    """

    retrievals: ConsolidationStats
    written: PosteriorSums


def beside(of_stream: Array, of_token: Array) -> Array:
    """Reshapes a number for each stream, or one for all, so that it broadcasts against numbers for each token."""
    axes = (1,) * (of_token.ndim - of_stream.ndim) if of_stream.ndim else ()
    return of_stream.reshape(of_stream.shape + axes)


def lessons(
    state: StreamState,
    made: Decisions,
    found: Bool[Array, "*shape"],
    r: Float[Array, "*shape D"],
    asked: Lookup,
    cfg: LearningConfig,
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape D"]]:
    """(weight, value) of what each token writes. No gradient.

    A token that was routed to attention and found something writes its retrieval. A token that semantic memory answered
    writes what it recalled, or its retrieval if it was audited. Others write nothing, and nobody before the release.
    """
    needs = (made.choice_BxT != WORKING) & state.retrievals.released
    rehearses = needs & (made.choice_BxT == SEMANTIC) & ~made.audited_BxT
    # u = lambda / (lambda + w) after writes of weight w at an address of its own
    there = beside(state.memory.ridge, asked.u_BxT) * (1 / jnp.maximum(asked.u_BxT, LEAST) - 1)
    retrieved = jnp.minimum(cfg.first + cfg.growth * there, cfg.most)
    weight = jnp.where(rehearses, cfg.rehearsal, jnp.where(found & needs, retrieved, 0))
    value = jnp.where(rehearses[..., None], posterior.unbiased(asked.recalled_BxTxD, asked.u_BxT), r)
    return jax.lax.stop_gradient((weight, value))


def quality(state: StreamState, found: Bool[Array, "*shape"], r: Float[Array, "*shape D"], asked: Lookup):
    """(q-hat of tokens that looked something up, q of those that also retrieved); 0 for others.

    q-hat is Eq 6 with the expected squared error, u E|r|^2, in the place of the error.
    """
    sigma2 = consolidation.variance(state.retrievals)
    squared = state.retrievals.square / jnp.maximum(state.retrievals.weight, LEAST)
    looked = asked.u_BxT > 0
    familiarity = jax.lax.stop_gradient(jnp.where(looked, jnp.exp(-asked.u_BxT * squared / sigma2), 0))
    return familiarity, consolidation.quality(asked.recalled_BxTxD, r, found & looked, sigma2)


def update(state: StreamState, stats: StreamStats, axis_name: str | None = None) -> StreamState:
    """The state after a visit: what is there fades a little, and what was written is added.

    If one memory serves all sequences, their writes are added up. Works with an axis of layers in front.

    Args:
      axis_name: adds the sums over that mapped axis first; of memories that serve all sequences only, since others
        belong to their device.
    """
    written = stats.written
    if state.memory.ridge.ndim < written.A_SxFxF.ndim - 2:
        written = jax.tree.map(lambda a: jnp.sum(a, axis=-3), written)
        written = written if axis_name is None else jax.lax.psum(written, axis_name)
    # Until the release nothing is written, so nothing is solved. All layers of a stack are released together.
    solve = lambda: posterior.update(state.memory, written)
    memory = jax.lax.cond(jnp.any(state.retrievals.released), solve, lambda: state.memory)
    return StreamState(consolidation.update(state.retrievals, stats.retrievals, axis_name), memory)
