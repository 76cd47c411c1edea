"""Palimpsa (Bonnet et al., arXiv 2602.09075) as a layer: a gated linear memory that knows what it must not forget.

Without an importance (rank 0) the same block is gated linear attention with one decay a head, or with the delta rule
Gated DeltaNet (Yang et al. 2025), to compare with. `recurrence.py` has its parts.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional.common import at_least_one, cast, check_compute, check_inputs, normal, rms_norm, segment_starts
from cram_jax.functional.recurrence import (
    SPREADS,
    Decay,
    Importance,
    causal_conv,
    conv_step,
    importance,
    init_decay,
    init_importance,
)
from cram_jax.kernels.recurrent import exact_einsum


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PalimpsaConfig:
    """D: width. heads, key_dim, value_dim: H, K and V.
    F: hidden units of the SwiGLU network after the memory; 0 is none, as in the paper's recall task.
    rank: hidden units of the network that tells importance; 0 is a layer without metaplasticity.
    delta: whether a write first takes away what its key recalls; for rank 0 alone.
    conv: tokens the convolutions see.
    epsilon: of the norms. spread: of decays at the start, one of `recurrence.SPREADS`.
    compute_dtype: of projections and convolutions; None is that of the tokens. Decays, importance and state are
        float32 in any case.
    backend: of the scan.
    """

    D: int = 64
    F: int = 0
    heads: int = 4
    key_dim: int = 16
    value_dim: int = 16
    rank: int = 8
    delta: bool = False
    conv: int = 4
    epsilon: float = 1e-6
    spread: str = "language"
    compute_dtype: str | None = None
    backend: str = "auto"

    def __post_init__(self):
        at_least_one(self, "D", "heads", "key_dim", "value_dim", "conv")
        check_compute(self.compute_dtype)
        if self.rank < 0 or self.F < 0:
            raise ValueError(f"rank and F must be at least 0, got rank={self.rank}, F={self.F}")
        if self.delta and self.rank:
            raise ValueError(f"the delta rule knows no importance; give rank=0 with delta=True, got rank={self.rank}")
        if self.spread not in SPREADS:
            raise ValueError(f"spread must be one of {SPREADS}, got {self.spread!r}")

    @property
    def convolved(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return self.heads * (2 * self.key_dim + self.value_dim)


class SwiGLU(NamedTuple):
    """Attributes: a norm, and W_out (SiLU(W_gate x) * W_in x)."""

    norm_D: Float[Array, "*layers D"]
    gate_DxF: Float[Array, "*layers D F"]
    in_DxF: Float[Array, "*layers D F"]
    out_FxD: Float[Array, "*layers F D"]


class PalimpsaParams(NamedTuple):
    """Attributes:
    norm_D: before the memory.
    in_DxX: to what becomes queries, keys and values. conv_WxX: over them, one channel at a time.
    dt_DxH: reads dt. write_DxH: how much of a value is written. gate_DxHxV: what of a read is shown.
    decay, importance: see `recurrence.py`; importance is () where rank is 0.
    skip_H: weight of the value beside what is read. out_norm_V: of each head. out_HxVxD: back.
    feed_forward: () where F is 0.
    """

    norm_D: Float[Array, "*layers D"]
    in_DxX: Float[Array, "*layers D X"]
    conv_WxX: Float[Array, "*layers W X"]
    dt_DxH: Float[Array, "*layers D H"]
    write_DxH: Float[Array, "*layers D H"]
    gate_DxHxV: Float[Array, "*layers D H V"]
    decay: Decay
    importance: Importance | tuple[()]
    skip_H: Float[Array, "*layers H"]
    out_norm_V: Float[Array, "*layers V"]
    out_HxVxD: Float[Array, "*layers H V D"]
    feed_forward: SwiGLU | tuple[()]


class PalimpsaCache(NamedTuple):
    """Attributes: the convolution's last W inputs, and the scan's state."""

    past_BxWxX: Float[Array, "B W X"]
    state: Float[Array, "B H V K"] | kernels.PalimpsaState


def init(key: Key, cfg: PalimpsaConfig) -> PalimpsaParams:
    """Unit-variance projections, decays as `spread` says."""
    keys = list(jax.random.split(key, 11))
    D, H, V, F = cfg.D, cfg.heads, cfg.value_dim, cfg.F
    read = lambda *shape: normal(keys.pop(), (D, *shape), D)
    return PalimpsaParams(
        norm_D=jnp.ones(D),
        in_DxX=read(cfg.convolved),
        conv_WxX=normal(keys.pop(), (cfg.conv, cfg.convolved), cfg.conv),
        dt_DxH=read(H),
        write_DxH=read(H),
        gate_DxHxV=read(H, V),
        decay=init_decay(keys.pop(), H, cfg.spread),
        importance=init_importance(keys.pop(), D, cfg.rank, H, V) if cfg.rank else (),
        skip_H=jnp.ones(H),
        out_norm_V=jnp.ones(V),
        out_HxVxD=normal(keys.pop(), (H, V, D), H * V),
        feed_forward=SwiGLU(jnp.ones(D), read(F), read(F), normal(keys.pop(), (F, D), F)) if F else (),
    )


def init_state(cfg: PalimpsaConfig) -> tuple[()]:
    """Nothing is learned outside the parameters."""
    return ()


def init_cache(cfg: PalimpsaConfig, batch: int) -> PalimpsaCache:
    """Nothing seen yet."""
    blank = lambda: jnp.zeros((batch, cfg.heads, cfg.value_dim, cfg.key_dim))
    state = kernels.PalimpsaState(blank(), blank()) if cfg.rank else blank()
    return PalimpsaCache(jnp.zeros((batch, cfg.conv, cfg.convolved), cfg.compute_dtype), state)


def _unit(x: Float[Array, "... K"]) -> Float[Array, "... K"]:
    """Of length 1; a zero stays one, with a gradient that is finite."""
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=-1, keepdims=True) + 1e-6)


class Writes(NamedTuple):
    """What a sequence of tokens asks of the scan: its arguments by their names there. beta is 0 without importance.

    Attributes:
      write_BxTxH: how much of a value is written, from 0 to 1; v has it already, but for the delta rule.
    """

    q_BxTxHxK: Float[Array, "B T H K"]
    k_BxTxHxK: Float[Array, "B T H K"]
    v_BxTxHxV: Float[Array, "B T H V"]
    beta_BxTxHxV: Float[Array, "B T H V"]
    dt_BxTxH: Float[Array, "B T H"]
    write_BxTxH: Float[Array, "B T H"]


def _writes(params: PalimpsaParams, h_BxTxD, x_BxTxHxV, q, k, cfg: PalimpsaConfig) -> Writes:
    dt_BxTxH = jax.nn.softplus(h_BxTxD @ params.dt_DxH + params.decay.bias_H)
    write_BxTxH = jax.nn.sigmoid(h_BxTxD @ params.write_DxH)
    beta_BxTxHxV = jnp.zeros_like(x_BxTxHxV)
    if cfg.rank:
        beta_BxTxHxV = write_BxTxH[..., None] * importance(params.importance, h_BxTxD)
    v_BxTxHxV = x_BxTxHxV if cfg.delta else write_BxTxH[..., None] * x_BxTxHxV
    return Writes(_unit(q), _unit(k), v_BxTxHxV, beta_BxTxHxV, dt_BxTxH, write_BxTxH)


def _delta_scan(q_BxTxHxK, k_BxTxHxK, v_BxTxHxV, write_BxTxH, log_decay_BxTxH, state, segment_BxT):
    """S_t = a_t S_{t-1} + w_t (v_t - a_t S_{t-1} k_t) k_t^T, o_t = K^-1/2 S_t q_t, one token after the other."""
    B, T, H, K = q_BxTxHxK.shape
    state = jnp.zeros((B, H, v_BxTxHxV.shape[-1], K)) if state is None else state
    starts_BxT = jnp.zeros((B, T), bool) if segment_BxT is None else segment_starts(segment_BxT)
    decay_BxTxH = jnp.where(starts_BxT[..., None], 0, jnp.exp(log_decay_BxTxH))

    def token(S, now):
        q, k, v, write, decay = now
        S = decay[..., None, None] * S
        error = v - exact_einsum("bhvk,bhk->bhv", S, k)
        S = S + (write[..., None] * error)[..., None] * k[..., None, :]
        return S, K**-0.5 * exact_einsum("bhvk,bhk->bhv", S, q)

    over_time = [x.swapaxes(0, 1) for x in (q_BxTxHxK, k_BxTxHxK, v_BxTxHxV, write_BxTxH, decay_BxTxH)]
    state, o_TxBxHxV = jax.lax.scan(token, state, over_time)
    return o_TxBxHxV.swapaxes(0, 1), state


def _remember(params: PalimpsaParams, h_BxTxD, qkv_BxTxX, state, segment_BxT, cfg: PalimpsaConfig, backend: str):
    """(what is read, with the skip; state; what was written)."""
    B, T, _ = h_BxTxD.shape
    H, K, V = cfg.heads, cfg.key_dim, cfg.value_dim
    parts = jnp.split(jax.nn.silu(qkv_BxTxX).astype(h_BxTxD.dtype), (H * K, 2 * H * K), axis=-1)
    q, k, x = (part.reshape(B, T, H, size) for part, size in zip(parts, (K, K, V), strict=True))
    writes, rate_H = _writes(params, h_BxTxD, x, q, k, cfg), jnp.exp(params.decay.log_rate_H)
    q, k, v, beta, dt, write_BxTxH = writes
    if cfg.delta:
        o, state = _delta_scan(q, k, v, write_BxTxH, -dt * rate_H, state, segment_BxT)
    elif cfg.rank:
        o, state = kernels.palimpsa_scan(
            q, k, v, beta, dt, rate_H, jnp.ones(H), state, segment_BxT=segment_BxT, backend=backend
        )
    else:
        o, state = kernels.ssd_scan(q, k, v, -dt * rate_H, state, segment_BxT=segment_BxT, backend=backend)
    return o + params.skip_H[:, None] * x, state, writes


def _finish(params: PalimpsaParams, x, h, read, cfg: PalimpsaConfig):
    dtype = cfg.compute_dtype
    gate = jax.nn.silu(jnp.einsum("...d,dhv->...hv", cast(h, dtype), cast(params.gate_DxHxV, dtype)))
    shown = cast(rms_norm(params.out_norm_V, read, cfg.epsilon), dtype) * gate
    x = x + jnp.einsum("...hv,hvd->...d", shown, cast(params.out_HxVxD, dtype)).astype(x.dtype)
    if not cfg.F:
        return x
    network = cast(params.feed_forward, dtype)
    h = cast(rms_norm(params.feed_forward.norm_D, x, cfg.epsilon), dtype)
    return x + ((jax.nn.silu(h @ network.gate_DxF) * (h @ network.in_DxF)) @ network.out_FxD).astype(x.dtype)


def apply(
    params: PalimpsaParams,
    state: tuple[()],
    x_BxTxD: Tokens,
    *,
    cfg: PalimpsaConfig,
    gap_BxT: Gaps | None = None,
    key: Key | None = None,
    train: bool = False,
    segment_BxT: Segments | None = None,
) -> tuple[Tokens, tuple[()]]:
    """A whole sequence. `state`, `gap_BxT`, `key` and `train` are of the shared contract and change nothing here.

    Raises:
      ValueError, TypeError: for shapes or dtypes that do not fit the layer.
    """
    del state, key, train
    check_inputs(x_BxTxD, cfg.D, gap_BxT, segment_BxT)
    h_BxTxD, qkv_BxTxX = _enter(params, x_BxTxD, segment_BxT, cfg)
    read, _, _ = _remember(params, h_BxTxD, qkv_BxTxX, None, segment_BxT, cfg, cfg.backend)
    return _finish(params, x_BxTxD, h_BxTxD, read, cfg), ()


def _enter(params: PalimpsaParams, x_BxTxD, segment_BxT, cfg: PalimpsaConfig):
    """(normed tokens, the convolution over what becomes queries, keys and values)."""
    h_BxTxD = rms_norm(params.norm_D, x_BxTxD, cfg.epsilon)
    in_BxTxX = cast(h_BxTxD, cfg.compute_dtype) @ cast(params.in_DxX, cfg.compute_dtype)
    return h_BxTxD, causal_conv(in_BxTxX, cast(params.conv_WxX, cfg.compute_dtype), segment_BxT)


def step(
    params: PalimpsaParams,
    state: tuple[()],
    cache: PalimpsaCache,
    x_BxD: Token,
    *,
    cfg: PalimpsaConfig,
    gap_B: Gap | None = None,
    key: Key | None = None,
) -> tuple[Token, PalimpsaCache, tuple[()]]:
    """One token, streaming; equals `apply` at that position."""
    del state, key
    check_inputs(x_BxD[:, None], cfg.D, None if gap_B is None else gap_B[:, None], None)
    h_BxD = rms_norm(params.norm_D, x_BxD, cfg.epsilon)
    in_BxX = cast(h_BxD, cfg.compute_dtype) @ cast(params.in_DxX, cfg.compute_dtype)
    past, qkv_BxX = conv_step(cache.past_BxWxX, in_BxX, cast(params.conv_WxX, cfg.compute_dtype))
    read, scanned, _ = _remember(params, h_BxD[:, None], qkv_BxX[:, None], cache.state, None, cfg, "reference")
    return _finish(params, x_BxD, h_BxD, read[:, 0], cfg), PalimpsaCache(past, scanned), ()


def writes(params: PalimpsaParams, x_BxTxD: Tokens, *, cfg: PalimpsaConfig) -> Writes:
    """What the layer writes, without doing anything: for looking at importance (`analysis/metaplasticity.py`)."""
    h_BxTxD, qkv_BxTxX = _enter(params, x_BxTxD, None, cfg)
    return _remember(params, h_BxTxD, qkv_BxTxX, None, None, cfg, cfg.backend)[2]
