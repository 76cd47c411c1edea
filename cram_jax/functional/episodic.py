"""Episodic memory: a bounded buffer of kept events, written through a gate and read by attention (CRAM, Eq 3)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Bool, Float, Int, Key, Marks, Segments, Token, Tokens
from cram_jax.functional.common import normal, rotate


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EpisodicConfig:
    """heads: H. head_dim: K; one coordinate of it carries the write gate's log-bias.
    memory: M, how many kept events the buffer holds; the oldest leaves first.
    rotary: positions in queries and keys; content alone tells where it is False.
    write_bias: logit of the write gate at the start; 3 keeps 95% of all events.
    """

    heads: int = 2
    head_dim: int = 32
    memory: int = 64
    rotary: bool = False
    write_bias: float = 3.0

    def __post_init__(self):
        if min(self.heads, self.head_dim - 1, self.memory) < 1:
            raise ValueError(f"heads and memory must be at least 1 and head_dim at least 2, got {self}")


class EpisodicParams(NamedTuple):
    """Attributes:
    q_DxHxK, k_DxHxK: without the coordinate of the log-bias. v_DxHxV, o_HxVxD.
    write_D, write_novelty, write_bias: the write gate's logit, from the token and its novelty 1 - q-hat.
    """

    q_DxHxK: Float[Array, "D H K"]
    k_DxHxK: Float[Array, "D H K"]
    v_DxHxV: Float[Array, "D H V"]
    o_HxVxD: Float[Array, "H V D"]
    write_D: Float[Array, "D"]  # noqa: UP037
    write_novelty: Float[Array, ""]
    write_bias: Float[Array, ""]


class EpisodicCache(NamedTuple):
    """A ring of the last M kept events: Eq 3's (k_i, v_i, tau_i, c_i).

    Attributes:
      k_BxMxHxK, v_BxMxHxV: keys (log-bias included) and values.
      position_BxM: when the event came, in positions.
      novelty_BxM: c_i = 1 - q-hat at that time.
      written_B: events kept so far; the ring's next place is this modulo M.
    """

    k_BxMxHxK: Float[Array, "B M H K"]
    v_BxMxHxV: Float[Array, "B M H V"]
    position_BxM: Int[Array, "B M"]
    novelty_BxM: Float[Array, "B M"]
    written_B: Int[Array, "B"]  # noqa: UP037


def init(key: Key, D: int, cfg: EpisodicConfig) -> EpisodicParams:
    """Unit-variance projections; almost everything is kept."""
    H, K = cfg.heads, cfg.head_dim
    q, k, v, o = jax.random.split(key, 4)
    return EpisodicParams(
        normal(q, (D, H, K - 1), D),
        normal(k, (D, H, K - 1), D),
        normal(v, (D, H, K), D),
        normal(o, (H, K, D), H * K),
        jnp.zeros(D),
        jnp.zeros(()),
        jnp.asarray(cfg.write_bias, jnp.float32),
    )


def init_cache(cfg: EpisodicConfig, batch: int) -> EpisodicCache:
    """An empty buffer."""
    M = cfg.memory
    shape = (batch, M, cfg.heads, cfg.head_dim)
    return EpisodicCache(
        jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((batch, M), jnp.int32), jnp.zeros((batch, M)),
        jnp.zeros(batch, jnp.int32),
    )  # fmt: skip


def write_logit(params: EpisodicParams, x: Float[Array, "... D"], novelty: Float[Array, "..."]) -> Float[Array, "..."]:
    """Logit of keeping an event."""
    return x @ params.write_D + params.write_novelty * novelty + params.write_bias


def keep(logit_BxT: Float[Array, "B T"], uniform_BxT: Float[Array, "B T"] | None) -> Marks:
    """Which events enter the buffer: sampled with the gate's probability where numbers are given, else logit > 0."""
    noise = 0 if uniform_BxT is None else jnp.log(uniform_BxT) - jnp.log1p(-uniform_BxT)
    return logit_BxT + noise > 0


def _queries(params: EpisodicParams, x_BxCxD, position_BxC, cfg: EpisodicConfig):
    q = jnp.einsum("bcd,dhk->bchk", x_BxCxD, params.q_DxHxK)
    if cfg.rotary:
        q = rotate(q, position_BxC)
    # scale * (this coordinate of q) * (that of k) = log-bias
    return jnp.concatenate([q, jnp.full_like(q[..., :1], cfg.head_dim**0.5)], axis=-1)


