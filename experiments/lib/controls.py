"""Layers to compare the one with a posterior for semantic memory with: its memory or its router is taken away."""

import dataclasses

import jax
import jax.numpy as jnp

from cram_jax.functional import consolidation
from cram_jax.functional.layer import Layer
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.functional.routing import EPISODIC, WORKING
from cram_jax.functional.stream_memory import StreamState, StreamStats
from cram_jax.functional.two_stage import Decisions


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NeverWrittenConfig(PosteriorCRAMConfig):
    """The layer without consolidation: nothing is ever written into semantic memory, in training either.

    So whether a token attends follows from the event alone.
    """

    def update(self, state: StreamState, stats: StreamStats, axis_name: str | None = None) -> StreamState:
        """The scale of retrievals, as in the other layer; the memory stays empty."""
        return state._replace(retrievals=consolidation.update(state.retrievals, stats.retrievals, axis_name))

    def lookups(self, shape: tuple[int, int], routes) -> float:
        """None: an empty memory need not be asked, so its operations are not counted."""
        return 0.0


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ByChanceConfig(NeverWrittenConfig):
    """A static router: of the tokens that would attend, chance lets a share attend. The others go without.

    The first stage of the router decides as it learned to, so chance picks among tokens that need memory. The layer
    needs a key in deployment, too, and its memory is held empty.

    Attributes:
      budget: that share.
    """

    budget: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.budget <= 1:
            raise ValueError(f"budget must be a share between 0 and 1, got {self.budget}")

    def _decide(self, params, state: StreamState, need, audited, looks, asked, uniform, coin, train) -> Decisions:
        if coin is None:
            raise ValueError("a router by chance needs random numbers: pass a key")
        made = super()._decide(params, state, need, audited, looks, asked, uniform, coin, train)
        refused = (made.choice_BxT == EPISODIC) & (coin >= self.budget)
        return made._replace(choice_BxT=jnp.where(refused, WORKING, made.choice_BxT))


def never_written(layer: Layer) -> Layer:
    """Returns that layer with a memory that is held empty, if it has one."""
    return _as(NeverWrittenConfig, layer) if isinstance(layer, PosteriorCRAMConfig) else layer


def by_chance(layer: PosteriorCRAMConfig, budget: float) -> ByChanceConfig:
    """Returns that layer with a router by chance."""
    return _as(ByChanceConfig, layer, budget=budget)


def _as(kind: type, layer: PosteriorCRAMConfig, **more):
    return kind(**{field.name: getattr(layer, field.name) for field in dataclasses.fields(layer)}, **more)
