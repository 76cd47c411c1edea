"""Episodic memory: a bounded buffer of kept events, written through a gate and read by attention (CRAM, Eq 3)."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Bool, Float, Int, Key, Marks, Segments, Token, Tokens
from cram_jax.functional.checks import check_at_least_one, check_fields
from cram_jax.functional.common import FeedForward, feed_forward, init_feed_forward, normal, rotate, silent
from cram_jax.kernels.backends import SKIP_ATTENTION

# Shares of a sequence's (queries, keys). After the release, training attends with some 5% of tokens, audits included,
# and keeps under 20%.
BUCKET_SIZES = ((1 / 8, 1 / 4), (1, 1))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class EpisodicConfig:
    """heads: H. head_dim: K, of keys and of values; one coordinate of the values carries the write gate's gradient.
    memory: M, kept events that the buffer holds; the oldest leaves first.
    rotary: rotates queries and keys by their position; without it attention sees content alone.
    write_audit_rate: in training, an event that the write gate refuses is kept with chance exp(logit), and at least
        with this one. So a binding that was dropped, and whose queries are therefore routed away, is tried again in
        proportion to the reads expected of it. With a constant 2%, two keys of 400 were never kept again in 10,000
        steps.
    write_bias: initial logit of the write gate; above 0 it keeps all events. The gate's gradient begins at
        exp(write_bias), and is clipped together with the rest of the model.
    width: hidden units of the write gate.
    backend: of `kernels.skip_attention_compact`.
    """

    heads: int = 2
    head_dim: int = 32
    memory: int = 64
    rotary: bool = False
    write_audit_rate: float = 0.02
    write_bias: float = 0.5
    width: int = 32
    backend: str = "auto"

    def __post_init__(self):
        check_fields(self)
        SKIP_ATTENTION.check(self.backend)
        check_at_least_one(self, "heads", "memory", "width")
        if self.head_dim < 2:
            raise ValueError(f"head_dim must be at least 2, got {self.head_dim}")
        if not 0 < self.write_audit_rate <= 1:
            raise ValueError(f"write_audit_rate must be in (0, 1], got {self.write_audit_rate}")


class EpisodicParams(NamedTuple):
    """Attributes:
    q_DxHxK, k_DxHxK. v_DxHxV, o_HxVxD: without the coordinate of the write gate.
    write: the write gate, from a token and its novelty 1 - q-hat to a logit (`Writes`).
    """

    q_DxHxK: Float[Array, "D H K"]
    k_DxHxK: Float[Array, "D H K"]
    v_DxHxV: Float[Array, "D H V"]
    o_HxVxD: Float[Array, "H V D"]
    write: FeedForward


class EpisodicCache(NamedTuple):
    """A ring of the last M kept events: Eq 3's (k_i, v_i).

    Eq 3's tau_i is in the key if that is rotated. Its c_i, the novelty, went into the write gate; nothing reads it
    later.

    Attributes:
      k_NxMxK, v_NxMxV: keys and values; sequences and heads are one axis (`kernels.read_cache`).
      written_B: events kept so far; the ring's next place is this modulo M.
    """

    k_NxMxK: Float[Array, "N M K"]
    v_NxMxV: Float[Array, "N M V"]
    written_B: Int[Array, "B"]


def init(key: Key, D: int, cfg: EpisodicConfig) -> EpisodicParams:
    """Unit-variance projections; almost all events are kept."""
    H, K = cfg.heads, cfg.head_dim
    q, k, v, o, w = jax.random.split(key, 5)
    return EpisodicParams(
        normal(q, (D, H, K), D),
        normal(k, (D, H, K), D),
        normal(v, (D, H, K - 1), D),
        normal(o, (H, K - 1, D), H * K),
        silent(init_feed_forward(w, D + 1, cfg.width, 1)),
    )


def init_cache(cfg: EpisodicConfig, batch: int, dtype: str | None = None) -> EpisodicCache:
    """An empty buffer. dtype: of keys and values."""
    shape = (batch * cfg.heads, cfg.memory, cfg.head_dim)
    return EpisodicCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros(batch, jnp.int32))


class Writes(NamedTuple):
    """Attributes:
    logit_BxT: log(expected reads of the event / reads needed to justify keeping it).
    kept_BxT: which events enter the buffer.
    read_weight_BxT: 0, with the gradient of logit / P(kept). Reads of an event pass a gradient to the gate through it.
        Only a kept event can be read, so the division makes the expected gradient that of keeping the event.
    """

    logit_BxT: Float[Array, "*shape"]
    kept_BxT: Bool[Array, "*shape"]
    read_weight_BxT: Float[Array, "*shape"]


def decide_writes(
    gate: FeedForward,
    x: Float[Array, "... D"],
    novelty: Float[Array, "..."],
    uniform: Float[Array, "..."] | None,
    *,
    cfg: EpisodicConfig,
) -> Writes:
    """Which events are kept: those with logit > 0 and, if random numbers are given, others with chance exp(logit).

    The gate learns only from reads: the attention that an event receives from routed queries, mean over heads. It
    regresses them (`objective.write_loss`). A log-bias on the event's key could not teach the gate: once a query
    matches, the attention weight is 1 whatever the bias.
    """
    seen = jnp.concatenate([jax.lax.stop_gradient(x), novelty[..., None]], axis=-1)
    logit = feed_forward(gate, seen)[..., 0] + cfg.write_bias
    if uniform is None:
        return Writes(logit, logit > 0, jnp.zeros_like(logit))
    chance = jax.lax.stop_gradient(jnp.clip(jnp.exp(logit), cfg.write_audit_rate, 1))
    return Writes(logit, uniform < chance, (logit - jax.lax.stop_gradient(logit)) / chance)


def _queries(params: EpisodicParams, x_BxCxD, position_BxC, cfg: EpisodicConfig):
    q = jnp.einsum("bcd,dhk->bchk", x_BxCxD, params.q_DxHxK)
    return rotate(q, position_BxC) if cfg.rotary else q


def _keys_values(params: EpisodicParams, x_BxSxD, read_weight_BxS, position_BxS, cfg: EpisodicConfig):
    k = jnp.einsum("bsd,dhk->bshk", x_BxSxD, params.k_DxHxK)
    return rotate(k, position_BxS) if cfg.rotary else k, values(params.v_DxHxV, x_BxSxD, read_weight_BxS)


def values(
    v_DxHxV: Float[Array, "D H V"], x: Float[Array, "... D"], read_weight: Float[Array, "..."]
) -> Float[Array, "... H K"]:
    """The events' values, and as their last coordinate the read weight (`Writes`)."""
    v = jnp.einsum("...d,dhv->...hv", x, v_DxHxV)
    weight = jnp.broadcast_to(read_weight[..., None, None], (*v.shape[:-1], 1)).astype(v.dtype)
    return jnp.concatenate([v, weight], axis=-1)


