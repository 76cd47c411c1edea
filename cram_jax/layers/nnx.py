"""Flax NNX faces of the functional layers: modules that hold parameters and state; the functions compute.

    model = ...                                    # a network of your own with CRAM(CRAMConfig(D=64), rngs=rngs) in it
    model.train()                                  # or layer(x, train=True)
    loss = your_loss(model(x)) + memory_loss(model, price)[0]     # inside nnx.value_and_grad
    update(model)                                  # once a training step, after the optimizer
    release(model)                                 # once your loss is flat: from then on the router decides

A block (`CRAM`, `Attention`, ...) is a whole layer with its residual connections. A mixer (`CRAMMixer`, ...) stands in
the place of an attention module: tokens in, tokens out, no residual and no feed-forward network.

Parameters are `nnx.Param`, the running state is `Consolidation`, and what a call adds up for loss and update is
`Memory`. Leaves are named as in the functional types.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from cram_jax.dims import Array, Bool, Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional import layer, objective
from cram_jax.functional.layer import Layer, LayerAux
from cram_jax.functional.objective import MemorySums, ObjectiveConfig

__all__ = [
    "CRAM", "Attention", "AttentionMixer", "Block", "CRAMMixer", "Consolidation", "Mamba2", "Mamba2Mixer", "Memory",
    "Mixer", "Palimpsa", "PalimpsaMixer", "PosteriorCRAM", "PosteriorCRAMMixer", "SeqBoat", "SeqBoatMixer", "Stack",
    "attention_utilisation", "memory_loss", "release", "reset", "update",
]  # fmt: skip

STREAM = "route"  # of random numbers: noise and audits


class Consolidation(nnx.Variable):
    """A leaf of a layer's running state: not differentiated, changed only by `update` and `release`."""


class Memory(nnx.Variable):
    """A leaf of the sums and statistics of a layer's last call."""


def _is_variable(node) -> bool:
    return isinstance(node, nnx.Variable)


def _read(tree):
    """The arrays that a tree of variables holds now."""
    return jax.tree.map(lambda variable: variable[...], tree, is_leaf=_is_variable)


def _write(variables, values) -> None:
    for variable, value in zip(jax.tree.leaves(variables, is_leaf=_is_variable), jax.tree.leaves(values), strict=True):
        variable[...] = value


class _Face(nnx.Module):
    """What blocks and mixers share.

    Args:
      streams: rows of a batch, if each is a stream with a memory of its own in a layer that has such (`PosteriorCRAM`).

    Attributes:
      cfg: the layer's configuration.
      weights: its parameters, each leaf an `nnx.Param`.
      state: its running state, each leaf a `Consolidation`; () for a layer without.
      memory: sums and statistics of the last call, each leaf a `Memory`.
      deterministic: True in evaluation; `model.train()` and `model.eval()` set it.
    """

    def __init__(self, cfg: Layer, *, rngs: nnx.Rngs, streams: int | None = None):
        self.cfg = cfg
        self.deterministic = True
        self.weights = nnx.data(jax.tree.map(nnx.Param, self._own(cfg.init(rngs.params()))))
        self.state = nnx.data(jax.tree.map(Consolidation, cfg.init_state(streams)))
        empty = lambda leaf: Memory(jnp.zeros(leaf.shape, leaf.dtype))
        self.memory = nnx.data(jax.tree.map(empty, _shapes(cfg, streams)))
        has_stream = STREAM in rngs or "default" in rngs
        self.noise = rngs[STREAM].fork() if cfg.draws and has_stream else None

    def _own(self, params):
        return params

    def _key(self, train: bool, rngs: nnx.Rngs | Key | None) -> Key | None:
        if not self.cfg.draws or not (train or rngs is not None):
            return None
        if rngs is not None:
            return rngs[STREAM]() if isinstance(rngs, nnx.Rngs) else rngs
        if self.noise is None:
            raise ValueError(
                f"{type(self).__name__} draws random numbers in training: make it with nnx.Rngs(params=0, {STREAM}=1), "
                f"or pass rngs=nnx.Rngs({STREAM}=seed)"
            )
        return self.noise()

    def __call__(
        self,
        x_BxTxD: Tokens,
        gap_BxT: Gaps | None = None,
        *,
        train: bool | None = None,
        segment_BxT: Segments | None = None,
        rngs: nnx.Rngs | Key | None = None,
    ) -> Tokens:
        """Whole sequences: tokens in, tokens of the same dtype out.

        Args:
          train: by default, what `model.train()` or `model.eval()` set last; evaluation at first.
          rngs: replaces the module's own random stream. In evaluation it switches audits on.

        Raises:
          ValueError: in training, if the layer draws random numbers and has no stream to draw from.
        """
        y_BxTxD, aux = self.with_aux(x_BxTxD, gap_BxT, train=train, segment_BxT=segment_BxT, rngs=rngs)
        _write(self.memory, (aux.stats, aux.sums))
        return y_BxTxD

    def with_aux(self, x_BxTxD, gap_BxT=None, *, train=None, segment_BxT=None, rngs=None) -> tuple[Tokens, LayerAux]:
        """As a call, but returns (tokens, aux) and changes no variable except the random stream."""
        train = not self.deterministic if train is None else train
        more = dict(gap_BxT=gap_BxT, key=self._key(train, rngs), train=train, segment_BxT=segment_BxT)
        y_BxTxD, aux = self._apply(x_BxTxD, **more)
        return y_BxTxD.astype(x_BxTxD.dtype), aux

    def init_cache(self, batch: int):
        """What `step` carries from token to token, with nothing seen yet."""
        return self.cfg.init_cache(batch)

    def step(
        self, cache, x_BxD: Token, gap_B: Gap | None = None, *, rngs: nnx.Rngs | Key | None = None
    ) -> tuple[Token, Any, LayerAux]:
        """One token, streaming: (token, cache, aux); equals the whole sequence in evaluation.

        Args:
          rngs: switches audits on. Pass the same key at every step to audit what a call with that key audits.
        """
        y_BxD, cache, aux = self._step(cache, x_BxD, gap_B=gap_B, key=self._key(False, rngs))
        return y_BxD.astype(x_BxD.dtype), cache, aux


