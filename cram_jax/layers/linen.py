"""Flax Linen faces of the functional layers: modules that hold parameters and state; the functions compute.

    model = ...                       # a network of your own with CRAM(CRAMConfig(D=64), deterministic=False) in it
    logits, seen = model.apply(variables, x, rngs={"route": key}, mutable=["memory"])
    loss = your_loss(logits) + memory_loss(seen["memory"], price)[0]                      # where you take the gradient
    variables["consolidation"] = update(variables["consolidation"], seen["memory"])       # once a training step
    variables["consolidation"] = release(variables["consolidation"])                      # once your loss is flat

A block (`CRAM`, `Attention`, ...) is a whole layer with its residual connections. A mixer (`CRAMMixer`, ...) stands in
the place of an attention module: tokens in, tokens out, no residual and no feed-forward network.

Collections: "params" and "consolidation" (the running state) have a leaf for each name of the functional types.
"memory" (sums and statistics of a call) is written where it is mutable. "cache" is what `step` carries. Random numbers
come from the stream "route".
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
from flax import linen as nn

from cram_jax.dims import Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional import layer
from cram_jax.functional.layer import Layer, LayerAux
from cram_jax.layers.linen_memory import (
    attention_utilisation,
    memory_loss,
    named,
    release,
    reset,
    unnamed,
    update,
)

__all__ = [
    "CRAM", "Attention", "AttentionMixer", "Block", "CRAMMixer", "Mamba2", "Mamba2Mixer", "Mixer", "Palimpsa",
    "PalimpsaMixer", "PosteriorCRAM", "PosteriorCRAMMixer", "SeqBoat", "SeqBoatMixer", "Stack",
    "attention_utilisation", "memory_loss", "release", "reset", "update",
]  # fmt: skip

STREAM = "route"


@lru_cache
def _shapes(cfg: Layer):
    return jax.eval_shape(cfg.init, jax.random.key(0))


class _Face(nn.Module):
    """What blocks and mixers share.

    Attributes:
      cfg: the layer's configuration.
      deterministic: True in evaluation. In training the stream "route" is needed by a layer that draws random numbers,
        else Flax raises InvalidRngError; in evaluation it switches audits on.
      streams: rows of a batch, if each is a stream with a memory of its own in a layer that has such (`PosteriorCRAM`).
    """

    cfg: Layer
    deterministic: bool = True
    streams: int | None = None

    def _own(self, params):
        return params

    def setup(self):
        """Declares the parameters as named leaves, and the running state."""
        like = self._own(_shapes(self.cfg))
        names, fresh = named(like), None
        if self.is_mutable_collection("params") and not self.has_variable("params", next(iter(names))):
            fresh = named(self._own(self.cfg.init(self.make_rng("params"))))

        def part(name: str):
            """A fresh part. Where there is one already Flax asks for shapes only, and tracing `init` would be slow."""
            blank = lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
            return jax.tree.map(blank, names[name]) if fresh is None else fresh[name]

        leaves = {name: self.param(name, lambda key, name=name: part(name)) for name in names}
        self.params = unnamed(like, leaves)
        initial = self.cfg.init_state(self.streams)
        variable = lambda name, leaf: self.variable("consolidation", name, lambda: leaf).value
        held = named(initial).items() if initial else ()
        self.state = unnamed(initial, {name: variable(name, leaf) for name, leaf in held})

    def _key(self, train: bool) -> Key | None:
        return self.make_rng(STREAM) if self.cfg.draws and (train or self.has_rng(STREAM)) else None

    def __call__(
        self,
        x_BxTxD: Tokens,
        gap_BxT: Gaps | None = None,
        *,
        train: bool | None = None,
        segment_BxT: Segments | None = None,
    ) -> Tokens:
        """Whole sequences: tokens in, tokens of the same dtype out.

        Args:
          train: by default, the opposite of `deterministic`. Under `nn.remat` set `deterministic` instead.
        """
        y_BxTxD, aux = self.with_aux(x_BxTxD, gap_BxT, train=train, segment_BxT=segment_BxT)
        if aux.sums and self.is_mutable_collection("memory") and not self.is_initializing():
            self.put_variable("memory", "stats", named(aux.stats))
            self.put_variable("memory", "sums", named(aux.sums))
        return y_BxTxD

    def with_aux(self, x_BxTxD, gap_BxT=None, *, train=None, segment_BxT=None) -> tuple[Tokens, LayerAux]:
        """As a call, but returns (tokens, aux) and writes no variable."""
        train = not self.deterministic if train is None else train
        more = dict(gap_BxT=gap_BxT, key=self._key(train), train=train, segment_BxT=segment_BxT)
        y_BxTxD, aux = self._apply(x_BxTxD, **more)
        return y_BxTxD.astype(x_BxTxD.dtype), aux

    def step(self, x_BxD: Token, gap_B: Gap | None = None) -> tuple[Token, LayerAux]:
        """One token, streaming: (token, aux); equals the whole sequence in evaluation. Needs mutable=["cache"].

        A missing "cache" is an empty one; `init(..., method="step")` makes it, for loops that need it from the start.
        Pass the same "route" key at every step to audit what a call with that key audits.
        """
        cache = self.get_variable("cache", "stream")
        if cache is None:
            cache = self.cfg.init_cache(x_BxD.shape[0])
        y_BxD, after, aux = self._step(cache, x_BxD, gap_B=gap_B, key=self._key(train=False))
        self.put_variable("cache", "stream", cache if self.is_initializing() else after)
        return y_BxD.astype(x_BxD.dtype), aux


class Block(_Face):
    """A whole layer: the mixer with its residual connection, then the feed-forward network of most layers."""

    def _apply(self, x_BxTxD, **more):
        return layer.apply(self.params, self.state, x_BxTxD, cfg=self.cfg, **more)

    def _step(self, cache, x_BxD, **more):
        return layer.step(self.params, self.state, cache, x_BxD, cfg=self.cfg, **more)


class Mixer(_Face):
    """The mixer alone, in the place of an attention module: no residual, no feed-forward network.

    It normalises its input itself.
    """

    def _own(self, params):
        return self.cfg.mixer_params(params)

    def _apply(self, x_BxTxD, **more):
        return layer.apply_mixer(self.params, self.state, x_BxTxD, cfg=self.cfg, **more)

    def _step(self, cache, x_BxD, **more):
        return layer.step_mixer(self.params, self.state, cache, x_BxD, cfg=self.cfg, **more)


class CRAM(Block):
    """`functional.cram`, configured by `CRAMConfig`."""


class CRAMMixer(Mixer):
    """The three memories of `functional.cram`, configured by `CRAMConfig`."""


class PosteriorCRAM(Block):
    """`functional.posterior_cram`, configured by `PosteriorCRAMConfig`."""


class PosteriorCRAMMixer(Mixer):
    """The three memories of `functional.posterior_cram`, configured by `PosteriorCRAMConfig`."""


class Attention(Block):
    """`functional.attention`, the transformer layer, configured by `AttentionConfig`."""


class AttentionMixer(Mixer):
    """Causal attention, configured by `AttentionConfig`."""


class Mamba2(Block):
    """`functional.mamba2`, configured by `Mamba2Config`; with `rank` above 0 MetaMamba2."""


class Mamba2Mixer(Mixer):
    """Mamba-2 without its residual, configured by `Mamba2Config`."""


class Palimpsa(Block):
    """`functional.palimpsa`, configured by `PalimpsaConfig`."""


class PalimpsaMixer(Mixer):
    """Palimpsa's memory, configured by `PalimpsaConfig`."""


