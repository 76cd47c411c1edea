"""Flax NNX faces of the functional layers: they hold parameters and state, the functions compute.

    rngs = nnx.Rngs(params=0, route=1)
    layer = CRAM(CRAMConfig(D=64), rngs=rngs)
    y_BxTxD, aux = layer(x_BxTxD, gap_BxT, train=True, rngs=rngs)  # in the loss, which takes layer and rngs
    layer.update(aux.stats)  # once a training step, after nnx.value_and_grad

Parameters are `nnx.Param` leaves and the running state `Consolidation` leaves, named as in the functional types. A call
reads them and changes nothing, so a module may be used inside any transformation, `jax.grad` over `nnx.merge` included.
"""

from types import ModuleType
from typing import Any, ClassVar

import jax
from flax import nnx

from cram_jax.dims import Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional import attention, consolidation, cram, mamba2, palimpsa

__all__ = ["CRAM", "Attention", "Consolidation", "Mamba2", "Palimpsa"]


class Consolidation(nnx.Variable):
    """A leaf of a layer's `ConsolidationState`: not differentiated, changed only by `update` and `release`."""


def _is_variable(node) -> bool:
    return isinstance(node, nnx.Variable)


def _read(tree):
    """The arrays that a tree of variables holds now."""
    return jax.tree.map(lambda variable: variable[...], tree, is_leaf=_is_variable)


class _Layer(nnx.Module):
    """One layer of the shared contract (`init`, `init_state`, `init_cache`, `apply`, `step`).

    Attributes:
      cfg: the functional layer's configuration.
      params: its parameters, each leaf an `nnx.Param`.
      state: its state, each leaf a `Consolidation`; () for a layer without.
    """

    functional: ClassVar[ModuleType]
    stream: ClassVar[str | None] = None  # the random stream it draws from, if it draws at all

    def __init__(self, cfg, *, rngs: nnx.Rngs):
        self.cfg = cfg
        self.params = nnx.data(jax.tree.map(nnx.Param, self.functional.init(rngs.params(), cfg)))
        self.state = nnx.data(jax.tree.map(Consolidation, self.functional.init_state(cfg)))

    def _key(self, rngs: nnx.Rngs | Key | None) -> Key | None:
        if self.stream is None or rngs is None:
            return None
        return rngs[self.stream]() if isinstance(rngs, nnx.Rngs) else rngs

    def __call__(
        self,
        x_BxTxD: Tokens,
        gap_BxT: Gaps | None = None,
        *,
        train: bool = False,
        segment_BxT: Segments | None = None,
        rngs: nnx.Rngs | Key | None = None,
    ) -> tuple[Tokens, Any]:
        """A whole sequence: the functional layer's `apply`, with its (tokens, aux).

        Args:
          rngs: randomness of a layer that draws any, from its stream "route", or a key. In training it is needed
            (noise and audits); in evaluation it switches audits on.

        Raises:
          ValueError: in training without the `rngs` the layer needs.
        """
        if train and self.stream is not None and rngs is None:
            raise ValueError(
                f"{type(self).__name__} needs rngs where train=True, got None: pass nnx.Rngs({self.stream}=seed)"
            )
        return self.functional.apply(
            _read(self.params),
            _read(self.state),
            x_BxTxD,
            cfg=self.cfg,
            gap_BxT=gap_BxT,
            key=self._key(rngs),
            train=train,
            segment_BxT=segment_BxT,
        )

    def init_cache(self, batch: int):
        """What `step` carries from token to token, with nothing seen yet."""
        return self.functional.init_cache(self.cfg, batch)

    def step(
        self, cache, x_BxD: Token, gap_B: Gap | None = None, *, rngs: nnx.Rngs | Key | None = None
    ) -> tuple[Token, Any, Any]:
        """One token, streaming: (token, cache, aux); equals the whole sequence in evaluation.

        Args:
          rngs: switches audits on. Pass the same key at every step to audit what a call with that key audits.
        """
        return self.functional.step(
            _read(self.params), _read(self.state), cache, x_BxD, cfg=self.cfg, gap_B=gap_B, key=self._key(rngs)
        )


class CRAM(_Layer):
    """`functional.cram`; aux is a `CRAMAux`. Configured by `CRAMConfig`."""

    functional = cram
    stream = "route"

    def _write(self, state: consolidation.ConsolidationState) -> None:
        variables = jax.tree.leaves(self.state, is_leaf=_is_variable)
        for variable, value in zip(variables, jax.tree.leaves(state), strict=True):
            variable[...] = value

    def update(self, stats: consolidation.ConsolidationStats, axis_name: str | None = None) -> None:
        """Once a training step, with `aux.stats`: moves the running state (`consolidation.update`)."""
        self._write(consolidation.update(_read(self.state), stats, axis_name))

    def release(self, when=True) -> None:
        """From now on the router decides who attends; until then every token does (`consolidation.release`)."""
        self._write(consolidation.release(_read(self.state), when))


class Attention(_Layer):
    """`functional.attention`, the transformer layer to compare with; aux is (). Configured by `AttentionConfig`."""

    functional = attention


class Mamba2(_Layer):
    """`functional.mamba2`, with `rank` above 0 MetaMamba2; aux is (). Configured by `Mamba2Config`."""

    functional = mamba2


class Palimpsa(_Layer):
    """`functional.palimpsa`; aux is (). Configured by `PalimpsaConfig`."""

    functional = palimpsa
