"""The contract of a layer: all that stacks, training steps, counters of operations and Flax faces ask of one.

A layer is its configuration: a frozen dataclass derived from `Layer`, whose methods do the work. The five functions
below are the public way to call it; each layer's module has them under the same names (`cram.apply`, `mamba2.step`).
"""

import abc
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Gap, Gaps, Int, Key, Segments, Token, Tokens
from cram_jax.kernels.checks import check_kinds
from cram_jax.kernels.meshes import automatic

# Pytrees whose types are the layer's own.
Params = Any
State = Any
Cache = Any


class Routes(NamedTuple):
    """What each token did in a layer that decides who attends. Other layers have (): they are not counted.

    Attributes:
      chose_BxT: attention was chosen for the token.
      attended_BxT: chosen, or an audit: attention was computed for the token.
      kept_BxT: the token can be attended to later.
    """

    chose_BxT: Bool[Array, "*shape"]
    attended_BxT: Bool[Array, "*shape"]
    kept_BxT: Bool[Array, "*shape"]


class LayerAux(NamedTuple):
    """What a layer reports beside its tokens; () for a part that it does not have.

    Attributes:
      stats: sums for `Layer.update`.
      sums: a `MemorySums`, from which `objective.py` forms the layer's own loss.
      routes: `Routes`, or a type that has at least its fields.
    """

    stats: Any = ()
    sums: Any = ()
    routes: Any = ()


class Operations(NamedTuple):
    """Floating-point operations of a batch, a multiply-add counted as two: in attention, and in all of the layer."""

    attention: Any
    total: Any


class Layer(abc.ABC):
    """A layer of width D. Subclasses are frozen dataclasses, registered static.

    A layer is a mixer of tokens with a residual connection around it, and then, in most, a feed-forward network.

    Attributes:
      D: width of the tokens.
      draws: whether the layer needs random numbers in training.
      consolidates: whether it learns from what it retrieved. Then `aux` has `stats` and `sums`, and its routes have
        `retrieved_BxT`, `quality_BxT` and `familiarity_BxT`.
      no_decay: its matrices that weight decay leaves alone, as glob patterns of parameter paths ("semantic.*").
        Vectors and scalars never decay.
      taught: its parameters that consolidation after training changes, likewise.
    """

    D: int
    draws: ClassVar[bool] = False
    consolidates: ClassVar[bool] = False
    no_decay: ClassVar[tuple[str, ...]] = ()
    taught: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def init(self, key: Key) -> Params:
        """Fresh parameters."""

    def init_state(self, streams: int | None = None) -> State:
        """What the layer learns outside its parameters; () by default.

        Args:
          streams: a state for each sequence of a batch, where the layer keeps one for a stream; None: one for all.
        """
        return ()

    @abc.abstractmethod
    def init_cache(self, batch: int) -> Cache:
        """What streaming carries from token to token, with nothing seen yet."""

    @abc.abstractmethod
    def mix(
        self,
        params: Params,
        state: State,
        x_BxTxD: Tokens,
        gap_BxT: Gaps,
        *,
        key: Key | None,
        train: bool,
        segment_BxT: Segments | None,
    ) -> tuple[Tokens, LayerAux]:
        """The mixer's output for whole sequences, without the residual; it normalises its input itself."""

    @abc.abstractmethod
    def mix_token(
        self, params: Params, state: State, cache: Cache, x_BxD: Token, gap_B: Gap, *, key: Key | None
    ) -> tuple[Token, Cache, LayerAux]:
        """(mixer's output, cache, aux) of one token; equals `mix` with train=False at that position."""

    def mixer_params(self, params: Params) -> Params:
        """The parameters with () for those that the mixer does not use."""
        return params

    def feed(self, params: Params, x: Array) -> Array:
        """The tokens after the feed-forward network; unchanged in a layer without one."""
        return x

    @abc.abstractmethod
    def operations(self, shape: tuple[int, int], routes, train: bool) -> Operations:
        """Operations of one (batch, length).

        Args:
          routes: the layer's `Routes`, () for a layer without.
          train: forward, backward and what the backward pass recomputes; else forward alone.
        """

    def lookups(self, shape: tuple[int, int], routes) -> Any:
        """The part of `operations` that has no backward pass; 0 by default."""
        return 0.0

    def update(self, state: State, stats: Any, axis_name: str | None = None) -> State:
        """The state after a training step; `axis_name` sums the statistics over that mapped axis first."""
        return state

    def for_streams(self, state: State, streams: int) -> State:
        """The state for that many fresh streams: what the layer keeps of all streams together stays.

        Unchanged in a layer that keeps nothing of a single stream.
        """
        return state

    def reset(self, state: State, fresh_S: Bool[Array, "S"]) -> State:
        """The state in which the marked streams begin anew; unchanged in a layer that keeps nothing of streams."""
        return state

    def streams_at(self, state: State, id_B: Int[Array, "B"]) -> State:
        """The state of these streams, for a batch of them; unchanged in a layer that keeps nothing of streams."""
        return state

    def put_streams(self, state: State, id_B: Int[Array, "B"], of_B: State) -> State:
        """`streams_at` undone: the state in which these streams have the memories of `of_B`.

        What the layer keeps of all streams together is that of `of_B`.
        """
        return of_B

    def learned(self, state: State) -> Any:
        """All that the streams' memories hold, as sums, for each stream; () in a layer that keeps nothing of streams.

        It is what has to be saved of a stream: the rest of its memory is computed from it.
        """
        return ()

    def merge(self, state: State, learned: Any) -> State:
        """The state whose memories also hold what was learned there: in an empty one, what was saved."""
        return state

    def release(self, state: State, when: Bool[Array, "*layers"] | bool = True) -> State:
        """The state in which the layer decides by itself who attends."""
        return state

    def audited(self) -> "Layer":
        """The same layer with every token audited in evaluation: same outputs, and quality is known everywhere."""
        return self

    def attentive(self, length: int) -> "Layer":
        """The same layer with every token audited, over a buffer that keeps all `length` events."""
        return self


