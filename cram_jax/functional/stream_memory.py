"""What the memory of a stream learns from a visit: who writes what, with which weight, and the state after it.

A server keeps the states of many streams as one. `streams_at` takes out those of a batch and `put_streams` puts them
back. Only sums are saved; `merge` adds them to a memory, which may be an empty one.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Float, Int
from cram_jax.functional import consolidation, posterior
from cram_jax.functional.addressed import Lookup
from cram_jax.functional.checks import check_fields
from cram_jax.functional.common import total, wide
from cram_jax.functional.consolidation import ConsolidationState, ConsolidationStats
from cram_jax.functional.posterior import Posterior, PosteriorSums
from cram_jax.functional.routing import SEMANTIC, WORKING
from cram_jax.functional.two_stage import Decisions

LEAST = 1e-6  # smallest divisor
SURE = 0.1  # where novelty is below this, what is left of the error is the retrievals' noise


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class LearningConfig:
    """first, growth: a retrieval is written with the weight first + growth times what is at its address already.
        One write is enough to be recalled (u = lambda / (lambda + first)), but little beside what is written again and
        again, so what is met once fades soon. A new value outweighs the one that it contradicts, 8 to 1.
    most: the largest weight of a write. Many tokens may write at one address in one visit. Without a bound each of them
        would multiply what is there.
    rehearsal: weight of the write of a kept event whose own value is what semantic memory recalls at its address. So
        what comes again stays, and what does not fades. It writes its value, not the recall: recalls that are written
        again and again drift away from what was retrieved.
    shown: weight of the write of a kept event whose own value the memory does not recall: it recalls nothing, or
        another value. Above 0, a binding is learned when it is shown, without being asked for; 0 learns only what was
        retrieved.
    decay: of the running mean and variance of retrievals, per visit; 0.99 remembers about 100 visits.
    """

    first: float = 0.2
    growth: float = 8.0
    most: float = 20.0
    rehearsal: float = 0.5
    shown: float = 0.0
    decay: float = 0.99

    def __post_init__(self):
        check_fields(self)
        if not self.first > 0:
            raise ValueError(f"first must be above 0, got {self.first}; with 0 nothing is ever written")
        if self.most < self.first:
            raise ValueError(f"most must be at least first, got {self.most} and {self.first}")
        if min(self.growth, self.rehearsal, self.shown) < 0:
            raise ValueError(
                f"growth, rehearsal and shown must be at least 0, got {self.growth}, {self.rehearsal} and {self.shown}"
            )
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")

    @property
    def own_weights(self) -> tuple[float, float]:
        """Weights of an event's own value, where that is recalled already and where it is not (`addressed.told`)."""
        return self.rehearsal, self.shown


class Misses(NamedTuple):
    """How far semantic memory's answers were from the retrievals, where they were audited and the memory was sure.

    Attributes:
      square: squared distance, less what `posterior.expected_error` expects. In a batch its sum; in a state its running
        mean, not yet divided by `count`.
      count: such answers. In a state how much of an average `square` holds, from 0 (nothing seen) to 1.
    """

    square: Float[Array, "*layers"]
    count: Float[Array, "*layers"]


class StreamState(NamedTuple):
    """Attributes:
    retrievals: running mean and variance of those of tokens that need memory, and whether the router decides.
    misses: what is known of the noise of retrievals.
    memory: semantic memory, with an axis of streams if each sequence of a batch has its own.
    """

    retrievals: ConsolidationState
    misses: Misses
    memory: Posterior


class StreamStats(NamedTuple):
    """What a visit teaches. Sums: they add over tokens and micro-batches.

    Attributes:
      retrievals: sums of what tokens that need memory retrieved.
      misses: of answers that were audited.
      written: sums of what is written into semantic memory, for each sequence if each has a memory of its own.
    """

    retrievals: ConsolidationStats
    misses: Misses
    written: PosteriorSums


def init_state(D: int, memory: Posterior, cfg: LearningConfig) -> StreamState:
    """Nothing seen yet, and this memory."""
    return StreamState(consolidation.init_state(D, cfg.decay), Misses(jnp.zeros(()), jnp.zeros(())), memory)