def _shapes(cfg: Layer, streams: int | None):
    """(stats, sums) of a call, as shapes."""
    params, state = jax.eval_shape(lambda: (cfg.init(jax.random.key(0)), cfg.init_state(streams)))
    x_BxTxD = jax.ShapeDtypeStruct((streams or 1, 1, cfg.D), jnp.float32)
    aux = jax.eval_shape(lambda params, state, x: layer.apply(params, state, x, cfg=cfg)[1], params, state, x_BxTxD)
    return aux.stats, aux.sums


class Block(_Face):
    """A whole layer: the mixer with its residual connection, then the feed-forward network of most layers."""

    def _apply(self, x_BxTxD, **more):
        return layer.apply(_read(self.weights), _read(self.state), x_BxTxD, cfg=self.cfg, **more)

    def _step(self, cache, x_BxD, **more):
        return layer.step(_read(self.weights), _read(self.state), cache, x_BxD, cfg=self.cfg, **more)


class Mixer(_Face):
    """The mixer alone, in the place of an attention module: no residual, no feed-forward network.

    It normalises its input itself.
    """

    def _own(self, params):
        return self.cfg.mixer_params(params)

    def _apply(self, x_BxTxD, **more):
        return layer.apply_mixer(_read(self.weights), _read(self.state), x_BxTxD, cfg=self.cfg, **more)

    def _step(self, cache, x_BxD, **more):
        return layer.step_mixer(_read(self.weights), _read(self.state), cache, x_BxD, cfg=self.cfg, **more)


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


class Stack(nnx.Module):
    """Blocks one after the other; with `models.stack.jamba_pattern(...)` for `layers` it is Jamba.

    Attributes:
      blocks: a `Block` for each layer.
    """

    def __init__(self, layers: tuple[Layer, ...], *, rngs: nnx.Rngs, streams: int | None = None):
        self.blocks = nnx.List([Block(cfg, rngs=rngs, streams=streams) for cfg in layers])

    def __call__(self, x_BxTxD: Tokens, gap_BxT: Gaps | None = None, **more) -> Tokens:
        """Whole sequences through all blocks; arguments as of a `Block`."""
        for block in self.blocks:
            x_BxTxD = block(x_BxTxD, gap_BxT, **more)
        return x_BxTxD

    def init_cache(self, batch: int) -> list:
        """What `step` carries from token to token, with nothing seen yet."""
        return [block.init_cache(batch) for block in self.blocks]

    def step(self, caches: list, x_BxD: Token, gap_B: Gap | None = None) -> tuple[Token, list]:
        """One token through all blocks, streaming: (token, caches)."""
        after = []
        for block, cache in zip(self.blocks, caches, strict=True):
            x_BxD, cache, _ = block.step(cache, x_BxD, gap_B)
            after.append(cache)
        return x_BxD, after


def _memories(model: nnx.Module) -> list[_Face]:
    """The model's faces of layers that consolidate."""
    faces = [module for _, module in nnx.iter_modules(model) if isinstance(module, _Face)]
    return [face for face in faces if face.cfg.consolidates]


def _sums(model: nnx.Module) -> MemorySums:
    """Sums of the last call of all layers, with a leading axis of layers."""
    found = [_read(face.memory)[1] for face in _memories(model)]
    if not found:
        raise ValueError(f"a model with CRAM layers is needed; {type(model).__name__} has none")
    return jax.tree.map(lambda *leaves: jnp.hstack(leaves), *found)


def memory_loss(
    model: nnx.Module, price: Array | float, cfg: ObjectiveConfig | None = None
) -> tuple[Array, dict[str, Array]]:
    """Eq 8 without the task's loss, from the last call of all of the model's CRAM layers: (loss, its parts by name).

    Call it where you take the gradient, after the model.

    Args:
      price: lambda_E. 0 until the release; then let it rise while your loss allows (`training/controller.py`). It is in
        units of your loss: the cost of every token attending in every layer.
      cfg: weights of the parts; the defaults of `ObjectiveConfig` if None.

    Raises:
      ValueError: for a model without such layers.
    """
    return objective.memory_loss(_sums(model), price, ObjectiveConfig() if cfg is None else cfg)


def attention_utilisation(model: nnx.Module) -> Array:
    """Share of (token, layer) pairs that attended in the last call of the whole model, audits included.

    Raises:
      ValueError: for a model without such layers.
    """
    sums = _sums(model)
    return jnp.sum(sums.attended) / jnp.sum(sums.tokens)


def update(model: nnx.Module, axis_name: str | None = None) -> None:
    """Moves the running state of all of the model's layers by the statistics of their last call.

    Once a training step. `axis_name` sums the statistics over that mapped axis first.
    """
    for face in _memories(model):
        _write(face.state, face.cfg.update(_read(face.state), _read(face.memory)[0], axis_name))


def release(model: nnx.Module, when: Array | bool = True) -> None:
    """From now on the routers decide who attends; until then every token does (`consolidation.release`)."""
    for face in _memories(model):
        _write(face.state, face.cfg.release(_read(face.state), when))


def reset(model: nnx.Module, fresh_B: Bool[Array, "B"]) -> None:
    """Streams of the marked rows begin anew, in layers that have a memory for each stream."""
    for face in _memories(model):
        _write(face.state, face.cfg.reset(_read(face.state), fresh_B))
