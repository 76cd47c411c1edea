"""The transformer layer to compare with: causal multi-head attention for every token, then a feed-forward network."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Int, Key, Segments, Token, Tokens
from cram_jax.functional.common import (
    FeedForward,
    at_least_one,
    cast,
    check_compute,
    check_inputs,
    feed_forward,
    init_feed_forward,
    normal,
    rms_norm,
    rotate,
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """D: width. F: hidden units of the feed-forward network. heads, head_dim: H and K.
    rotary: positions in queries and keys; content alone tells where it is False.
    context: tokens the streaming cache has room for; a longer stream raises nothing and forgets the oldest.
    compute_dtype: of all products and of the cache; None is that of the tokens, whose own the residual keeps.
    """

    D: int = 64
    F: int = 128
    heads: int = 2
    head_dim: int = 32
    rotary: bool = False
    context: int = 2048
    compute_dtype: str | None = None

    def __post_init__(self):
        at_least_one(self, "D", "F", "heads", "head_dim", "context")
        check_compute(self.compute_dtype)


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


def init(key: Key, cfg: AttentionConfig) -> AttentionParams:
    """Unit-variance projections."""
    qkv, o, ff = jax.random.split(key, 3)
    D, H, K = cfg.D, cfg.heads, cfg.head_dim
    return AttentionParams(
        jnp.ones(D),
        normal(qkv, (D, 3, H, K), D),
        normal(o, (H, K, D), H * K),
        jnp.ones(D),
        init_feed_forward(ff, D, cfg.F),
    )


def init_state(cfg: AttentionConfig) -> tuple[()]:
    """A transformer layer learns nothing outside its parameters."""
    return ()


def init_cache(cfg: AttentionConfig, batch: int) -> AttentionCache:
    """Nothing seen yet."""
    shape = (batch * cfg.heads, cfg.context, cfg.head_dim)
    blank = lambda: jnp.zeros(shape, cfg.compute_dtype)
    return AttentionCache(jnp.zeros((), jnp.int32), blank(), blank())


def qkv(params: AttentionParams, x_BxTxD, position_BxT, cfg: AttentionConfig):
    """Queries, keys and values, each (B T H K), of tokens at these positions."""
    z_BxTxD = cast(rms_norm(params.norm_D, x_BxTxD), cfg.compute_dtype)
    q, k, v = jnp.moveaxis(jnp.einsum("btd,dxhk->btxhk", z_BxTxD, cast(params.qkv_Dx3xHxK, cfg.compute_dtype)), 2, 0)
    return (rotate(q, position_BxT), rotate(k, position_BxT), v) if cfg.rotary else (q, k, v)


def output(params: AttentionParams, o_BxTxHxK, cfg: AttentionConfig):
    """What heads read, as tokens."""
    return jnp.einsum("bthk,hkd->btd", o_BxTxHxK, cast(params.o_HxKxD, cfg.compute_dtype))


def feed(params: AttentionParams, x: Float[Array, "... D"], cfg: AttentionConfig) -> Float[Array, "... D"]:
    """The tokens after the feed-forward network."""
    z = cast(rms_norm(params.norm_ff_D, x), cfg.compute_dtype)
    return x + feed_forward(cast(params.feed_forward, cfg.compute_dtype), z).astype(x.dtype)


def _finish(params: AttentionParams, x_BxTxD, o_BxTxHxK, cfg: AttentionConfig):
    return feed(params, x_BxTxD + output(params, o_BxTxHxK, cfg).astype(x_BxTxD.dtype), cfg)


def apply(
    params: AttentionParams,
    state: tuple[()],
    x_BxTxD: Tokens,
    *,
    cfg: AttentionConfig,
    gap_BxT: Gaps | None = None,
    key: Key | None = None,
    train: bool = False,
    segment_BxT: Segments | None = None,
) -> tuple[Tokens, tuple[()]]:
    """A whole sequence. `state`, `gap_BxT`, `key` and `train` are of the shared contract and change nothing here."""
    del state, key, train
    check_inputs(x_BxTxD, cfg.D, gap_BxT, segment_BxT)
    B, T, _ = x_BxTxD.shape
    q, k, v = qkv(params, x_BxTxD, jnp.broadcast_to(jnp.arange(T), (B, T)), cfg)
    # On a CPU our own kernel at full use is the fastest dense attention there is, and its memory grows with T.
    o_BxTxHxK = jax.lax.platform_dependent(q, k, v, segment_BxT, cpu=_tiled, default=_masked)
    return _finish(params, x_BxTxD, o_BxTxHxK, cfg), ()


def _tiled(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segment_BxT):
    plan = kernels.make_plan(jnp.ones(q_BxTxHxK.shape[:2], bool), segment_BxT=segment_BxT)
    # Every row is there already. This is the CPU's branch, whatever the default platform.
    T = q_BxTxHxK.shape[1]
    backend = kernels.resolve("auto", T, T, platform="cpu")
    return kernels.skip_attention_compact(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, plan, backend=backend)


def _masked(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, segment_BxT):
    same_Bx1xTxT = None if segment_BxT is None else segment_BxT[:, None, :, None] == segment_BxT[:, None, None, :]
    return jax.nn.dot_product_attention(q_BxTxHxK, k_BxTxHxK, v_BxTxHxK, mask=same_Bx1xTxT, is_causal=True)


def step(
    params: AttentionParams,
    state: tuple[()],
    cache: AttentionCache,
    x_BxD: Token,
    *,
    cfg: AttentionConfig,
    gap_B: Gap | None = None,
    key: Key | None = None,
) -> tuple[Token, AttentionCache, tuple[()]]:
    """One token, streaming; equals `apply` for the first `context` tokens, and sees the last `context` after."""
    del state, key
    x_Bx1xD = x_BxD[:, None]
    check_inputs(x_Bx1xD, cfg.D, None if gap_B is None else gap_B[:, None], None)
    q, k, v = qkv(params, x_Bx1xD, jnp.full((x_BxD.shape[0], 1), cache.position), cfg)
    place = cache.position % cfg.context  # the same for all: one slice, not a scatter
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(
        old, new.reshape(-1, 1, cfg.head_dim).astype(old.dtype), place, axis=1
    )
    k_NxTxK, v_NxTxK = put(cache.k_NxTxK, k), put(cache.v_NxTxK, v)
    end_B = jnp.full(x_BxD.shape[0], jnp.minimum(cache.position + 1, cfg.context))
    o_Bx1xHxK = kernels.read_cache(q[:, 0], k_NxTxK, v_NxTxK, end_B)[:, None]
    return _finish(params, x_Bx1xD, o_Bx1xHxK, cfg)[:, 0], AttentionCache(cache.position + 1, k_NxTxK, v_NxTxK), ()
