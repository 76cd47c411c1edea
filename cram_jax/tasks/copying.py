"""Selective copying as a pure function of a key: symbols scattered among blanks, then questions for them in order.

A sequence is a few rounds of it, one after the other; in each, `phrase` symbols and as many questions:

    symbol    .  c  .  .  a  f  .  b  .  .  .  .
    number    .  0  .  .  1  2  .  3  0  1  2  3
    previous  .  .  .  .  .  .  .  .  .  c  a  f
    answer    .  .  .  .  .  .  .  .  c  a  f  b

What recurs: most rounds (`recurring_share`) hold one of a fixed set of phrases, in which every symbol has one place. A
question shows the answer to the one before it, so within a recurring phrase the next symbol follows from that alone,
without looking back: this can be consolidated. What is new in each round: which phrase it is, so its first symbol has
to be looked up, and in all other rounds every symbol, drawn by chance from ids of their own. Those two kinds of
questions only a look at the round's own symbols can answer; their share of all events is the least attention there is.

Numbers go on over the sequence and are part of the events: to count is not what is asked of a model, only to find the
event of a number. Our form of the task; the paper (CRAM, section 7) names a synthetic copy task and does not define it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Int, Key
from cram_jax.functional.common import check_at_least_one


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CopyConfig:
    """
    length: T, events in a sequence; a multiple of `rounds`. batch: sequences.
    rounds: of symbols and questions, so that questions come soon after what they ask for.
    phrase: symbols in a round, and questions; the other events of a round are blanks among the symbols.
    phrases: recurring ones, the same in every sequence drawn with one table_seed.
    recurring_share: of rounds that hold one of them.
    new_symbols: ids for the other rounds' symbols.
    table_seed: what the recurring phrases are.
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
        """Ids of the recurring phrases' symbols; those of new ones come after them."""
        return self.phrases * self.phrase

    @property
    def symbols(self) -> int:
        """How many different symbols there are."""
        return self.known_symbols + self.new_symbols


class CopyBatch(NamedTuple):
    """A batch. The model may look at the first three; the others are answers, or for counting only.

    Attributes:
      symbol_BxT: the symbol an event shows; -1 for blanks and questions.
      number_BxT: of the symbol shown or asked for, counted over the sequence from 0; -1 for blanks.
      previous_BxT: at a question, the answer to the one before it in its round; -1 elsewhere.
      answer_BxT: what a question must answer; -1 elsewhere.
      is_new_BxT: a question that nothing but the round's symbols can answer.
    """

    symbol_BxT: Int[Array, "B T"]
    number_BxT: Int[Array, "B T"]
    previous_BxT: Int[Array, "B T"]
    answer_BxT: Int[Array, "B T"]
    is_new_BxT: Bool[Array, "B T"]


def phrase_table(cfg: CopyConfig) -> Int[Array, "P X"]:
    """The recurring phrases, X symbols each; every symbol is in one of them, once."""
    order = jax.random.permutation(jax.random.key(cfg.table_seed), cfg.known_symbols)
    return order.reshape(cfg.phrases, cfg.phrase)


def _round(key: Key, first: Int[Array, ""], cfg: CopyConfig) -> CopyBatch:
    """One round, whose numbers begin with `first`; without batch and sequence."""
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
    """A batch of sequences, a pure function of the key. jit with `cfg` static."""
    return jax.vmap(lambda k: _sequence(k, cfg))(jax.random.split(key, cfg.batch))