def output(o_HxVxD: Float[Array, "H V D"], o: Float[Array, "... H K"]):
    """(r^E; reads: 0, with the gradient of the read weights of the events that were read)."""
    return jnp.einsum("...hv,hvd->...d", o[..., :-1], o_HxVxD), jnp.mean(o[..., -1], axis=-1)


def plan_reads(
    writes: Writes, attends_BxT: Marks, segment_BxT: Segments | None, *, cfg: EpisodicConfig
) -> kernels.SkipPlan:
    """The tokens that attend, and for each the last M events kept, up to and with its own."""
    return kernels.make_plan(attends_BxT, kept_BxT=writes.kept_BxT, memory=cfg.memory, segment_BxT=segment_BxT)


def read(
    params: EpisodicParams,
    plan: kernels.SkipPlan,
    x_BxTxD: Tokens,
    read_weight_BxT: Float[Array, "B T"],
    *,
    cfg: EpisodicConfig,
) -> tuple[Tokens, Float[Array, "B T"]]:
    """(r^E of the tokens that attend (Eq 3), the reads that the write gate learns from); 0 elsewhere.

    Queries and outputs are projected for the plan's rows only, keys and values for its slots only, in the smallest
    bucket that holds the longest lists of the batch.
    """
    return attend(_projected, params, plan, x_BxTxD, read_weight_BxT, cfg=cfg)


