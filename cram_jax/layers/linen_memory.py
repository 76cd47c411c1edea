"""What the collections of a whole Linen model hold: its losses and counts, and the running states of its layers."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool
from cram_jax.functional import consolidation, objective, stream_memory
from cram_jax.functional.consolidation import ConsolidationState, ConsolidationStats
from cram_jax.functional.objective import MemorySums, ObjectiveConfig
from cram_jax.functional.posterior import Posterior, PosteriorSums
from cram_jax.functional.stream_memory import Misses, StreamState, StreamStats


def named(tree) -> Any:
    """A tree of NamedTuples as nested dictionaries; empty parts are left out."""
    if not hasattr(tree, "_fields"):
        return tree
    parts = {name: getattr(tree, name) for name in tree._fields}
    return {name: named(part) for name, part in parts.items() if not (isinstance(part, tuple) and not part)}


def unnamed(like, tree) -> Any:
    """`named` undone: the dictionaries as the NamedTuples of `like`."""
    if not hasattr(like, "_fields"):
        return () if isinstance(like, tuple) else tree
    return type(like)(*(unnamed(getattr(like, name), tree.get(name)) for name in like._fields))


def _found(collection: Mapping, name: str) -> list[Mapping]:
    """All dictionaries of that name in a collection, in the order of the modules' names."""
    found = []
    for key in sorted(collection):
        if key == name:
            found.append(collection[key])
        elif isinstance(collection[key], Mapping):
            found += _found(collection[key], name)
    return found


def _sums(memory: Mapping) -> MemorySums:
    """Sums of all layers, with a leading axis of layers."""
    found = [MemorySums(**one) for one in _found(memory, "sums")]
    if not found:
        raise ValueError(
            'the collection "memory" has no sums of CRAM layers: call a model that has such layers, with '
            f'mutable=["memory"]; got {sorted(memory)}'
        )
    return jax.tree.map(lambda *leaves: jnp.hstack(leaves), *found)


def memory_loss(
    memory: Mapping, price: Array | float, cfg: ObjectiveConfig | None = None
) -> tuple[Array, dict[str, Array]]:
    """Eq 8 without the task's loss, from one call of a model with CRAM layers: (loss, its parts by name).

    Args:
      memory: the collection "memory" that the call wrote.
      price: lambda_E. 0 until the release; then let it rise while your loss allows (`training/controller.py`). It is in
        units of your loss: the cost of every token attending in every layer.
      cfg: weights of the parts; the defaults of `ObjectiveConfig` if None.

    Raises:
      ValueError: for a collection without such layers.
    """
    return objective.memory_loss(_sums(memory), price, ObjectiveConfig() if cfg is None else cfg)


def attention_utilisation(memory: Mapping) -> Array:
    """Share of (token, layer) pairs that attended, audits included, from the collection "memory".

    Raises:
      ValueError: for a collection without such layers.
    """
    sums = _sums(memory)
    return jnp.sum(sums.attended) / jnp.sum(sums.tokens)


def _blank(kind, **parts):
    return kind(**dict.fromkeys(kind._fields) | parts)


# (state, stats) of a layer that consolidates, by a name that its state has, and who changes it
_MEMORY = _blank(Posterior, sums=_blank(PosteriorSums))
_STATES = {
    "released": (consolidation, _blank(ConsolidationState), _blank(ConsolidationStats)),
    "retrievals": (
        stream_memory,
        StreamState(_blank(ConsolidationState), _blank(Misses), _MEMORY),
        StreamStats(_blank(ConsolidationStats), _blank(Misses), _blank(PosteriorSums)),
    ),
}


def update(state: Mapping, memory: Mapping, axis_name: str | None = None) -> dict:
    """The collection "consolidation" after a training step, from the collection "memory" of its call.

    `axis_name` sums the statistics over that mapped axis first.
    """
    move = lambda of, state, stats, memory: of.update(state, unnamed(stats, memory["stats"]), axis_name)
    return _each_state(move, state, memory)


def release(state: Mapping, when: Array | bool = True) -> dict:
    """The collection "consolidation" with the routers deciding who attends; until then every token does."""
    return _each_state(lambda of, state, *_: of.release(state, when), state, {})


def reset(state: Mapping, fresh_B: Bool[Array, "B"]) -> dict:
    """The collection "consolidation" in which streams of the marked rows begin anew; other memories stay."""
    return _each_state(lambda of, state, *_: of.reset(state, fresh_B) if of is stream_memory else state, state, {})


def _each_state(change: Callable, state: Mapping, beside: Mapping) -> dict:
    """A collection with `change(module, state, like its statistics, beside)` in the place of each layer's state."""
    for name, (module, like, stats) in _STATES.items():
        if name in state:
            return named(change(module, unnamed(like, state), stats, beside))
    return {name: _each_state(change, part, beside.get(name, {})) for name, part in state.items()}