def init(key: Key, cfg: Layer) -> Params:
    """Fresh parameters of the layer."""
    return cfg.init(key)


def init_state(cfg: Layer) -> State:
    """The layer's fresh state; () for a layer that learns nothing outside its parameters."""
    return cfg.init_state()


def init_cache(cfg: Layer, batch: int) -> Cache:
    """What `step` carries from token to token, with nothing seen yet."""
    return cfg.init_cache(batch)


def apply(
    params: Params,
    state: State,
    x_BxTxD: Tokens,
    *,
    cfg: Layer,
    gap_BxT: Gaps | None = None,
    key: Key | None = None,
    train: bool = False,
    segment_BxT: Segments | None = None,
) -> tuple[Tokens, LayerAux]:
    """Whole sequences through the layer; causal and differentiable.

    Args:
      state: read, never changed here.
      gap_BxT: time since the previous event; 1 everywhere by default.
      key: for audits, and in training for all other random choices. Without one there are none.
      train: whether random choices of training are made.
      segment_BxT: sequences packed into one row; they do not see each other. One ends where the number changes.

    Returns:
      The tokens after the layer, of the dtype that they had before it, and what the layer reports of this batch.

    Raises:
      ValueError, TypeError: for shapes, dtypes or gaps that do not fit the layer.
    """
    return _whole(params, state, x_BxTxD, gap_BxT, key, segment_BxT, cfg, train, mixer_alone=False)


def apply_mixer(
    params: Params, state: State, x_BxTxD: Tokens, *, cfg: Layer, gap_BxT=None, key=None, train=False, segment_BxT=None
) -> tuple[Tokens, LayerAux]:
    """The mixer alone: `apply` without residual connections and feed-forward network."""
    return _whole(params, state, x_BxTxD, gap_BxT, key, segment_BxT, cfg, train, mixer_alone=True)