def _projected(cfg: EpisodicConfig, params, plan, x_BxTxD, weight_BxS):
    q = _queries(params, plan.gather_queries(x_BxTxD), plan.rows_BxC, cfg)
    return q, *_keys_values(params, plan.gather_keys(x_BxTxD), weight_BxS, plan.slots_BxS, cfg)


def attend(project: Callable, params, plan: kernels.SkipPlan, x_BxTxD: Tokens, read_weight_BxT, *, cfg: EpisodicConfig):
    """`read` with other projections.

    Args:
      project: from (cfg, params, plan, x_BxTxD, read weights of the plan's slots) to (queries of its rows, keys of its
        slots, values of its slots).
      params: what `project` needs, and `o_HxVxD`.
    """
    T, kind = x_BxTxD.shape[1], jnp.result_type(x_BxTxD, params.o_HxVxD)
    cfg = dataclasses.replace(cfg, backend=kernels.resolve(cfg.backend, T, T, kind))
    f = partial(_attend, project, cfg)
    return kernels.in_buckets(f, plan, params, x_BxTxD, read_weight_BxT, sizes=BUCKET_SIZES)


def _attend(project, cfg: EpisodicConfig, plan, params, x_BxTxD, read_weight_BxT):
    T = x_BxTxD.shape[1]
    q, k, v = project(cfg, params, plan, x_BxTxD, plan.gather_keys(read_weight_BxT))
    r_BxCxD, reads_BxC = output(params.o_HxVxD, kernels.skip_attention_compact(q, k, v, plan, backend=cfg.backend))
    return plan.scatter(r_BxCxD, T), plan.scatter(reads_BxC, T)


def write(
    params: EpisodicParams,
    cache: EpisodicCache,
    x_BxD: Token,
    kept_B: Bool[Array, "B"],
    position: Int[Array, ""],
    *,
    cfg: EpisodicConfig,
) -> EpisodicCache:
    """Puts one event into the ring if it is kept; a full ring loses its oldest event."""
    B = x_BxD.shape[0]
    position_Bx1 = jnp.full((B, 1), position)
    k, v = _keys_values(params, x_BxD[:, None], jnp.zeros((B, 1)), position_Bx1, cfg)
    return push(cache, k[:, 0], v[:, 0], kept_B)


def push(
    cache: EpisodicCache, k_BxGxK: Float[Array, "B G K"], v_BxGxV: Float[Array, "B G V"], kept_B: Bool[Array, "B"]
) -> EpisodicCache:
    """The ring with one event's key and value added if it is kept; a full ring loses its oldest event."""
    M = cache.k_NxMxK.shape[1]
    place_B = jnp.where(kept_B, cache.written_B % M, M)  # beyond the end: dropped
    return EpisodicCache(
        kernels.write_cache(cache.k_NxMxK, k_BxGxK, place_B),
        kernels.write_cache(cache.v_NxMxV, v_BxGxV, place_B),
        cache.written_B + kept_B,
    )


def look_up(cache: EpisodicCache, q_BxHxK: Float[Array, "B H K"], attends_B: Bool[Array, "B"]):
    """What queries read in the ring, (B H V); 0 for sequences that do not attend."""
    end_B = jnp.where(attends_B, jnp.minimum(cache.written_B, cache.k_NxMxK.shape[1]), 0)
    return kernels.read_cache(q_BxHxK, cache.k_NxMxK, cache.v_NxMxV, end_B)


def read_cache(
    params: EpisodicParams,
    cache: EpisodicCache,
    x_BxD: Token,
    attends_B: Bool[Array, "B"],
    position: Int[Array, ""],
    *,
    cfg: EpisodicConfig,
) -> Token:
    """r^E of one token, read from the ring; 0 where it does not attend. If no sequence attends, nothing is computed."""

    def attend():
        q_Bx1xHxK = _queries(params, x_BxD[:, None], jnp.full((x_BxD.shape[0], 1), position), cfg)
        return output(params.o_HxVxD, look_up(cache, q_Bx1xHxK[:, 0], attends_B))[0].astype(x_BxD.dtype)

    return jax.lax.cond(jnp.any(attends_B), attend, lambda: jnp.zeros_like(x_BxD))
