"""The controller: it releases the router and sets the price of attention (lambda_E of Eq 8), from the task loss.

Every token attends until the smoothed task loss is flat. Then the router is released and the price begins to rise. The
price rises while the smoothed loss is within a tolerance of its best value; otherwise it falls.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Scalar
from cram_jax.functional.checks import check_at_least_one, check_fields, check_not_negative


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PriceConfig:
    """start: first step at which the router may be released.
    plateau: the router is released once the smoothed loss fell by less than this share over about 100 steps.
    top: largest price, in units of the task loss: what it costs if all tokens attend in all layers.
    ramp: number of steps in which the price rises from 0 to `top`. A third of the run gives the router time to adapt.
    tolerance: the price falls if the smoothed loss is more than this above its best value, in units of the loss. From
        `ramp` steps after the release on, the tolerance shrinks as 1 / sqrt(number of steps). So the price first
        removes attention that is of little use, and later gives way where attention was needed after all.
    smoothing: number of steps over which the loss is smoothed.
    """

    start: int = 500
    plateau: float = 0.4
    top: float = 20.0
    ramp: int = 800
    tolerance: float = 0.1
    smoothing: float = 25.0

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "ramp", "smoothing")
        check_not_negative(self, "start", "plateau", "top", "tolerance")


class PriceState(NamedTuple):
    """Attributes:
    price: current lambda_E.
    released_step: step of the release; -1 before it.
    fast, slow: task loss, averaged over about `smoothing` and 4 * `smoothing` steps.
    best: lowest `fast` since the release.
    """

    price: Float[Array, ""]
    released_step: Int[Array, ""]
    fast: Float[Array, ""]
    slow: Float[Array, ""]
    best: Float[Array, ""]

    @property
    def released(self) -> Bool[Array, "*steps"]:
        """Whether the router decides. Before the release every token attends."""
        return self.released_step >= 0


def init_price() -> PriceState:
    """Returns the state before the first step: the price is 0."""
    unseen = lambda: jnp.full((), jnp.inf, jnp.float32)  # two buffers, because the state is donated
    return PriceState(jnp.zeros(()), jnp.full((), -1, jnp.int32), unseen(), unseen(), unseen())


def update(state: PriceState, step: Int[Array, ""], loss: Scalar, cfg: PriceConfig) -> PriceState:
    """Returns the state after a training step with that task loss."""
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
