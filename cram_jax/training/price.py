"""The price of attention: lambda_E of Eq 8 as a state that follows the task loss.

Every token attends until there is something to consolidate. Then the router is released and the price ramps. It goes
on rising while the smoothed task loss stays within a tolerance of the best it was, and falls back while it does not.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Scalar
from cram_jax.functional.common import at_least_one


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PriceConfig:
    """start: first step at which the router may be released.
    plateau: it is released once the smoothed loss fell by less than this share over about 100 steps.
    top: largest price, for every token attending in every layer, in units of the task loss.
    ramp: steps from 0 to `top`; a third of a run lets the router settle at each price.
    tolerance: how far the smoothed loss may stand above its best, in units of the loss; beyond, the price backs off.
        Once the ramp could be over it shrinks as one over the root of the steps since the release: first the price
        drives attention out wherever it is not needed much, then it gives way to where it was needed after all.
    smoothing: of the loss, in steps.
    """

    start: int = 500
    plateau: float = 0.4
    top: float = 20.0
    ramp: int = 800
    tolerance: float = 0.1
    smoothing: float = 25.0

    def __post_init__(self):
        at_least_one(self, "ramp", "smoothing")


class PriceState(NamedTuple):
    """Attributes:
    price: lambda_E now.
    released: the router decides; False while every token attends.
    released_step: when that was; -1 before.
    fast, slow: task loss, averaged over about 1 and 4 times `smoothing` steps.
    best: lowest `fast` since the release.
    """

    price: Float[Array, ""]
    released: Bool[Array, ""]
    released_step: Int[Array, ""]
    fast: Float[Array, ""]
    slow: Float[Array, ""]
    best: Float[Array, ""]


def init_price() -> PriceState:
    """No price, and no loss seen."""
    unseen = lambda: jnp.full((), jnp.inf, jnp.float32)  # a buffer each: the state is donated
    return PriceState(jnp.zeros(()), jnp.zeros((), bool), jnp.full((), -1, jnp.int32), unseen(), unseen(), unseen())


def update(state: PriceState, step: Int[Array, ""], loss: Scalar, cfg: PriceConfig) -> PriceState:
    """After a training step with that task loss."""
    blend = lambda mean, steps: jnp.where(jnp.isfinite(mean), mean + (loss - mean) / steps, loss)
    fast, slow = blend(state.fast, cfg.smoothing), blend(state.slow, 4 * cfg.smoothing)
    flat = fast > (1 - cfg.plateau) * slow
    released = state.released | ((step >= cfg.start) & flat)
    best = jnp.where(state.released, jnp.minimum(state.best, fast), fast)
    pace = cfg.top / cfg.ramp
    since = jnp.where(state.released, step - state.released_step, 0)
    tolerance = cfg.tolerance * jnp.sqrt(cfg.ramp / jnp.maximum(since, cfg.ramp))
    move = jnp.where(fast <= best + tolerance, pace, -2 * pace)
    price = jnp.where(state.released, jnp.clip(state.price + move, 0, cfg.top), 0)
    released_step = jnp.where(released & ~state.released, step, state.released_step)
    return PriceState(price.astype(jnp.float32), released, released_step.astype(jnp.int32), fast, slow, best)
