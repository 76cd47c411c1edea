"""MQAR, multi-query associative recall (Zoology, Arora et al. 2023, arXiv 2312.04927), as a pure function of a key.

A sequence begins with pairs of a key and its value. Then each key appears once more, among fillers, as a query:

    token    2  8  4  7  0  0  4  0  0  0  2  0
    target   -  -  -  -  -  -  7  -  -  -  8  -

At a query the model reads the key and must predict its value, the target. P is the number of pairs.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Int, Key
from cram_jax.functional.checks import check_at_least_one, check_fields

FILLER = 0


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MQARConfig:
    """
    vocabulary: number of token ids. 0 is the filler, the other ids of the lower half are keys, the upper half values.
    length: T, tokens in a sequence; even, and at least 4 * pairs.
    pairs: P, pairs in a sequence, and queries. At length = 4 * pairs every place for a query is used, so `power` only
        decides which key stands where.
    batch: sequences in a batch.
    power: exponent a of the gap distribution. Place i = 1, 2, ... for a query is drawn with weight a i^(a-1). At 1 all
        places are equally likely. A smaller a puts queries nearer to the pairs, most of all that of the first pair,
        which draws first.
    """

    vocabulary: int = 8192
    length: int = 512
    pairs: int = 128
    batch: int = 128
    power: float = 0.01

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "pairs", "batch")
        if self.length % 2 or self.length < 4 * self.pairs:
            raise ValueError(
                f"length must be even and at least 4 * pairs, got length={self.length} and pairs={self.pairs}: "
                f"give at least {4 * self.pairs} tokens, or fewer pairs"
            )
        if self.vocabulary % 2 or self.vocabulary < 2 * (self.pairs + 1):
            raise ValueError(
                "vocabulary must be even and its lower half must hold the filler and a key for each pair, "
                f"got vocabulary={self.vocabulary} and pairs={self.pairs}: give at least {2 * (self.pairs + 1)}"
            )
        if not 0 < self.power < math.inf:
            raise ValueError(f"power must be above 0 (1: all gaps alike), got {self.power}")


class MQARBatch(NamedTuple):
    """A batch of sequences.

    Attributes:
      token_BxT: input tokens.
      target_BxT: value of the key at a query; -1 elsewhere.
    """

    token_BxT: Int[Array, "B T"]
    target_BxT: Int[Array, "B T"]


def _draw(key: Key, log_weight_N: Float[Array, "N"], count: int) -> Int[Array, "P"]:
    """Draws indices without replacement, in the order drawn: Gumbel top-k (Kool et al. 2019)."""
    return jax.lax.top_k(log_weight_N + jax.random.gumbel(key, log_weight_N.shape), count)[1]


def sequence(key: Key, cfg: MQARConfig) -> MQARBatch:
    """Samples one sequence, without the axis of the batch. It does not depend on `cfg.batch`."""
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
    """Samples a batch of sequences, as a pure function of the key. jit with `cfg` static."""
    return jax.vmap(lambda k: sequence(k, cfg))(jax.random.split(key, cfg.batch))