def weights(
    state: StreamState, made: Decisions, found: Bool[Array, "*shape"], asked: Lookup, cfg: LearningConfig
) -> Float[Array, "*shape"]:
    """The weight with which each token writes its retrieval into semantic memory. No gradient.

    Tokens that need memory and found something write, also those that semantic memory answered and that were audited.
    Others have the weight 0, and so has every token before the release.
    """
    writes = found & (made.choice_BxT != WORKING) & state.retrievals.released
    says = asked.answer
    there = posterior.weight_at(says.ridge, jnp.maximum(says.u, LEAST), jnp.maximum(says.free, LEAST))
    return jax.lax.stop_gradient(jnp.where(writes, jnp.minimum(cfg.first + cfg.growth * there, cfg.most), 0))


def statistics(
    state: StreamState,
    made: Decisions,
    r: Float[Array, "*shape D"],
    found: Bool[Array, "*shape"],
    asked: Lookup,
    written: PosteriorSums,
) -> StreamStats:
    """What a batch teaches, given what each sequence writes."""
    if _shared(state):
        written = jax.tree.map(lambda a: jnp.sum(a, axis=0), written)
    checked = found & (made.choice_BxT == SEMANTIC) & (novelty(asked) < SURE)
    error = jnp.sum((asked.answer.recalled - wide(r)) ** 2, axis=-1) - expected_error(state, asked)
    missed = Misses(total(error, where=checked), total(checked))
    counts = found & (made.choice_BxT != WORKING)
    retrieved = consolidation.statistics(*((r, counts) if counts.ndim > 1 else (r[:, None], counts[:, None])))
    return StreamStats(retrieved, jax.lax.stop_gradient(missed), written)


def noise(state: StreamState) -> Float[Array, "*layers"]:
    """By how much retrievals at one address differ, as a squared distance; 0 before an answer was audited."""
    return jnp.maximum(state.misses.square / jnp.maximum(state.misses.count, LEAST), 0)


def novelty(asked: Lookup) -> Float[Array, "*shape"]:
    """How little is known at each address, from 0 to about 1 (`posterior.novelty`); 0 for tokens that did not ask."""
    return posterior.novelty(asked.answer.u, jnp.maximum(asked.answer.free, LEAST))


def expected_error(state: StreamState, asked: Lookup) -> Float[Array, "*shape"]:
    """Squared distance to expect between recalls and retrievals that are equal but for their noise.

    A recall at an address like none before has the mean square |W_up|^2 / F, here of all blocks of a stream.
    """
    square = state.retrievals.square / jnp.maximum(state.retrievals.weight, LEAST)
    up_SxFxD, new = state.memory.up_SxFxD, novelty(asked)
    recalled_S = jnp.mean(jnp.sum(up_SxFxD**2, axis=(-1, -2)) / up_SxFxD.shape[-2], axis=-1)
    of_token = recalled_S.reshape(recalled_S.shape + (1,) * (new.ndim - recalled_S.ndim if recalled_S.ndim else 0))
    return posterior.expected_error(new, jnp.broadcast_to(square + of_token, new.shape))


def quality(state: StreamState, found: Bool[Array, "*shape"], r: Float[Array, "*shape D"], asked: Lookup):
    """(q-hat of tokens that looked something up, q of those that also retrieved); 0 for others.

    q-hat is Eq 6 with the expected squared error in the place of the error.
    """
    sigma2 = consolidation.variance(state.retrievals)
    looked = asked.answer.u > 0
    expected = expected_error(state, asked) + noise(state)
    familiarity = jax.lax.stop_gradient(jnp.where(looked, jnp.exp(-expected / sigma2), 0))
    return familiarity, consolidation.quality(asked.answer.recalled, r, found & looked, sigma2)


