"""The transformer layer: causal multi-head attention of every token, then a feed-forward network."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Int, Key, Token, Tokens
from cram_jax.functional import operations
from cram_jax.functional.checks import check_at_least_one, check_compute_dtype, check_fields
from cram_jax.functional.common import (
    FeedForward,
    cast,
    feed_forward,
    init_feed_forward,
    normal,
    rms_norm,
    rotate,
)
from cram_jax.functional.layer import Layer, LayerAux, Operations, apply, init, init_cache, init_state, step
from cram_jax.kernels.recurrent import contained, starts_of

__all__ = ["AttentionCache", "AttentionConfig", "AttentionParams", "apply", "init", "init_cache", "init_state", "step"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class AttentionConfig(Layer):
    """D: width. F: hidden units of the feed-forward network. heads, head_dim: H and K.
    rotary: rotates queries and keys by their position; without it attention sees content alone.
    context: tokens that the streaming cache holds. A longer stream forgets the oldest.
    compute_dtype: of all products and of the cache; None is that of the tokens. The residual keeps the tokens' own.
    """

    D: int = 64
    F: int = 128
    heads: int = 2
    head_dim: int = 32
    rotary: bool = False
    context: int = 2048
    compute_dtype: str | None = None

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "D", "F", "heads", "head_dim", "context")
        check_compute_dtype(self.compute_dtype)

    def init(self, key: Key) -> "AttentionParams":
        """Unit-variance projections."""
        qkv, o, ff = jax.random.split(key, 3)
        D, H, K = self.D, self.heads, self.head_dim
        return AttentionParams(
            jnp.ones(D),
            normal(qkv, (D, 3, H, K), D),
            normal(o, (H, K, D), H * K),
            jnp.ones(D),
            init_feed_forward(ff, D, self.F),
        )

    def init_cache(self, batch: int) -> "AttentionCache":
        """Nothing seen yet."""
        shape = (batch * self.heads, self.context, self.head_dim)
        blank = lambda: jnp.zeros(shape, self.compute_dtype)
        return AttentionCache(jnp.zeros((), jnp.int32), blank(), blank())

    def mix(self, params, state, x_BxTxD: Tokens, gap_BxT: Gaps, *, key, train, segment_BxT):
        """Causal attention of every token."""
        B, T, _ = x_BxTxD.shape
        q, k, v = qkv(params, x_BxTxD, jnp.broadcast_to(jnp.arange(T), (B, T)), self)
        # On a CPU our own kernel at full use is the fastest dense attention there is, and its memory grows with T.
        o_BxTxHxK = jax.lax.platform_dependent(q, k, v, segment_BxT, cpu=_tiled, default=_masked)
        return output(params, o_BxTxHxK, self).astype(x_BxTxD.dtype), LayerAux()

    def mix_token(self, params, state, cache: "AttentionCache", x_BxD: Token, gap_B: Gap, *, key):
        """Equals `mix` for the first `context` tokens; later tokens see the last `context`."""
        q, k, v = qkv(params, x_BxD[:, None], jnp.full((x_BxD.shape[0], 1), cache.position), self)
        place = cache.position % self.context  # the same for all sequences: one slice, not a scatter
        put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
            old, new.reshape(old.shape[0], 1, self.head_dim).astype(old.dtype), place, axis=1
        )
        k_NxTxK, v_NxTxK = put(cache.k_NxTxK, k), put(cache.v_NxTxK, v)
        end_B = jnp.full(x_BxD.shape[0], jnp.minimum(cache.position + 1, self.context))
        o_Bx1xHxK = kernels.read_cache(q[:, 0], k_NxTxK, v_NxTxK, end_B)[:, None]
        mixed_BxD = output(params, o_Bx1xHxK, self)[:, 0].astype(x_BxD.dtype)
        return mixed_BxD, AttentionCache(cache.position + 1, k_NxTxK, v_NxTxK), LayerAux()

    def mixer_params(self, params):
        """Without the feed-forward network."""
        return params._replace(norm_ff_D=(), feed_forward=())

    def feed(self, params: "AttentionParams", x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """x + W_out gelu(W_in norm(x) + b)."""
        z = cast(rms_norm(params.norm_ff_D, x), self.compute_dtype)
        return x + feed_forward(cast(params.feed_forward, self.compute_dtype), z).astype(x.dtype)

    def operations(self, shape: tuple[int, int], routes, train: bool) -> Operations:
        """Dense attention, and the feed-forward network."""
        work = operations.dense_work(shape)
        attention = operations.attention(work, self.D, self.heads, self.head_dim, train=train, in_buckets=False)
        beside = operations.per_token(operations.network(self.D, self.F, self.D), work.tokens, train)
        return Operations(attention, attention + beside)


class AttentionParams(NamedTuple):
    """Attributes: projections per head, and a norm before each half."""

    norm_D: Float[Array, "D"]
    qkv_Dx3xHxK: Float[Array, "D 3 H K"]
    o_HxKxD: Float[Array, "H K D"]
    norm_ff_D: Float[Array, "D"]
    feed_forward: FeedForward


class AttentionCache(NamedTuple):
    """Attributes: tokens seen, and a ring of keys and values (N: sequences and heads, see `kernels.read_cache`)."""

    position: Int[Array, ""]
    k_NxTxK: Float[Array, "N T K"]
    v_NxTxK: Float[Array, "N T K"]


def qkv(params: AttentionParams, x_BxTxD, position_BxT, cfg: AttentionConfig):
    """Queries, keys and values, each (B T H K), of tokens at these positions; the input is normalised here."""
    z_BxTxD = cast(rms_norm(params.norm_D, x_BxTxD), cfg.compute_dtype)
    q, k, v = jnp.moveaxis(jnp.einsum("btd,dxhk->btxhk", z_BxTxD, cast(params.qkv_Dx3xHxK, cfg.compute_dtype)), 2, 0)
    return (rotate(q, position_BxT), rotate(k, position_BxT), v) if cfg.rotary else (q, k, v)


def output(params: AttentionParams, o_BxTxHxK, cfg: AttentionConfig):
    """What the heads read, projected to tokens."""
    return jnp.einsum("bthk,hkd->btd", o_BxTxHxK, cast(params.o_HxKxD, cfg.compute_dtype))


def _tiled(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segment_BxT):
    plan = kernels.make_plan(jnp.ones(q_BxTxHxK.shape[:2], bool), segment_BxT=segment_BxT)
    # All rows are there already, so nothing is gathered. This branch is the CPU's, whatever the default platform.
    T = q_BxTxHxK.shape[1]
    backend = kernels.resolve("auto", T, T, platform="cpu")
    return kernels.skip_attention_compact(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, plan, backend=backend)


def _masked(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segment_BxT):
    first_BxT = None if segment_BxT is None else kernels.segment_firsts(segment_BxT)
    same_Bx1xTxT = None if first_BxT is None else first_BxT[:, None, :, None] == first_BxT[:, None, None, :]
    attend = lambda q, k, v, *_: (jax.nn.dot_product_attention(q, k, v, mask=same_Bx1xTxT, is_causal=True), ())
    start_BxT = starts_of(segment_BxT, *q_BxTxHxK.shape[:2])
    return contained(attend, q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, (), start_BxT, ())[0]