def _keys_values(params: EpisodicParams, x_BxSxD, logit_BxS, position_BxS, cfg: EpisodicConfig):
    k = jnp.einsum("bsd,dhk->bshk", x_BxSxD, params.k_DxHxK)
    if cfg.rotary:
        k = rotate(k, position_BxS)
    bias = jnp.broadcast_to(jax.nn.log_sigmoid(logit_BxS)[..., None, None], (*k.shape[:-1], 1)).astype(k.dtype)
    return jnp.concatenate([k, bias], axis=-1), jnp.einsum("bsd,dhv->bshv", x_BxSxD, params.v_DxHxV)


def read(
    params: EpisodicParams,
    x_BxTxD: Tokens,
    logit_BxT: Float[Array, "B T"],
    kept_BxT: Marks,
    attends_BxT: Marks,
    segment_BxT: Segments | None,
    *,
    cfg: EpisodicConfig,
) -> Tokens:
    """r^E of the tokens that attend, over the last M events kept up to and with them (Eq 3); 0 elsewhere.

    Queries and outputs are projected for rows of the plan only, keys and values for its kept slots.
    """
    plan = kernels.make_plan(attends_BxT, kept_BxT=kept_BxT, memory=cfg.memory, segment_BxT=segment_BxT)
    q = _queries(params, plan.gather_queries(x_BxTxD), plan.rows_BxC, cfg)
    k, v = _keys_values(params, plan.gather_keys(x_BxTxD), plan.gather_keys(logit_BxT), plan.slots_BxS, cfg)
    o_BxCxHxV = kernels.skip_attention_compact(q, k, v, plan)
    return plan.scatter(jnp.einsum("bchv,hvd->bcd", o_BxCxHxV, params.o_HxVxD), x_BxTxD.shape[1])


def write(
    params: EpisodicParams,
    cache: EpisodicCache,
    x_BxD: Token,
    logit_B: Float[Array, "B"],  # noqa: UP037
    kept_B: Bool[Array, "B"],  # noqa: UP037
    position: Int[Array, ""],
    novelty_B: Float[Array, "B"],  # noqa: UP037
    *,
    cfg: EpisodicConfig,
) -> EpisodicCache:
    """Puts one event into the ring where it is kept, over the oldest one when the ring is full."""
    B = x_BxD.shape[0]
    position_Bx1 = jnp.full((B, 1), position)
    k, v = _keys_values(params, x_BxD[:, None], logit_B[:, None], position_Bx1, cfg)
    place_B = jnp.where(kept_B, cache.written_B % cfg.memory, cfg.memory)  # beyond the end: dropped
    put = lambda old, new: old.at[jnp.arange(B), place_B].set(new.astype(old.dtype), mode="drop")
    return EpisodicCache(
        put(cache.k_BxMxHxK, k[:, 0]),
        put(cache.v_BxMxHxV, v[:, 0]),
        put(cache.position_BxM, position_Bx1[:, 0]),
        put(cache.novelty_BxM, novelty_B),
        cache.written_B + kept_B,
    )


def read_cache(
    params: EpisodicParams,
    cache: EpisodicCache,
    x_BxD: Token,
    attends_B: Bool[Array, "B"],  # noqa: UP037
    position: Int[Array, ""],
    *,
    cfg: EpisodicConfig,
) -> Token:
    """r^E of one token from the ring; 0 where it does not attend."""
    B, M = cache.position_BxM.shape
    end_B = jnp.where(attends_B, jnp.minimum(cache.written_B, M), 0)
    zero_B = jnp.zeros(B, jnp.int32)
    slots_BxM = jnp.broadcast_to(jnp.arange(M), (B, M))
    plan = kernels.SkipPlan(zero_B[:, None], slots_BxM, zero_B[:, None], end_B[:, None], zero_B, zero_B)
    q = _queries(params, x_BxD[:, None], jnp.full((B, 1), position), cfg)
    o_Bx1xHxV = kernels.skip_attention_compact(q, cache.k_BxMxHxK, cache.v_BxMxHxV, plan)
    return jnp.einsum("bchv,hvd->bcd", o_Bx1xHxV, params.o_HxVxD)[:, 0]
