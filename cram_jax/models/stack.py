"""A network's trunk: equal layers in a stack, with the contract of a single layer.

Parameters and states carry a leading L axis. Streaming caches are a tuple with one per layer: taken out of an array and
put back, each would be copied for every token. The task gives the embedding before and the read-out after.
"""

import dataclasses
from types import ModuleType

import jax
import jax.numpy as jnp

from cram_jax.dims import Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional import attention, cram, jamba, mamba2, palimpsa, seqboat
from cram_jax.functional.common import at_least_one

LAYERS: dict[type, ModuleType] = {
    cram.CRAMConfig: cram,
    attention.AttentionConfig: attention,
    mamba2.Mamba2Config: mamba2,
    palimpsa.PalimpsaConfig: palimpsa,
    jamba.JambaConfig: jamba,
    seqboat.SeqBoatConfig: seqboat,
}
Layer = (
    cram.CRAMConfig
    | attention.AttentionConfig
    | mamba2.Mamba2Config
    | palimpsa.PalimpsaConfig
    | jamba.JambaConfig
    | seqboat.SeqBoatConfig
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Stack:
    """layer: configuration of each layer; its type says which. depth: L."""

    layer: Layer
    depth: int = 2

    def __post_init__(self):
        if type(self.layer) not in LAYERS:
            raise TypeError(f"layer must be one of {[c.__name__ for c in LAYERS]}, got {type(self.layer).__name__}")
        at_least_one(self, "depth")

    @property
    def functions(self) -> ModuleType:
        """The module that holds the layer's init, apply and step."""
        return LAYERS[type(self.layer)]

    @property
    def routes(self) -> bool:
        """Whether the layers decide who attends (their aux then has routes)."""
        return self.functions in (cram, seqboat)

    @property
    def consolidates(self) -> bool:
        """Whether the layers learn from what they retrieved (their aux then has stats and sums, too)."""
        return self.functions is cram

    def _repeat(self, tree):
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], self.depth, axis=0), tree)

    def init(self, key: Key):
        """Parameters of all layers."""
        return jax.vmap(lambda k: self.functions.init(k, self.layer))(jax.random.split(key, self.depth))

    def init_state(self):
        """States of all layers."""
        return self._repeat(self.functions.init_state(self.layer))

    def init_cache(self, batch: int):
        """Streaming caches, one per layer."""
        return tuple(self.functions.init_cache(self.layer, batch) for _ in range(self.depth))

    def apply(
        self,
        params,
        states,
        x_BxTxD: Tokens,
        *,
        gap_BxT: Gaps | None = None,
        key: Key | None = None,
        train: bool = False,
        segment_BxT: Segments | None = None,
    ):
        """Layer after layer over whole sequences: (tokens, aux with a leading L axis)."""

        def one(x_BxTxD, per_layer):
            params, state, index = per_layer
            layer_key = None if key is None else jax.random.fold_in(key, index)
            return self.functions.apply(
                params,
                state,
                x_BxTxD,
                cfg=self.layer,
                gap_BxT=gap_BxT,
                key=layer_key,
                train=train,
                segment_BxT=segment_BxT,
            )

        return jax.lax.scan(one, x_BxTxD, (params, states, jnp.arange(self.depth)), unroll=True)

    def step(self, params, states, caches, x_BxD: Token, *, gap_B: Gap | None = None, key: Key | None = None):
        """Layer after layer for one token: (token, caches, aux with a leading L axis)."""
        after, auxes = [], []
        for index, cache in enumerate(caches):
            layer_params, state = jax.tree.map(lambda leaf, i=index: leaf[i], (params, states))
            layer_key = None if key is None else jax.random.fold_in(key, index)
            x_BxD, cache, aux = self.functions.step(
                layer_params, state, cache, x_BxD, cfg=self.layer, gap_B=gap_B, key=layer_key
            )
            after.append(cache)
            auxes.append(aux)
        return x_BxD, tuple(after), jax.tree.map(lambda *leaves: jnp.stack(leaves), *auxes)

    def rollout(self, params, states, caches, x_BxTxD: Tokens, *, gap_BxT: Gaps | None = None, key: Key | None = None):
        """`step` over a piece of a stream: (tokens, caches, aux with T and L axes in front of each leaf).

        Memory is that of the caches and of the piece, however long the stream. Donate the caches where it is jitted:
        `jax.jit(stack.rollout, donate_argnums=2)` then writes them in place.
        """

        def one(caches, now):
            x_BxD, gap_B = now
            y_BxD, caches, aux = self.step(params, states, caches, x_BxD, gap_B=gap_B, key=key)
            return caches, (y_BxD, aux)

        gap_BxT = jnp.ones(x_BxTxD.shape[:2], x_BxTxD.dtype) if gap_BxT is None else gap_BxT
        over_time = (x_BxTxD.swapaxes(0, 1), gap_BxT.T)
        caches, (y_TxBxD, aux) = jax.lax.scan(one, caches, over_time)
        return y_TxBxD.swapaxes(0, 1), caches, aux
