"""The controller: when the router is released, and the price of attention (lambda_E of Eq 8), from the task loss.

Every token attends until the smoothed task loss is flat. Then the router is released and the price rises. It goes on
rising while the smoothed loss stays within a tolerance of its best value, and falls while it does not.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Scalar
from cram_jax.functional.common import check_at_least_one


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PriceConfig:
    """start: first step at which the router may be released.
    plateau: it is released once the smoothed loss fell by less than this share over about 100 steps.
    top: largest price of all tokens attending in all layers, in units of the task loss.
    ramp: steps from 0 to `top`; a third of a run lets the router settle at each price.
    tolerance: distance of the smoothed loss from its best, in units of the loss, above which the price falls. `ramp`
        steps after the release it begins to shrink, as one over the root of the steps. So the price first drives out
        attention that is not needed much, and then gives way where attention was needed after all.
    smoothing: steps over which the loss is smoothed.
    """

    start: int = 500
    plateau: float = 0.4
    top: float = 20.0
    ramp: int = 800
    tolerance: float = 0.1
    smoothing: float = 25.0

    def __post_init__(self):
        check_at_least_one(self, "ramp", "smoothing")


class PriceState(NamedTuple):
    """Attributes:
    price: lambda_E now.
    released_step: the step of the release; -1 before it.
    fast, slow: task loss, averaged over about 1 and 4 times `smoothing` steps.
    best: lowest `fast` since the release.
    """

    price: Float[Array, ""]
    released_step: Int[Array, ""]
    fast: Float[Array, ""]
    slow: Float[Array, ""]
    best: Float[Array, ""]

    @property
    def released(self) -> Bool[Array, "*steps"]:
        """Whether the router decides; before, every token attends."""
        return self.released_step >= 0


def init_price() -> PriceState:
    """No price, and no loss seen."""
    unseen = lambda: jnp.full((), jnp.inf, jnp.float32)  # a buffer each: the state is donated
    return PriceState(jnp.zeros(()), jnp.full((), -1, jnp.int32), unseen(), unseen(), unseen())


def update(state: PriceState, step: Int[Array, ""], loss: Scalar, cfg: PriceConfig) -> PriceState:
    """The state after a training step with that task loss."""
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
    return PriceState(price.astype(jnp.float32), released_step.astype(jnp.int32), fast, slow, best)
