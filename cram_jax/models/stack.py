"""A stack of layers: a pattern of layers that is repeated. It has the same methods as a single layer.

`Stack((CRAMConfig(),), 2)` is two CRAM layers. Jamba (Lieber et al. 2024) is `Stack(jamba_pattern(...))`: one layer of
attention among several of Mamba-2. The task gives the embedding before the stack and the read-out after it.

Parameters, states, caches and aux are tuples with one entry for each place of the pattern. In an entry of parameters,
states or aux each leaf has a leading axis of repeats. An entry of caches is a tuple with one cache for each repeat,
because slices of a common array would be copied for every token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Gap, Gaps, Int, Key, Segments, Token, Tokens
from cram_jax.functional import layer as layers_of
from cram_jax.functional.checks import check_at_least_one
from cram_jax.functional.layer import Layer, LayerAux, Operations
from cram_jax.functional.objective import MemorySums
from cram_jax.kernels.meshes import constrained
from cram_jax.models import fsdp


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Stack:
    """layers: the pattern, configurations of layers of one width.
    repeats: how often the pattern is repeated.
    rolled: whether `apply` is compiled once for all repeats, which takes less time to compile, and more to run.
    remat: whether gradients recompute a repeat instead of keeping what it computed: less memory, more time. Only with
      `rolled` did it save memory on a CPU.
    """

    layers: tuple[Layer, ...]
    repeats: int = 1
    rolled: bool = False
    remat: bool = False

    def __post_init__(self):
        if not self.layers or not all(isinstance(layer, Layer) for layer in self.layers):
            raise TypeError(f"layers must be a tuple of configurations, such as (CRAMConfig(),), got {self.layers}")
        if len({layer.D for layer in self.layers}) > 1:
            raise ValueError(f"all layers must have one width, got D={[layer.D for layer in self.layers]}")
        check_at_least_one(self, "repeats")

    @property
    def D(self) -> int:
        """Width of the tokens."""
        return self.layers[0].D

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.layers) * self.repeats

    @property
    def consolidates(self) -> bool:
        """Whether any layer learns from its own retrievals."""
        return any(layer.consolidates for layer in self.layers)

    def replace(self, change) -> "Stack":
        """Returns the stack with `change(layer)` in place of each layer's configuration."""
        return dataclasses.replace(self, layers=tuple(change(layer) for layer in self.layers))

    def patterns(self, name: str) -> tuple[str, ...]:
        """Returns the layers' patterns `name`, "no_decay" or "taught", with the place in front: "0.semantic.*"."""
        return tuple(f"{i}.{one}" for i, layer in enumerate(self.layers) for one in getattr(layer, name))

    def init(self, key: Key) -> tuple:
        """Draws the parameters of all layers."""
        keys = jax.random.split(key, self.depth).reshape(self.repeats, len(self.layers))
        return tuple(jax.vmap(layer.init)(keys[:, place]) for place, layer in enumerate(self.layers))

    def init_state(self, streams: int | None = None) -> tuple:
        """Returns the initial states of all layers; `streams`: see `Layer.init_state`."""
        repeat = lambda leaf: jnp.repeat(leaf[None], self.repeats, axis=0)
        return tuple(jax.tree.map(repeat, layer.init_state(streams)) for layer in self.layers)

    def init_cache(self, batch: int) -> tuple:
        """Returns empty streaming caches of all layers."""
        return tuple(tuple(layer.init_cache(batch) for _ in range(self.repeats)) for layer in self.layers)

    def apply(
        self,
        params: tuple,
        states: tuple,
        x_BxTxD: Tokens,
        *,
        gap_BxT: Gaps | None = None,
        key: Key | None = None,
        train: bool = False,
        segment_BxT: Segments | None = None,
    ) -> tuple[Tokens, tuple[LayerAux, ...]]:
        """Applies all layers to whole sequences: returns (tokens, aux)."""

        def pattern(x_BxTxD, repeat):
            params, states, index = repeat
            params, auxes = fsdp.gathered(params), []
            x_BxTxD = constrained(x_BxTxD, "BTD")
            for place, layer in enumerate(self.layers):
                x_BxTxD, aux = layers_of.apply(
                    params[place],
                    states[place],
                    x_BxTxD,
                    cfg=layer,
                    gap_BxT=gap_BxT,
                    key=self._key(key, index, place),
                    train=train,
                    segment_BxT=segment_BxT,
                )
                auxes.append(aux)
            return x_BxTxD, tuple(auxes)

        if self.remat:
            pattern = jax.checkpoint(pattern)
        repeats = params, states, jnp.arange(self.repeats)
        return jax.lax.scan(pattern, x_BxTxD, repeats, unroll=not self.rolled)

    def _key(self, key: Key | None, repeat, place: int) -> Key | None:
        """A separate key for each layer, from its number in the network."""
        return None if key is None else jax.random.fold_in(key, repeat * len(self.layers) + place)

    def step(
        self, params: tuple, states: tuple, caches: tuple, x_BxD: Token, *, gap_B: Gap | None = None, key=None
    ) -> tuple[Token, tuple, tuple[LayerAux, ...]]:
        """Applies all layers to the next token of a stream: returns (token, caches, aux)."""
        after, auxes = [[] for _ in self.layers], [[] for _ in self.layers]
        for repeat in range(self.repeats):
            for place, layer in enumerate(self.layers):
                own, state = jax.tree.map(lambda leaf, repeat=repeat: leaf[repeat], (params[place], states[place]))
                cache, layer_key = caches[place][repeat], self._key(key, repeat, place)
                x_BxD, cache, aux = layers_of.step(own, state, cache, x_BxD, cfg=layer, gap_B=gap_B, key=layer_key)
                after[place].append(cache)
                auxes[place].append(aux)
        stacked = tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *repeats) for repeats in auxes)
        return x_BxD, tuple(map(tuple, after)), stacked

    def rollout(
        self, params: tuple, states: tuple, caches: tuple, x_BxTxD: Tokens, *, gap_BxT: Gaps | None = None, key=None
    ) -> tuple[Tokens, tuple, tuple[LayerAux, ...]]:
        """Applies `step` to T tokens of a stream: returns (tokens, caches, aux with a leading axis T in each leaf).

        Its memory does not grow with the length of the stream, only with T. Donate the caches to jit, so that they are
        updated in place: `jax.jit(stack.rollout, donate_argnums=2)`.
        """

        def one(caches, now):
            x_BxD, gap_B = now
            y_BxD, caches, aux = self.step(params, states, caches, x_BxD, gap_B=gap_B, key=key)
            return caches, (y_BxD, aux)

        gap_BxT = jnp.ones(x_BxTxD.shape[:2], x_BxTxD.dtype) if gap_BxT is None else gap_BxT
        over_time = (x_BxTxD.swapaxes(0, 1), gap_BxT.T)
        caches, (y_TxBxD, aux) = jax.lax.scan(one, caches, over_time)
        return y_TxBxD.swapaxes(0, 1), caches, aux

    def update(self, states: tuple, aux: tuple[LayerAux, ...], axis_name: str | None = None) -> tuple:
        """Returns the states after a training step. Call it once a step, with aux summed over all micro-batches."""
        of_layers = zip(self.layers, states, aux, strict=True)
        return tuple(layer.update(state, one.stats, axis_name) for layer, state, one in of_layers)

    def for_streams(self, states: tuple, streams: int) -> tuple:
        """Returns the states for that many fresh streams; what layers keep of all streams together stays."""
        return tuple(layer.for_streams(state, streams) for layer, state in zip(self.layers, states, strict=True))

    def reset(self, states: tuple, fresh_S: Bool[Array, "S"]) -> tuple:
        """States in which the marked streams begin anew."""
        return tuple(layer.reset(state, fresh_S) for layer, state in zip(self.layers, states, strict=True))

    def streams_at(self, states: tuple, id_B: Int[Array, "B"]) -> tuple:
        """Returns the states of these streams, for a batch of them (`Layer.streams_at`).

        Raises:
          ValueError: for an id that is no stream's, if ids are concrete.
        """
        return tuple(layer.streams_at(state, id_B) for layer, state in zip(self.layers, states, strict=True))

    def put_streams(self, states: tuple, id_B: Int[Array, "B"], of_B: tuple) -> tuple:
        """Returns the states in which these streams have the memories of `of_B` (`Layer.put_streams`).

        Donate `states` to jit, so that they are changed in place.

        Raises:
          ValueError: for an id that is no stream's or is there twice, if ids are concrete.
        """
        of_layers = zip(self.layers, states, of_B, strict=True)
        return tuple(layer.put_streams(state, id_B, new) for layer, state, new in of_layers)

    def learned(self, states: tuple) -> tuple:
        """Returns what has to be saved of the streams' memories (`Layer.learned`)."""
        return tuple(layer.learned(state) for layer, state in zip(self.layers, states, strict=True))

    def merge(self, states: tuple, learned: tuple) -> tuple:
        """Returns the states whose memories also hold what was learned there (`Layer.merge`)."""
        of_layers = zip(self.layers, states, learned, strict=True)
        return tuple(layer.merge(state, sums) for layer, state, sums in of_layers)

    def release(self, states: tuple, when: Bool[Array, ""] | bool = True) -> tuple:
        """Returns states in which the routers are released, if `when` is true."""
        return tuple(layer.release(state, when) for layer, state in zip(self.layers, states, strict=True))

    def sums(self, aux: tuple[LayerAux, ...]) -> MemorySums | None:
        """Returns the sums of all layers with a loss of their own, with a leading axis of layers; None without any."""
        found = [one.sums for one in aux if one.sums]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *found) if found else None

    def routes(self, aux: tuple[LayerAux, ...]) -> list[tuple[Layer, Any]]:
        """Returns (layer, routes) of each layer that decides which tokens attend, in the order of the network."""
        found = [(layer, one.routes) for layer, one in zip(self.layers, aux, strict=True) if one.routes]
        at = lambda routes, repeat: jax.tree.map(lambda leaf: leaf[repeat], routes)
        return [(layer, at(routes, repeat)) for repeat in range(self.repeats) for layer, routes in found]

    def operations(self, aux: tuple[LayerAux, ...], shape: tuple[int, int], train: bool) -> Operations:
        """Returns the operations that all layers executed for inputs of shape (batch, length)."""
        attention, total = jnp.zeros(()), jnp.zeros(())
        for layer, one in zip(self.layers, aux, strict=True):
            of = lambda routes, layer=layer: layer.operations(shape, routes, train)
            if one.routes:
                counted = jax.tree.map(jnp.sum, jax.vmap(of)(one.routes))
            else:
                counted = Operations(*(self.repeats * jnp.asarray(x, jnp.float32) for x in of(())))
            attention, total = attention + counted.attention, total + counted.total
        return Operations(attention, total)


def jamba_pattern(recurrent: Layer, attention: Layer, before: int = 4, after: int = 3) -> tuple[Layer, ...]:
    """Returns Jamba's pattern of layers (Lieber et al. 2024, arXiv 2403.19887): attention among recurrent layers.

    Unlike the paper's, it has no mixture of experts, and a feed-forward network after attention only.

    Args:
      recurrent: configuration of the recurrent layers.
      attention: configuration of the attention layer.
      before, after: number of recurrent layers before and after attention.
    """
    return (*[recurrent] * before, attention, *[recurrent] * after)
