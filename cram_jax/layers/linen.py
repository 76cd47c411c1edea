"""Flax Linen faces of the functional layers: they hold parameters and state, the functions compute.

    layer = CRAM(CRAMConfig(D=64))
    variables = layer.init(key, x_BxTxD)
    y_BxTxD, aux = layer.apply(variables, x_BxTxD, gap_BxT, train=True, rngs={"route": noise})  # in the loss
    _, changed = layer.apply(variables, aux.stats, method="update", mutable=["consolidation"])  # once a training step
    variables = {**variables, **changed}

Collections: "params" (the functional layer's parameters, under "layer"), "consolidation" (its state, under "state") and
"cache" (what `step` carries, under "stream").
"""

from types import ModuleType
from typing import Any, ClassVar

from flax import linen as nn

from cram_jax.dims import Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional import attention, consolidation, cram, mamba2, palimpsa

__all__ = ["CRAM", "Attention", "Mamba2", "Palimpsa"]


class _Layer(nn.Module):
    """One layer of the shared contract (`init`, `init_state`, `init_cache`, `apply`, `step`).

    Attributes:
      cfg: the functional layer's configuration.
    """

    cfg: Any
    functional: ClassVar[ModuleType]
    stream: ClassVar[str | None] = None  # the random stream it draws from, if it draws at all

    def setup(self):
        self.params = self.param("layer", self.functional.init, self.cfg)
        initial = self.functional.init_state(self.cfg)
        self.state = self.variable("consolidation", "state", lambda: initial) if initial else None

    def _current(self):
        return () if self.state is None else self.state.value

    def _key(self, train: bool) -> Key | None:
        wanted = self.stream is not None and (train or self.has_rng(self.stream))
        return self.make_rng(self.stream) if wanted else None

    def __call__(
        self,
        x_BxTxD: Tokens,
        gap_BxT: Gaps | None = None,
        *,
        train: bool = False,
        segment_BxT: Segments | None = None,
    ) -> tuple[Tokens, Any]:
        """A whole sequence: the functional layer's `apply`, with its (tokens, aux). Changes no variable.

        A layer that draws random numbers takes them from the stream "route": needed in training (noise and audits,
        else Flax raises InvalidRngError); in evaluation it switches audits on.
        """
        return self.functional.apply(
            self.params,
            self._current(),
            x_BxTxD,
            cfg=self.cfg,
            gap_BxT=gap_BxT,
            key=self._key(train),
            train=train,
            segment_BxT=segment_BxT,
        )

    def step(self, x_BxD: Token, gap_B: Gap | None = None) -> tuple[Token, Any]:
        """One token, streaming: (token, aux); equals the whole sequence in evaluation. Needs mutable=["cache"].

        A missing "cache" is an empty one; `init(..., method="step")` gives it, for loops that need it from the start.
        Pass the same "route" key at every step to audit what a call with that key audits.
        """
        cache = self.get_variable("cache", "stream")
        if cache is None:
            cache = self.functional.init_cache(self.cfg, x_BxD.shape[0])
        y_BxD, after, aux = self.functional.step(
            self.params, self._current(), cache, x_BxD, cfg=self.cfg, gap_B=gap_B, key=self._key(train=False)
        )
        self.put_variable("cache", "stream", cache if self.is_initializing() else after)
        return y_BxD, aux


class CRAM(_Layer):
    """`functional.cram`; aux is a `CRAMAux`. Configured by `CRAMConfig`."""

    functional = cram
    stream = "route"

    def update(self, stats: consolidation.ConsolidationStats, axis_name: str | None = None) -> None:
        """Once a training step, with `aux.stats`: moves the running state (`consolidation.update`)."""
        self.state.value = consolidation.update(self.state.value, stats, axis_name)

    def release(self, when=True) -> None:
        """From now on the router decides who attends; until then every token does (`consolidation.release`)."""
        self.state.value = consolidation.release(self.state.value, when)


class Attention(_Layer):
    """`functional.attention`, the transformer layer to compare with; aux is (). Configured by `AttentionConfig`."""

    functional = attention


class Mamba2(_Layer):
    """`functional.mamba2`, with `rank` above 0 MetaMamba2; aux is (). Configured by `Mamba2Config`."""

    functional = mamba2


class Palimpsa(_Layer):
    """`functional.palimpsa`; aux is (). Configured by `PalimpsaConfig`."""

    functional = palimpsa