def update(state: StreamState, stats: StreamStats, axis_name: str | None = None) -> StreamState:
    """The state after a visit: what is there fades a little, and what was written is added.

    Works with an axis of layers in front.

    Args:
      axis_name: adds the sums over that mapped axis first; of memories that serve all sequences only, since others
        belong to their device.
    """
    written = stats.written
    if _shared(state) and axis_name is not None:
        written = jax.lax.psum(written, axis_name)
    # Until the release nothing is written, so nothing is solved. All layers of a stack are released together.
    solve = lambda: posterior.update(state.memory, written)
    memory = jax.lax.cond(jnp.any(state.retrievals.released), solve, lambda: state.memory)
    retrievals = consolidation.update(state.retrievals, stats.retrievals, axis_name)
    missed = stats.misses if axis_name is None else jax.lax.psum(stats.misses, axis_name)
    misses = consolidation.running(state.misses, missed, missed.count, state.retrievals.decay)
    return StreamState(retrievals, misses, memory)


def release(state: StreamState, when: Bool[Array, "*layers"] | bool = True) -> StreamState:
    """From now on the router decides who attends, and what is retrieved is consolidated."""
    return state._replace(retrievals=consolidation.release(state.retrievals, when))


def reset(state: StreamState, fresh_S: Bool[Array, "S"]) -> StreamState:
    """The marked streams begin anew."""
    fresh = jnp.broadcast_to(fresh_S[..., None], state.memory.ridge.shape)
    return state._replace(memory=posterior.reset(state.memory, fresh))


def _shared(state: StreamState) -> bool:
    """Whether one memory serves all sequences."""
    return state.memory.ridge.ndim == state.retrievals.released.ndim + 1


def streams_at(state: StreamState, id_B: Int[Array, "B"]) -> StreamState:
    """The state of these streams, in this order. What all streams share is in it, too.

    Raises:
      ValueError: if one memory serves all streams, or an id is not one of theirs. The values of ids are checked on
        concrete arrays only. Under jit the memory of an id that is too large is NaN.
    """
    axis = _streams_axis(state, id_B)
    return state._replace(memory=jax.tree.map(lambda leaf: jnp.take(leaf, id_B, axis=axis), state.memory))


def put_streams(state: StreamState, id_B: Int[Array, "B"], of_B: StreamState) -> StreamState:
    """The state in which these streams have the memories of `of_B`. What all streams share is that of `of_B`.

    Donate `state` to jit: then it is changed in place, in a time that does not grow with the number of streams.

    Args:
      id_B: each id once. Under jit, which one of two memories for one id stays is not defined.

    Raises:
      ValueError: as `streams_at`, for an id that is there twice, and unless `of_B` has a memory for each id.
    """
    axis, count = _streams_axis(state, id_B), len(id_B)
    if _shared(of_B) or of_B.memory.ridge.shape[axis] != count:
        raise ValueError(f"of_B must have a memory for each of {count} ids, got {of_B.memory.ridge.shape[axis:-1]}")
    if not isinstance(id_B, jax.core.Tracer) and len(np.unique(id_B)) < count:
        raise ValueError(f"id_B must have each id once, got {np.asarray(id_B)}; a stream has one visit at a time")
    at = (*[slice(None)] * axis, id_B)
    return of_B._replace(memory=jax.tree.map(lambda leaf, new: leaf.at[at].set(new), state.memory, of_B.memory))


def _streams_axis(state: StreamState, id_B: Int[Array, "B"]) -> int:
    axis = state.retrievals.released.ndim
    if _shared(state):
        raise ValueError("state has one memory for all streams; make it with init_state(streams=N) or for_streams")
    streams = state.memory.ridge.shape[axis]
    if not isinstance(id_B, jax.core.Tracer) and np.any((np.asarray(id_B) < 0) | (np.asarray(id_B) >= streams)):
        raise ValueError(
            f"id_B must be from 0 to {streams - 1} for a state of {streams} streams, got {np.asarray(id_B)}"
        )
    return axis


def merge(state: StreamState, learned: PosteriorSums) -> StreamState:
    """The state whose memories also hold these sums, stream by stream: what was saved, or what other streams learned.

    Memories of the same parameters only: features of an address must be the same.

    Raises:
      ValueError: for sums of another shape.
    """
    wanted, found = (tuple(a.shape for a in sums) for sums in (state.memory.sums, learned))
    if wanted != found:
        raise ValueError(f"learned must have the shapes of the state's own sums, {wanted}, got {found}")
    return state._replace(memory=posterior.merge(state.memory, learned))