def _whole(params, state, x_BxTxD, gap_BxT, key, segment_BxT, cfg: Layer, train: bool, mixer_alone: bool):
    check_inputs(x_BxTxD, cfg.D, gap_BxT, segment_BxT)
    gap_BxT = jnp.ones(x_BxTxD.shape[:2], x_BxTxD.dtype) if gap_BxT is None else gap_BxT

    def run(x_BxTxD, params, state, gap_BxT, key, segment_BxT):
        mixed_BxTxD, aux = cfg.mix(params, state, x_BxTxD, gap_BxT, key=key, train=train, segment_BxT=segment_BxT)
        y_BxTxD = mixed_BxTxD if mixer_alone else cfg.feed(params, x_BxTxD + mixed_BxTxD)
        return y_BxTxD.astype(x_BxTxD.dtype), aux

    return automatic(run, x_BxTxD, params, state, gap_BxT, key, segment_BxT)


def step(
    params: Params,
    state: State,
    cache: Cache,
    x_BxD: Token,
    *,
    cfg: Layer,
    gap_B: Gap | None = None,
    key: Key | None = None,
) -> tuple[Token, Cache, LayerAux]:
    """One token, streaming: (token, cache, aux); equals `apply` with train=False at that position.

    Raises:
      ValueError, TypeError: for shapes, dtypes or gaps that do not fit the layer.
    """
    return _token(params, state, cache, x_BxD, gap_B, key, cfg, mixer_alone=False)


def step_mixer(
    params: Params, state: State, cache: Cache, x_BxD: Token, *, cfg: Layer, gap_B: Gap | None = None, key=None
) -> tuple[Token, Cache, LayerAux]:
    """The mixer alone for one token."""
    return _token(params, state, cache, x_BxD, gap_B, key, cfg, mixer_alone=True)


def _token(params, state, cache, x_BxD, gap_B, key, cfg: Layer, mixer_alone: bool):
    if x_BxD.ndim != 2 or x_BxD.shape[-1] != cfg.D:
        raise ValueError(f"one token has shape (batch, {cfg.D}) for a layer of width D={cfg.D}, got {x_BxD.shape}")
    check_inputs(x_BxD[:, None], cfg.D, None if gap_B is None else gap_B[:, None], None)
    gap_B = jnp.ones(x_BxD.shape[0], x_BxD.dtype) if gap_B is None else gap_B

    def run(x_BxD, params, state, cache, gap_B, key):
        mixed_BxD, cache, aux = cfg.mix_token(params, state, cache, x_BxD, gap_B, key=key)
        y_BxD = mixed_BxD if mixer_alone else cfg.feed(params, x_BxD + mixed_BxD)
        return y_BxD.astype(x_BxD.dtype), cache, aux

    return automatic(run, x_BxD, params, state, cache, gap_B, key, carried=cache)


def check_inputs(x_BxTxD: Tokens, D: int, gap_BxT: Gaps | None, segment_BxT: Segments | None) -> None:
    """Raises ValueError or TypeError for inputs that a layer of width D cannot take.

    Gaps must be finite and not negative. Their values are checked on concrete arrays only, not under jit.
    """
    if x_BxTxD.ndim != 3 or x_BxTxD.shape[-1] != D:
        raise ValueError(f"x_BxTxD must have shape (batch, time, {D}) for a layer of width D={D}, got {x_BxTxD.shape}")
    if not jnp.issubdtype(x_BxTxD.dtype, jnp.floating):
        raise TypeError(f"x_BxTxD must be floating point, got {x_BxTxD.dtype}; embed token ids first")
    for name, array in (("gap_BxT", gap_BxT), ("segment_BxT", segment_BxT)):
        if array is not None and array.shape != x_BxTxD.shape[:2]:
            raise ValueError(f"{name} has shape {array.shape}, but x_BxTxD has batch and time {x_BxTxD.shape[:2]}")
    check_kinds(jnp.integer, segment_BxT=segment_BxT)
    if gap_BxT is not None and not jnp.issubdtype(gap_BxT.dtype, jnp.integer):
        check_kinds(jnp.floating, gap_BxT=gap_BxT)
    if gap_BxT is not None and not isinstance(gap_BxT, jax.core.Tracer):
        wrong = np.argwhere(~(np.isfinite(gap_BxT) & (np.asarray(gap_BxT) >= 0)))
        if len(wrong):
            b, t = wrong[0]
            place = f"sequence {b}, position {t}"
            raise ValueError(f"gap_BxT must be finite and at least 0, got {gap_BxT[b, t]} at {place}")
