"""MQAR, multi-query associative recall (Zoology, Arora et al. 2023, arXiv 2312.04927), as a pure function of a key.

A sequence first lists pairs, each a key and its value; afterwards every key is asked for once, among fillers:

    token    2  8  4  7  0  0  4  0  0  0  2  0
    target   -  -  -  -  -  -  7  -  -  -  8  -

The target stands where the key is asked for: the model reads the key and must say its value there. P are the pairs.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Int, Key
from cram_jax.functional.common import check_at_least_one

FILLER = 0


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MQARConfig:
    """
    vocabulary: token ids. 0 is the filler, those below half are keys, the others values.
    length: T, tokens in a sequence; at least two for each pair and two for each query.
    pairs: keys bound, and asked for, in a sequence. At length = 4 * pairs every place for a query is taken, and the
        gaps decide only which key is asked for where.
    batch: sequences.
    power: the exponent a of the gaps: the i-th place for a query is drawn in proportion to a i^(a-1), i = 1, 2, ...
        At 1 all are alike; the smaller, the nearer to the pairs, the more so for the first pair, which draws first.
    """

    vocabulary: int = 8192
    length: int = 512
    pairs: int = 128
    batch: int = 128
    power: float = 0.01

    def __post_init__(self):
        check_at_least_one(self, "pairs", "batch")
        if self.length % 2 or self.length < 4 * self.pairs:
            raise ValueError(
                f"length must be even and at least 4 * pairs, got length={self.length} and pairs={self.pairs}: "
                f"give at least {4 * self.pairs} tokens, or fewer pairs"
            )
        if self.vocabulary % 2 or self.vocabulary < 2 * (self.pairs + 1):
            raise ValueError(
                "vocabulary must be even and have a key of its own for each pair in its lower half beside the filler, "
                f"got vocabulary={self.vocabulary} and pairs={self.pairs}: give at least {2 * (self.pairs + 1)}"
            )
        if not 0 < self.power < math.inf:
            raise ValueError(f"power must be finite and above 0 (1: all gaps alike), got {self.power}")


class MQARBatch(NamedTuple):
    """A batch of sequences.

    Attributes:
      token_BxT: what the model reads.
      target_BxT: the value of the key that is asked for; -1 where nothing is asked.
    """

    token_BxT: Int[Array, "B T"]
    target_BxT: Int[Array, "B T"]


def _draw(key: Key, log_weight_N: Float[Array, "N"], count: int) -> Int[Array, "P"]:
    """Indices drawn one after the other without replacement, in that order: Gumbel top-k (Kool et al. 2019)."""
    return jax.lax.top_k(log_weight_N + jax.random.gumbel(key, log_weight_N.shape), count)[1]


def sequence(key: Key, cfg: MQARConfig) -> MQARBatch:
    """One sequence, without the batch axis; it does not depend on `cfg.batch`."""
    keys, values, gaps = jax.random.split(key, 3)
    T, P, half = cfg.length, cfg.pairs, cfg.vocabulary // 2
    key_P = 1 + _draw(keys, jnp.zeros(half - 1), P)
    value_P = half + _draw(values, jnp.zeros(half), P)
    places = (T - 2 * P) // 2
    gap_P = _draw(gaps, (cfg.power - 1) * jnp.log(jnp.arange(1.0, places + 1)), P)
    query_P = 2 * P + 2 * gap_P
    pair_2P = jnp.stack([key_P, value_P], axis=1).ravel()
    return MQARBatch(
        token_BxT=jnp.full(T, FILLER, jnp.int32).at[: 2 * P].set(pair_2P).at[query_P].set(key_P),
        target_BxT=jnp.full(T, -1, jnp.int32).at[query_P].set(value_P),
    )


def sample(key: Key, cfg: MQARConfig) -> MQARBatch:
    """A batch of sequences, a pure function of the key. jit with `cfg` static."""
    return jax.vmap(lambda k: sequence(k, cfg))(jax.random.split(key, cfg.batch))
