"""How well a layer's semantic memory replaces its retrievals: running statistics, quality (Eq 6), familiarity.

What teaches the semantic memory (Eq 5) is `semantic.distillation`.
Eq 6 compares a recall with the retrieval that it is to save, so quality is known only where a token did retrieve. The
familiarity head estimates it from the token alone. It learns from tokens that retrieved, and is used for all.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Key, Marks, Scalar, Tokens
from cram_jax.functional.checks import check_at_least_one, check_fields
from cram_jax.functional.common import FeedForward, feed_forward, init_feed_forward, silent, total, wide

LEAST_VARIANCE = 0.01  # of sigma^2


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ConsolidationConfig:
    """decay: of the running mean and variance of retrievals, per training step; 0.99 remembers about 100 steps.
    width: hidden units of the familiarity head.
    """

    decay: float = 0.99
    width: int = 64

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "width")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {self.decay}")


class ConsolidationState(NamedTuple):
    """What a layer remembers of its retrievals between steps. A leading L axis when layers are stacked.

    Attributes:
      mean_D: running mean of r^E, not yet divided by `weight`.
      square: running mean of |r^E|^2, likewise.
      weight: how much of an average the two hold, from 0 (nothing seen) to 1.
      decay: as configured; data, so that `update` needs no config.
      released: False while every token attends; the router decides once True.
    """

    mean_D: Float[Array, "*layers D"]
    square: Float[Array, "*layers"]
    weight: Float[Array, "*layers"]
    decay: Float[Array, "*layers"]
    released: Bool[Array, "*layers"]


class ConsolidationStats(NamedTuple):
    """Sums over the tokens of a batch that retrieved, audits included; they add across devices and micro-batches.

    Attributes:
      total_D: sum of r^E.
      square: sum of |r^E|^2.
      count: how many retrieved.
    """

    total_D: Float[Array, "*layers D"]
    square: Float[Array, "*layers"]
    count: Float[Array, "*layers"]


def init_state(D: int, decay: float) -> ConsolidationState:
    """Nothing seen yet; every token attends until `release`. decay: see `ConsolidationConfig`."""
    return ConsolidationState(
        jnp.zeros(D), jnp.zeros(()), jnp.zeros(()), jnp.asarray(decay, jnp.float32), jnp.zeros((), bool)
    )


def release(state: ConsolidationState, when: Bool[Array, ""] | bool = True) -> ConsolidationState:
    """From now on the router decides who attends. Never taken back."""
    return state._replace(released=state.released | when)


def variance(state: ConsolidationState) -> Float[Array, "*layers"]:
    """sigma^2 of Eq 6: the mean squared distance of retrievals from their mean; 1 before any was seen.

    It is centred: with an uncentred variance, retrievals with a large constant part would all look familiar. It is at
    least LEAST_VARIANCE: where a layer has stopped attending, retrievals become tiny. Divided by their tiny variance,
    its loss of Eq 5 would dominate the gradient of all layers.
    """
    seen = state.weight > 0
    weight = jnp.where(seen, state.weight, 1)
    centred = state.square / weight - jnp.sum((state.mean_D / weight[..., None]) ** 2, axis=-1)
    return jnp.where(seen, jnp.maximum(centred, LEAST_VARIANCE), 1)


def statistics(retrieved_BxTxD: Tokens, retrieved_BxT: Marks) -> ConsolidationStats:
    """Sums over tokens that retrieved; other rows are ignored. In float32 or wider, no gradient."""
    r_BxTxD = wide(jax.lax.stop_gradient(jnp.where(retrieved_BxT[..., None], retrieved_BxTxD, 0)))
    return ConsolidationStats(jnp.sum(r_BxTxD, axis=(0, 1)), total(r_BxTxD**2), total(retrieved_BxT))


def update(state: ConsolidationState, stats: ConsolidationStats, axis_name: str | None = None) -> ConsolidationState:
    """Moves the running mean and variance; without a retrieval nothing changes. Once a training step, after all sums.

    Args:
      axis_name: sums the statistics over that mapped axis first.
    """
    if axis_name is not None:
        stats = jax.lax.psum(stats, axis_name)
    mean_D, square, weight = running(
        (state.mean_D, state.square, state.weight), (stats.total_D, stats.square, stats.count), stats.count, state.decay
    )
    return state._replace(mean_D=mean_D, square=square, weight=weight)


def running(means, totals, count: Float[Array, "*layers"], decay: Float[Array, "*layers"]):
    """Running means after a batch with these totals over `count` tokens; unchanged if there are none.

    Means start at 0. That of 1, whose total is `count`, is what the others must be divided by.
    """
    some = count > 0
    number, rate = jnp.where(some, count, 1), jnp.where(some, 1 - decay, 0)

    def one(old, total):
        of_layer = lambda a: a.reshape(a.shape + (1,) * (old.ndim - a.ndim))
        return (old + of_layer(rate) * (total / of_layer(number) - old)).astype(old.dtype)

    return jax.tree.map(one, means, totals)


def quality(
    recalled_BxTxD: Float[Array, "*shape D"],
    retrieved_BxTxD: Float[Array, "*shape D"],
    retrieved_BxT: Bool[Array, "*shape"],
    sigma2: Scalar,
) -> Float[Array, "*shape"]:
    """exp(-|recall - retrieval|^2 / sigma^2) where a token retrieved, 0 elsewhere (Eq 6). No gradient."""
    r_BxTxD = jnp.where(retrieved_BxT[..., None], retrieved_BxTxD, 0)
    squared_error_BxT = jnp.sum((wide(recalled_BxTxD) - wide(r_BxTxD)) ** 2, axis=-1)
    return jax.lax.stop_gradient(jnp.where(retrieved_BxT, jnp.exp(-squared_error_BxT / sigma2), 0))


def init_familiarity(key: Key, D: int, cfg: ConsolidationConfig) -> FeedForward:
    """A small network from a token to the logit of its estimated quality, which starts at 1/2."""
    return silent(init_feed_forward(key, D, cfg.width, 1))


def familiarity_logit(params: FeedForward, x: Float[Array, "... D"]) -> Float[Array, "..."]:
    """Logit of q-hat, the quality that a retrieval would show, without retrieving. The token gets no gradient."""
    return feed_forward(params, jax.lax.stop_gradient(x))[..., 0]


def familiarity_loss(logit_BxT: Float[Array, "B T"], quality_BxT: Float[Array, "B T"], retrieved_BxT: Marks) -> Scalar:
    """Summed cross-entropy of q-hat against q over tokens that retrieved: its minimum is a calibrated estimate."""
    logit_BxT = wide(logit_BxT)
    return total(jax.nn.softplus(logit_BxT) - quality_BxT * logit_BxT, where=retrieved_BxT)