class SeqBoat(Block):
    """`functional.seqboat`, configured by `SeqBoatConfig`."""


class SeqBoatMixer(Mixer):
    """SeqBoat's recurrent memory and selected attention, configured by `SeqBoatConfig`."""


class Stack(nn.Module):
    """Blocks one after the other; with `models.stack.jamba_pattern(...)` for `layers` it is Jamba.

    Attributes:
      layers: the configuration of each block.
      deterministic, streams: as of a `Block`.
    """

    layers: tuple[Layer, ...]
    deterministic: bool = True
    streams: int | None = None

    def setup(self):
        more = dict(deterministic=self.deterministic, streams=self.streams)
        self.blocks = [Block(cfg, **more) for cfg in self.layers]

    def __call__(self, x_BxTxD: Tokens, gap_BxT: Gaps | None = None, **more) -> Tokens:
        """Whole sequences through all blocks; arguments as of a `Block`."""
        for block in self.blocks:
            x_BxTxD = block(x_BxTxD, gap_BxT, **more)
        return x_BxTxD

    def step(self, x_BxD: Token, gap_B: Gap | None = None) -> Token:
        """One token through all blocks, streaming; needs mutable=["cache"]."""
        for block in self.blocks:
            x_BxD, _ = block.step(x_BxD, gap_B)
        return x_BxD
