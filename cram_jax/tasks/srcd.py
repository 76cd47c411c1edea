"""SRCD, sparse retrieval in continuous dynamics: the paper's task (CRAM, section 6) as a pure function of a key.

A sequence is a stream of T events. Each event has the time gap since the event before, and the previous value of a
noisy linear process; the model predicts the new value. Some events also bind a key to an answer. Others ask for the
answer of a key that was bound earlier in the sequence. Most bindings recur in all sequences; the others are new.

The paper gives the process, the gaps, the shares and the number of patterns. It leaves open what is marked (ours).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Key, Scalar
from cram_jax.functional.checks import check_at_least_one, check_fields, check_shares

OBSERVATION, BINDING, QUERY = 0, 1, 2


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SRCDConfig:
    """
    length: T, events in a sequence (the paper: 2048).
    batch: sequences in a batch.
    query_share: share of events that are queries (the paper: 5%).
    binding_share: share of events that are bindings (ours): three for each query, so most are never asked for.
    new_share: share of bindings that are new (the paper: 30%).
    patterns: number of recurring bindings (the paper: 100). All sequences with one table_seed have the same.
    answers: number of possible answers (ours). A guess is right once in 64.
    new_keys: keys of new bindings (ours). "disjoint": ids of their own, so the key itself shows that it is new.
        "shared": ids of patterns, another subset in each sequence, so only the context shows it.
    new_key_ids: number of ids for disjoint new keys (ours): more than a sequence of 2048 needs (92 +- 9).
    decay: factor on the previous value of the process in a step (the paper: 0.95).
    drive: beta, amplitude of the gap's effect on a step (ours): 5 times the noise.
    frequency: omega, in radians per unit of time (ours). At 2 the drive has a mean of only 0.1, so the process stays
        around 0 (mean 1.4, deviation 1.0), and half of all gaps lie in the first half wave.
    noise: standard deviation of the random part of a step (ours). Its square is the least possible mean squared error.
    gap_tail: Pareto index of the gaps, which are at least 1 (the paper: 1.5).
    table_seed: decides the answers of the recurring patterns (ours).
    changed: number of patterns with another answer than table_seed gives (ours): the first ones. With it, a trained
        model meets a world that has changed.
    """

    length: int = 256
    batch: int = 16
    query_share: float = 0.05
    binding_share: float = 0.15
    new_share: float = 0.30
    patterns: int = 100
    answers: int = 64
    new_keys: str = "disjoint"
    new_key_ids: int = 400
    decay: float = 0.95
    drive: float = 0.5
    frequency: float = 2.0
    noise: float = 0.1
    gap_tail: float = 1.5
    table_seed: int = 0
    changed: int = 0

    def __post_init__(self):
        check_fields(self)
        if self.new_keys not in ("disjoint", "shared"):
            raise ValueError(f"new_keys must be 'disjoint' or 'shared', got {self.new_keys!r}")
        check_at_least_one(self, "batch", "answers", "new_key_ids")
        if self.length < 2:
            raise ValueError(f"length must be at least 2, got {self.length}")
        if self.gap_tail <= 0 or self.noise < 0:
            raise ValueError(f"gap_tail must be above 0 and noise at least 0, got {self.gap_tail} and {self.noise}")
        check_shares(self, "query_share", "binding_share", "new_share", "decay")
        if self.query_share * self.length / (self.length - 1) + self.binding_share > 1:
            raise ValueError(f"query_share and binding_share leave no room: {self.query_share} + {self.binding_share}")
        if self.new_share < 1 and self.patterns < 1:
            raise ValueError("patterns must be at least 1 unless new_share is 1")
        if not 0 <= self.changed <= self.patterns or (self.changed and self.answers < 2):
            raise ValueError(
                f"changed must be between 0 and patterns, and leave another answer to take, got {self.changed} with "
                f"patterns={self.patterns} and answers={self.answers}"
            )
        if self.new_keys == "shared" and min(self.patterns, self.answers) < 2:
            raise ValueError(
                "new_keys='shared' rebinds the patterns' ids to other answers: patterns and answers must be at least "
                f"2, got {self.patterns} and {self.answers}"
            )

    @property
    def key_ids(self) -> int:
        """Number of different keys."""
        return self.patterns + (self.new_key_ids if self.new_keys == "disjoint" else 0)


class SRCDBatch(NamedTuple):
    """A batch. The model sees the first five fields; the others are answers, or for metrics only.

    Attributes:
      kind_BxT: OBSERVATION, BINDING or QUERY.
      key_BxT: the key bound or asked for; -1 for an observation.
      value_BxT: the answer that a binding gives its key; -1 elsewhere.
      previous_BxT: value of the process at the previous event (0 before the first).
      gap_BxT: time since the previous event, at least 1.
      answer_BxT: right answer of a query; -1 elsewhere.
      target_BxT: value of the process at this event, to be predicted.
      is_new_BxT: whether this is a query of a new binding.
      pattern_BxT: the recurring pattern of a query or binding; -1 for none.
    """

    kind_BxT: Int[Array, "B T"]
    key_BxT: Int[Array, "B T"]
    value_BxT: Int[Array, "B T"]
    previous_BxT: Float[Array, "B T"]
    gap_BxT: Float[Array, "B T"]
    answer_BxT: Int[Array, "B T"]
    target_BxT: Float[Array, "B T"]
    is_new_BxT: Bool[Array, "B T"]
    pattern_BxT: Int[Array, "B T"]


def answer_table(cfg: SRCDConfig) -> Int[Array, "P"]:
    """The answers of the recurring patterns; the same for every sequence."""
    return drawn_answers(jax.random.key(cfg.table_seed), cfg, cfg.changed)


def drawn_answers(key: Key, cfg: SRCDConfig, changed: int | Int[Array, ""]) -> Int[Array, "P"]:
    """An answer for each pattern; the first `changed` patterns have another one than they have at changed = 0."""
    table_P = jax.random.randint(key, (cfg.patterns,), 0, cfg.answers)
    shift_P = jax.random.randint(jax.random.fold_in(key, 1), (cfg.patterns,), 1, max(cfg.answers, 2))
    return jnp.where(jnp.arange(cfg.patterns) < changed, (table_P + shift_P) % cfg.answers, table_P)


def _bindings(key: Key, cfg: SRCDConfig, binding_T, table_P, recurring):
    """(key, value, is new) of every event, meaningful where it binds."""
    pick, renew, order, answer = jax.random.split(key, 4)
    T, P = cfg.length, cfg.patterns
    pattern_T = jax.random.randint(pick, (T,), 0, jnp.maximum(recurring, 1))
    if cfg.new_keys == "shared":  # a subset of the ids gets another answer in this sequence
        rebound_P = jax.random.permutation(order, P) < round(cfg.new_share * P)
        shift_P = jax.random.randint(answer, (P,), 1, cfg.answers)
        value_P = jnp.where(rebound_P, (table_P + shift_P) % cfg.answers, table_P)
        return pattern_T, value_P[pattern_T], rebound_P[pattern_T]
    new_T = jax.random.bernoulli(renew, cfg.new_share, (T,)) & binding_T
    rank_T = jnp.cumsum(new_T) - 1
    if cfg.patterns:
        new_T = new_T & (rank_T < cfg.new_key_ids)  # no fresh id is left: take a recurring one
    fresh_key_T = P + jax.random.permutation(order, cfg.new_key_ids)[rank_T % cfg.new_key_ids]
    fresh_value_T = jax.random.randint(answer, (cfg.new_key_ids,), 0, cfg.answers)[fresh_key_T - P]
    recurring_T = table_P[pattern_T] if P else fresh_value_T
    return jnp.where(new_T, fresh_key_T, pattern_T), jnp.where(new_T, fresh_value_T, recurring_T), new_T


def _process(key: Key, cfg: SRCDConfig):
    """(gap, value before, value after) of the continuous process at each event."""
    gaps, noise = jax.random.split(key)
    gap_T = jax.random.pareto(gaps, cfg.gap_tail, (cfg.length,))
    kick_T = cfg.drive * jnp.sin(cfg.frequency * gap_T) + cfg.noise * jax.random.normal(noise, (cfg.length,))

    def event(v: Scalar, kick: Scalar):
        after = cfg.decay * v + kick
        return after, (v, after)

    _, (previous_T, target_T) = jax.lax.scan(event, jnp.zeros(()), kick_T)
    return gap_T, previous_T, target_T


def sequence(key: Key, cfg: SRCDConfig, table_P: Int[Array, "P"], recurring: int | Int[Array, ""]) -> SRCDBatch:
    """One sequence, without the axis of the batch. Pattern p has the answer table_P[p]; the first `recurring` of the
    patterns are bound and asked for, each alike."""
    kinds, bindings, asked, process = jax.random.split(key, 4)
    T = cfg.length
    # The first event binds, so that every later query can be answered; queries make up for that one place.
    uniform_T = jax.random.uniform(kinds, (T,)).at[0].set(1.0)
    query_T = uniform_T < cfg.query_share * T / (T - 1)
    binding_T = ((uniform_T >= 1 - cfg.binding_share) & ~query_T).at[0].set(True)
    key_T, value_T, new_T = _bindings(bindings, cfg, binding_T, table_P, recurring)

    # A query asks for one of the bindings before it, each alike.
    place_T = jnp.sort(jnp.where(binding_T, jnp.arange(T), T))
    earlier_T = jnp.cumsum(binding_T)  # bindings so far; a query is none itself
    nth_T = jnp.minimum((jax.random.uniform(asked, (T,)) * earlier_T).astype(jnp.int32), earlier_T - 1)
    source_T = jnp.where(query_T, place_T[nth_T], jnp.arange(T))

    is_new_T = new_T[source_T]
    has_key_T = query_T | binding_T
    gap_T, previous_T, target_T = _process(process, cfg)
    return SRCDBatch(
        kind_BxT=jnp.where(query_T, QUERY, jnp.where(binding_T, BINDING, OBSERVATION)),
        key_BxT=jnp.where(has_key_T, key_T[source_T], -1),
        value_BxT=jnp.where(binding_T, value_T, -1),
        previous_BxT=previous_T,
        gap_BxT=gap_T,
        answer_BxT=jnp.where(query_T, value_T[source_T], -1),
        target_BxT=target_T,
        is_new_BxT=query_T & is_new_T,
        pattern_BxT=jnp.where(has_key_T & ~is_new_T, key_T[source_T], -1),
    )


def sample(key: Key, cfg: SRCDConfig) -> SRCDBatch:
    """A batch of sequences, a pure function of the key. jit with `cfg` static."""
    table_P = answer_table(cfg)
    return jax.vmap(lambda k: sequence(k, cfg, table_P, cfg.patterns))(jax.random.split(key, cfg.batch))
