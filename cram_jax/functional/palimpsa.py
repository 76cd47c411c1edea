"""Palimpsa (Bonnet et al., arXiv 2602.09075) as a layer: gated linear attention with Bayesian metaplasticity.

Without an importance (rank 0) the same block is gated linear attention with one decay a head or, with the delta rule,
Gated DeltaNet (Yang et al. 2025), to compare with. Its parts are in `recurrence.py`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Key, Token, Tokens
from cram_jax.functional import operations
from cram_jax.functional.checks import check_at_least_one, check_compute_dtype, check_fields, check_not_negative
from cram_jax.functional.common import cast, normal, rms_norm
from cram_jax.functional.layer import Layer, LayerAux, Operations, apply, init, init_cache, init_state, step
from cram_jax.functional.recurrence import (
    SPREADS,
    Decay,
    Importance,
    by_head,
    causal_conv,
    conv_step,
    importance,
    init_decay,
    init_importance,
    init_scan_state,
    unit,
)
from cram_jax.kernels.backends import PALIMPSA, SSD
from cram_jax.kernels.meshes import own_heads, varying_like
from cram_jax.kernels.recurrent import contained, exact_einsum

__all__ = [
    "PalimpsaCache", "PalimpsaConfig", "PalimpsaParams", "apply", "init", "init_cache", "init_state", "step", "writes",
]  # fmt: skip


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PalimpsaConfig(Layer):
    """D: width. heads, key_dim, value_dim: H, K and V.
    F: hidden units of the SwiGLU network after the memory; 0 is none, as in the paper's recall task.
    rank: hidden units of the network for importance; 0 is a layer without metaplasticity.
    delta: the delta rule: a write first subtracts what its key recalls. Only with rank 0.
    conv: tokens that the convolutions see.
    epsilon: of the norms. spread: of the initial decays, one of `recurrence.SPREADS`.
    compute_dtype: of projections and convolutions; None is that of the tokens. Decays, importance and state are always
        float32.
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
        check_fields(self)
        (PALIMPSA if self.rank else SSD).check(self.backend)
        check_at_least_one(self, "D", "heads", "key_dim", "value_dim", "conv")
        check_compute_dtype(self.compute_dtype)
        check_not_negative(self, "epsilon")
        if self.rank < 0 or self.F < 0:
            raise ValueError(f"rank and F must be at least 0, got rank={self.rank}, F={self.F}")
        if self.delta and self.rank:
            raise ValueError(f"the delta rule has no importance: delta=True needs rank=0, got rank={self.rank}")
        if self.spread not in SPREADS:
            raise ValueError(f"spread must be one of {SPREADS}, got {self.spread!r}")

    @property
    def convolved(self) -> int:
        """Channels of the convolution: queries, keys and values."""
        return self.heads * (2 * self.key_dim + self.value_dim)

    def init(self, key: Key) -> "PalimpsaParams":
        """Unit-variance projections, decays as `spread` says."""
        keys = list(jax.random.split(key, 11))
        D, H, V, F = self.D, self.heads, self.value_dim, self.F
        read = lambda *shape: normal(keys.pop(), (D, *shape), D)
        return PalimpsaParams(
            norm_D=jnp.ones(D),
            in_DxX=read(self.convolved),
            conv_WxX=normal(keys.pop(), (self.conv, self.convolved), self.conv),
            dt_DxH=read(H),
            write_DxH=read(H),
            gate_DxHxV=read(H, V),
            decay=init_decay(keys.pop(), H, self.spread),
            importance=init_importance(keys.pop(), D, self.rank, H, V) if self.rank else (),
            skip_H=jnp.ones(H),
            out_norm_V=jnp.ones(V),
            out_HxVxD=normal(keys.pop(), (H, V, D), H * V),
            feed_forward=SwiGLU(jnp.ones(D), read(F), read(F), normal(keys.pop(), (F, D), F)) if F else (),
        )

    def init_cache(self, batch: int) -> "PalimpsaCache":
        """Nothing seen yet."""
        state = init_scan_state((batch, self.heads, self.value_dim, self.key_dim), self.rank > 0)
        return PalimpsaCache(jnp.zeros((batch, self.conv, self.convolved), self.compute_dtype), state)

    def mix(self, params: "PalimpsaParams", state, x_BxTxD: Tokens, gap_BxT: Gaps, *, key, train, segment_BxT):
        """Whole sequences; gaps are not used."""
        h_BxTxD, qkv = _enter(params, x_BxTxD, segment_BxT, self)
        read, _, _ = _remember(params, h_BxTxD, qkv, None, segment_BxT, self, self.backend)
        return _output(params, h_BxTxD, read, self).astype(x_BxTxD.dtype), LayerAux()

    def mix_token(self, params: "PalimpsaParams", state, cache: "PalimpsaCache", x_BxD: Token, gap_B: Gap, *, key):
        """One token; gaps are not used."""
        h_BxD = rms_norm(params.norm_D, x_BxD, self.epsilon)
        in_BxX = cast(h_BxD, self.compute_dtype) @ cast(params.in_DxX, self.compute_dtype)
        past, qkv_BxX = conv_step(cache.past_BxWxX, in_BxX, cast(params.conv_WxX, self.compute_dtype))
        qkv = _split(qkv_BxX[:, None], self)
        read, scanned, _ = _remember(params, h_BxD[:, None], qkv, cache.state, None, self, "reference")
        mixed_BxD = _output(params, h_BxD, read[:, 0], self).astype(x_BxD.dtype)
        return mixed_BxD, PalimpsaCache(past, scanned), LayerAux()

    def mixer_params(self, params):
        """Without the feed-forward network."""
        return params._replace(feed_forward=())

    def feed(self, params: "PalimpsaParams", x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """x + W_out (SiLU(W_gate norm(x)) * W_in norm(x)); x where F is 0."""
        if not self.F:
            return x
        network = cast(params.feed_forward, self.compute_dtype)
        h = cast(rms_norm(params.feed_forward.norm_D, x, self.epsilon), self.compute_dtype)
        return x + ((jax.nn.silu(h @ network.gate_DxF) * (h @ network.in_DxF)) @ network.out_FxD).astype(x.dtype)

    def operations(self, shape: tuple[int, int], routes, train: bool) -> Operations:
        """Projections, convolution, state and feed-forward network."""
        values = self.heads * self.value_dim
        projected = self.D * (self.convolved + 2 * self.heads + 2 * values + 3 * self.F)
        weights = projected + self.rank * (self.D + values) + self.conv * self.convolved
        return operations.recurrent(weights, values * self.key_dim, self.rank > 0, shape, train)


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


class Writes(NamedTuple):
    """What the layer hands to the scan, by the names of the scan's arguments. beta is 0 without importance.

    Attributes:
      write_BxTxH: share of a value that is written, 0 to 1. v is multiplied by it already, except for the delta rule.
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
    return Writes(unit(q), unit(k), v_BxTxHxV, beta_BxTxHxV, dt_BxTxH, write_BxTxH)


def _delta_scan(q_BxTxHxK, k_BxTxHxK, v_BxTxHxV, write_BxTxH, log_decay_BxTxH, state, segment_BxT):
    """S_t = a_t S_{t-1} + w_t (v_t - a_t S_{t-1} k_t) k_t^T, o_t = K^-1/2 S_t q_t, one token after the other."""
    B, T, H, K = q_BxTxHxK.shape
    state = jnp.zeros((B, H, v_BxTxHxV.shape[-1], K)) if state is None else state
    starts_BxT = jnp.zeros((B, T), bool) if segment_BxT is None else kernels.segment_starts(segment_BxT)
    decay_BxTxH = jnp.where(starts_BxT[..., None], 0, jnp.exp(log_decay_BxTxH))

    def token(S, now):
        q, k, v, (write, decay) = now
        S = decay[..., None, None] * S
        error = v - exact_einsum("bhvk,bhk->bhv", S, k)
        S = S + (write[..., None] * error)[..., None] * k[..., None, :]
        return S, K**-0.5 * exact_einsum("bhvk,bhk->bhv", S, q)

    def scan(q, k, v, gates, state):
        state = varying_like(state, q, k, v, gates)
        over_time = jax.tree.map(lambda x: x.swapaxes(0, 1), (q, k, v, gates))
        state, o_TxBxHxV = jax.lax.scan(token, state, over_time)
        return o_TxBxHxV.swapaxes(0, 1), state

    return contained(scan, q_BxTxHxK, k_BxTxHxK, v_BxTxHxV, (write_BxTxH, decay_BxTxH), starts_BxT, state)


def _remember(params: PalimpsaParams, h_BxTxD, qkv: list, state, segment_BxT, cfg: PalimpsaConfig, backend: str):
    """(what is read, skip connection included; the scan's state; what was written)."""
    B, T, _ = h_BxTxD.shape
    H, K, V = cfg.heads, cfg.key_dim, cfg.value_dim
    parts = [jax.nn.silu(part).astype(h_BxTxD.dtype) for part in qkv]
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


def _output(params: PalimpsaParams, h, read, cfg: PalimpsaConfig):
    """W_o (norm(read) * SiLU(W_g h)), the norm over each head's values."""
    dtype = cfg.compute_dtype
    gate = jax.nn.silu(jnp.einsum("...d,dhv->...hv", cast(h, dtype), cast(params.gate_DxHxV, dtype)))
    shown = cast(rms_norm(params.out_norm_V, read, cfg.epsilon), dtype) * gate
    return jnp.einsum("...hv,hvd->...d", shown, cast(params.out_HxVxD, dtype))


def _enter(params: PalimpsaParams, x_BxTxD, segment_BxT, cfg: PalimpsaConfig):
    """(normed tokens, the convolution over what becomes queries, keys and values)."""
    h_BxTxD = rms_norm(params.norm_D, x_BxTxD, cfg.epsilon)
    in_BxTxD, *weights = cast((h_BxTxD, params.in_DxX, params.conv_WxX), cfg.compute_dtype)
    convolved = lambda in_DxX, conv_WxX: causal_conv(in_BxTxD @ in_DxX, conv_WxX, segment_BxT)
    H, K, V = cfg.heads, cfg.key_dim, cfg.value_dim
    if own_heads(H):
        return h_BxTxD, by_head(convolved, ((H, K), (H, K), (H, V)), *weights)
    return h_BxTxD, _split(convolved(*weights), cfg)


def _split(qkv_BxTxX, cfg: PalimpsaConfig) -> list:
    """Queries, keys and values, heads beside each other."""
    keys = cfg.heads * cfg.key_dim
    return jnp.split(qkv_BxTxX, (keys, 2 * keys), axis=-1)


def writes(params: PalimpsaParams, x_BxTxD: Tokens, *, cfg: PalimpsaConfig) -> Writes:
    """What the layer would write; `analysis/metaplasticity.py` looks at importance with it."""
    h_BxTxD, qkv = _enter(params, x_BxTxD, None, cfg)
    return _remember(params, h_BxTxD, qkv, None, None, cfg, cfg.backend)[2]
