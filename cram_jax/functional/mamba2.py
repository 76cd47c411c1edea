"""Mamba-2 (Dao and Gu 2024) as a layer; with an importance, MetaMamba2 (Bonnet et al., arXiv 2602.09075).

Names are Mamba-2's where the papers differ: its C are queries, its B keys, and dt x the values.
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
)
from cram_jax.kernels.backends import PALIMPSA, SSD
from cram_jax.kernels.meshes import constrained, own_heads

__all__ = ["Mamba2Cache", "Mamba2Config", "Mamba2Params", "apply", "init", "init_cache", "init_state", "step"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Mamba2Config(Layer):
    """D: width. heads, head_dim: H and V; their product is the inner width.
    state: K, numbers of state for each value. groups: G; heads of a group share keys and queries. MetaMamba2 has as
        many groups as heads.
    rank: hidden units of the network for importance; 0 is Mamba-2, more is MetaMamba2.
    conv: tokens that the convolution sees.
    norm_groups: parts of the inner width that are normalised separately; 1 in the papers' code, the number of groups
        in that of Hugging Face since version 5.23.
    epsilon: of the norms. spread: of the initial decays, one of `recurrence.SPREADS`.
    compute_dtype: of the projections and the convolution; None is that of the tokens. Decays, importance and state are
        always float32.
    backend: of the scan.
    """

    D: int = 64
    heads: int = 4
    head_dim: int = 32
    state: int = 16
    groups: int = 1
    rank: int = 0
    conv: int = 4
    norm_groups: int = 1
    epsilon: float = 1e-5
    spread: str = "language"
    compute_dtype: str | None = None
    backend: str = "auto"

    def __post_init__(self):
        check_fields(self)
        (PALIMPSA if self.rank else SSD).check(self.backend)
        check_at_least_one(self, "D", "heads", "head_dim", "state", "groups", "conv", "norm_groups")
        check_compute_dtype(self.compute_dtype)
        check_not_negative(self, "epsilon")
        if self.heads % self.groups or self.inner % self.norm_groups:
            raise ValueError(
                f"groups must divide heads, and norm_groups heads x head_dim, got groups={self.groups}, "
                f"norm_groups={self.norm_groups}, heads={self.heads}, head_dim={self.head_dim}"
            )
        if self.rank < 0:
            raise ValueError(f"rank must be at least 0, got {self.rank}")
        if self.spread not in SPREADS:
            raise ValueError(f"spread must be one of {SPREADS}, got {self.spread!r}")

    @property
    def inner(self) -> int:
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    def _split(self, xBC: Float[Array, "... X"]) -> list:
        """x, B and C."""
        return jnp.split(xBC, (self.inner, self.inner + self.groups * self.state), axis=-1)

    def init(self, key: Key) -> "Mamba2Params":
        """Unit-variance projections, decays as `spread` says."""
        project, conv, decay, meta, out = jax.random.split(key, 5)
        wide = self.inner + self.convolved + self.heads
        return Mamba2Params(
            norm_D=jnp.ones(self.D),
            in_DxX=normal(project, (self.D, wide), self.D),
            conv_WxX=normal(conv, (self.conv, self.convolved), self.conv),
            conv_bias_X=jnp.zeros(self.convolved),
            decay=init_decay(decay, self.heads, self.spread),
            importance=init_importance(meta, self.D, self.rank, self.heads, self.head_dim) if self.rank else (),
            skip_H=jnp.ones(self.heads),
            out_norm_X=jnp.ones(self.inner),
            out_XxD=normal(out, (self.inner, self.D), self.inner),
        )

    def init_cache(self, batch: int) -> "Mamba2Cache":
        """Nothing seen yet."""
        state = init_scan_state((batch, self.heads, self.head_dim, self.state), self.rank > 0)
        return Mamba2Cache(jnp.zeros((batch, self.conv, self.convolved), self.compute_dtype), state)

    def mix(self, params: "Mamba2Params", state, x_BxTxD: Tokens, gap_BxT: Gaps, *, key, train, segment_BxT):
        """Whole sequences; gaps are not used."""
        h, z, xBC, dt = _enter(params, x_BxTxD, segment_BxT, self)
        read_BxTxX, _ = _scan(params, h, xBC, dt, None, segment_BxT, self, self.backend)
        return _output(params, read_BxTxX, z, self).astype(x_BxTxD.dtype), LayerAux()

    def mix_token(self, params: "Mamba2Params", state, cache: "Mamba2Cache", x_BxD: Token, gap_B: Gap, *, key):
        """One token; gaps are not used."""
        h_BxD, z, xBC, dt = _project(params, x_BxD, self)
        weight_WxX, bias_X = cast((params.conv_WxX, params.conv_bias_X), self.compute_dtype)
        past, xBC = conv_step(cache.past_BxWxX, xBC, weight_WxX)
        one = h_BxD[:, None], self._split((xBC + bias_X)[:, None]), dt[:, None]
        read_Bx1xX, scanned = _scan(params, *one, cache.state, None, self, "reference")
        mixed_BxD = _output(params, read_Bx1xX[:, 0], z, self).astype(x_BxD.dtype)
        return mixed_BxD, Mamba2Cache(past, scanned), LayerAux()

    def operations(self, shape: tuple[int, int], routes, train: bool) -> Operations:
        """Projections, convolution and state."""
        projected = self.D * (2 * self.inner + self.convolved + self.heads)
        importance = self.rank * (self.D + self.inner)
        weights = projected + importance + self.conv * self.convolved
        return operations.recurrent(weights, self.inner * self.state, self.rank > 0, shape, train)


class Mamba2Params(NamedTuple):
    """Attributes:
    norm_D: before the mixer.
    in_DxX: to z, x, B, C and dt, in this order; B and C have G parts each.
    conv_WxX, conv_bias_X: over x, B and C.
    decay, importance: see `recurrence.py`; importance is () where rank is 0.
    skip_H: weight of x beside what is read. out_norm_X: of the gated inner width. out_XxD: back.
    """

    norm_D: Float[Array, "*layers D"]
    in_DxX: Float[Array, "*layers D X"]
    conv_WxX: Float[Array, "*layers W X"]
    conv_bias_X: Float[Array, "*layers X"]
    decay: Decay
    importance: Importance | tuple[()]
    skip_H: Float[Array, "*layers H"]
    out_norm_X: Float[Array, "*layers X"]
    out_XxD: Float[Array, "*layers X D"]


class Mamba2Cache(NamedTuple):
    """Attributes: the convolution's last W inputs, and the scan's state."""

    past_BxWxX: Float[Array, "B W X"]
    state: Float[Array, "B H V K"] | kernels.PalimpsaState


def _project(params: Mamba2Params, x: Float[Array, "... D"], cfg: Mamba2Config):
    """(normed token, z, what is convolved, dt)."""
    h = rms_norm(params.norm_D, x, cfg.epsilon)
    projected = cast(h, cfg.compute_dtype) @ cast(params.in_DxX, cfg.compute_dtype)
    z, xBC, dt = jnp.split(projected, (cfg.inner, cfg.inner + cfg.convolved), axis=-1)
    dt = jax.nn.softplus(dt.astype(x.dtype) + params.decay.bias_H)
    return h, z, xBC, dt


def _enter(params: Mamba2Params, x_BxTxD: Tokens, segment_BxT, cfg: Mamba2Config):
    """`_project` of whole sequences, with [x, B, C] after the convolution."""
    weight_WxX, bias_X = cast((params.conv_WxX, params.conv_bias_X), cfg.compute_dtype)
    convolved = lambda in_BxTxX, weight_WxX, bias_X: causal_conv(in_BxTxX, weight_WxX, segment_BxT) + bias_X
    if not own_heads(cfg.heads):
        h, z, xBC, dt = _project(params, x_BxTxD, cfg)
        return h, z, cfg._split(convolved(xBC, weight_WxX, bias_X)), dt
    h = rms_norm(params.norm_D, x_BxTxD, cfg.epsilon)
    of_heads, of_groups = (cfg.heads, cfg.head_dim), (cfg.groups, cfg.state)
    in_BxTxD, in_DxX = cast((h, params.in_DxX), cfg.compute_dtype)
    shapes = of_heads, of_heads, of_groups, of_groups, (cfg.heads, 1)
    z, *xBC, dt = by_head(lambda in_DxX: in_BxTxD @ in_DxX, shapes, in_DxX)
    taps = by_head(lambda *weights: weights, shapes[1:-1], weight_WxX, bias_X)
    xBC = [convolved(one, *tap) for one, tap in zip(xBC, taps, strict=True)]
    return h, z, xBC, jax.nn.softplus(dt.astype(x_BxTxD.dtype) + params.decay.bias_H)


def _scan(params: Mamba2Params, h_BxTxD, xBC: list, dt_BxTxH, state, segment_BxT, cfg: Mamba2Config, backend: str):
    """(what is read, with the skip; state)."""
    B, T, _ = h_BxTxD.shape
    x, k, q = map(jax.nn.silu, xBC)
    x_BxTxHxV = x.reshape(B, T, cfg.heads, cfg.head_dim).astype(h_BxTxD.dtype)
    k, q = (part.reshape(B, T, cfg.groups, cfg.state).astype(h_BxTxD.dtype) for part in (k, q))
    v_BxTxHxV, rate_H = dt_BxTxH[..., None] * x_BxTxHxV, jnp.exp(params.decay.log_rate_H)
    shared = dict(scale=1.0, segment_BxT=segment_BxT, backend=backend)
    if cfg.rank:
        beta_BxTxHxV = dt_BxTxH[..., None] * importance(params.importance, h_BxTxD)
        prior_H = jnp.ones(cfg.heads)
        o, state = kernels.palimpsa_scan(q, k, v_BxTxHxV, beta_BxTxHxV, dt_BxTxH, rate_H, prior_H, state, **shared)
    else:
        o, state = kernels.ssd_scan(q, k, v_BxTxHxV, -dt_BxTxH * rate_H, state, **shared)
    return (o + params.skip_H[:, None] * x_BxTxHxV).reshape(B, T, cfg.inner), state


def _output(params: Mamba2Params, read, z, cfg: Mamba2Config):
    gated = read * jax.nn.silu(z.astype(read.dtype))
    groups = cfg.norm_groups, cfg.inner // cfg.norm_groups
    scale_X, out_XxD = params.out_norm_X, params.out_XxD
    if not own_heads(cfg.heads):  # X may divide where heads do not: tokens would be sent for it
        scale_X, out_XxD = constrained(scale_X, "."), constrained(out_XxD, "..")
    parts, scale = gated.reshape(*gated.shape[:-1], *groups), scale_X.reshape(groups)
    normed = rms_norm(scale, parts, cfg.epsilon).reshape(gated.shape)
    return cast(normed, cfg.compute_dtype) @ cast(out_XxD, cfg.compute_dtype)
