"""Selective copying, sampled as a pure function of a key: symbols among blanks, then a question for each, in order.

A sequence is several rounds, one after the other. Each round has `phrase` symbols and as many questions:

    symbol    .  c  .  .  a  f  .  b  .  .  .  .
    number    .  0  .  .  1  2  .  3  0  1  2  3
    previous  .  .  .  .  .  .  .  .  .  c  a  f
    answer    .  .  .  .  .  .  .  .  c  a  f  b

Most rounds (`recurring_share`) hold a recurring phrase, one of a fixed set. Each of its symbols occurs in one phrase
only. A question shows the answer to the question before it. So within a recurring phrase the next symbol follows from
that answer alone, and a model can learn it by heart.

All other rounds hold new symbols, drawn at random from ids of their own. Two kinds of questions can be answered only by
attention to the round's symbols: the first question of every round, and all questions about new symbols. Their share of
all events is the floor of attention.

The numbers run on through the sequence and are part of the events. So a model need not count: it has to find the event
with the same number. The paper (CRAM, section 7) names a synthetic copy task and does not define it; this form is ours.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Int, Key
from cram_jax.functional.checks import check_at_least_one, check_fields


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CopyConfig:
    """
    length: T, events in a sequence; a multiple of `rounds`.
    batch: sequences in a batch.
    rounds: rounds in a sequence. With more rounds, questions come sooner after the symbols they ask for.
    phrase: symbols in a round; as many questions follow. The other events of a round are blanks among the symbols.
    phrases: number of recurring phrases. They are the same in all sequences with one table_seed.
    recurring_share: share of the rounds that hold a recurring phrase.
    new_symbols: number of ids for the symbols of the other rounds.
    table_seed: decides the recurring phrases.
    """

    length: int = 64
    batch: int = 32
    rounds: int = 4
    phrase: int = 4
    phrases: int = 8
    recurring_share: float = 0.7
    new_symbols: int = 32
    table_seed: int = 0

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "batch", "rounds", "phrase", "phrases", "new_symbols")
        if self.length % self.rounds or self.length < 2 * self.phrase * self.rounds:
            raise ValueError(
                f"length must be a multiple of rounds with at least 2 * phrase events in each, got length={self.length}"
                f", rounds={self.rounds} and phrase={self.phrase}: give {2 * self.phrase * self.rounds} or more events"
            )
        if not 0 <= self.recurring_share <= 1:
            raise ValueError(f"recurring_share must be a share between 0 and 1, got {self.recurring_share}")

    @property
    def known_symbols(self) -> int:
        """Number of symbol ids in recurring phrases. The ids of new symbols follow them."""
        return self.phrases * self.phrase

    @property
    def symbols(self) -> int:
        """Number of different symbols."""
        return self.known_symbols + self.new_symbols


class CopyBatch(NamedTuple):
    """A batch. The model sees the first three fields; the others are answers, or for metrics only.

    Attributes:
      symbol_BxT: the symbol an event shows; -1 for blanks and questions.
      number_BxT: number of the symbol shown or asked for, counted from 0 through the sequence; -1 for blanks.
      previous_BxT: at a question, the answer to the question before it in its round; -1 elsewhere.
      answer_BxT: right answer of a question; -1 elsewhere.
      is_new_BxT: whether this is a question that can be answered only from the round's symbols.
    """

    symbol_BxT: Int[Array, "B T"]
    number_BxT: Int[Array, "B T"]
    previous_BxT: Int[Array, "B T"]
    answer_BxT: Int[Array, "B T"]
    is_new_BxT: Bool[Array, "B T"]


def phrase_table(cfg: CopyConfig) -> Int[Array, "P X"]:
    """Returns the P recurring phrases of X symbols each. Each known symbol occurs once, in one phrase."""
    order = jax.random.permutation(jax.random.key(cfg.table_seed), cfg.known_symbols)
    return order.reshape(cfg.phrases, cfg.phrase)


def _round(key: Key, first: Int[Array, ""], cfg: CopyConfig) -> CopyBatch:
    """One round, whose numbers begin with `first`. Its arrays have the axis of events only."""
    recurs, pick, fresh, scatter = jax.random.split(key, 4)
    X, asking = cfg.phrase, cfg.length // cfg.rounds - cfg.phrase
    recurring = jax.random.bernoulli(recurs, cfg.recurring_share)
    known_X = phrase_table(cfg)[jax.random.randint(pick, (), 0, cfg.phrases)]
    new_X = cfg.known_symbols + jax.random.randint(fresh, (X,), 0, cfg.new_symbols)
    symbol_X = jnp.where(recurring, known_X, new_X)
    place_X = jnp.sort(jax.random.permutation(scatter, asking)[:X])
    number_X = first + jnp.arange(X)

    nothing_T = jnp.full(asking + X, -1)
    return CopyBatch(
        symbol_BxT=nothing_T.at[place_X].set(symbol_X),
        number_BxT=nothing_T.at[place_X].set(number_X).at[asking:].set(number_X),
        previous_BxT=nothing_T.at[asking + 1 :].set(symbol_X[:-1]),
        answer_BxT=nothing_T.at[asking:].set(symbol_X),
        is_new_BxT=jnp.zeros(asking + X, bool).at[asking:].set(~recurring).at[asking].set(True),
    )


def _sequence(key: Key, cfg: CopyConfig) -> CopyBatch:
    first = cfg.phrase * jnp.arange(cfg.rounds)
    rounds = jax.vmap(lambda k, n: _round(k, n, cfg))(jax.random.split(key, cfg.rounds), first)
    return jax.tree.map(lambda leaf: leaf.reshape(cfg.length), rounds)


def sample(key: Key, cfg: CopyConfig) -> CopyBatch:
    """Samples a batch of sequences, as a pure function of the key. jit with `cfg` static."""
    return jax.vmap(lambda k: _sequence(k, cfg))(jax.random.split(key, cfg.batch))
