"""SeqBoat (Ren et al. 2023, arXiv 2306.11197) as a layer: a recurrent memory decides which tokens attend.

Its selection rule: from the memory's output, a two-way softmax with a learned temperature says "attend" or "pass", each
token takes the likelier, and what attention gives is weighted by that probability, which is how the rule learns: no
noise, no audits. Tokens that attend see those that attended before them, and nothing else. Shapes are static here: the
plan of `kernels` lists the chosen tokens, where the authors' code gathers as many as there are.
"""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Bool, Float, Gap, Gaps, Int, Key, Segments, Token, Tokens
from cram_jax.functional import episodic, working_memory
from cram_jax.functional.common import (
    FeedForward,
    at_least_one,
    check_inputs,
    feed_forward,
    init_feed_forward,
    normal,
    rms_norm,
    rotate,
)
from cram_jax.functional.working_memory import WorkingConfig

PASS, ATTEND = 0, 1


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SeqBoatConfig:
    """D: width. F: hidden units of the feed-forward network. heads, head_dim: H and K.
    working: the recurrent memory.
    memory: tokens that attended, the last ones of which a token sees (its working memory of the paper).
    rotary: positions in queries and keys.
    """

    D: int = 64
    F: int = 128
    heads: int = 2
    head_dim: int = 32
    memory: int = 2048
    rotary: bool = False
    working: WorkingConfig = WorkingConfig(body="gated_scan")

    def __post_init__(self):
        at_least_one(self, "D", "F", "heads", "head_dim", "memory")


class SeqBoatParams(NamedTuple):
    """Attributes:
    norm_D: before the memories. working: recurrent.
    choice_Dx2, log_temperature: from the recurrent memory's output to PASS or ATTEND.
    qkv_Dx3xHxK, o_HxKxD: attention.
    norm_ff_D, feed_forward: after them.
    """

    norm_D: Float[Array, "*layers D"]
    working: working_memory.Params
    choice_Dx2: Float[Array, "*layers D 2"]
    log_temperature: Float[Array, "*layers"]
    qkv_Dx3xHxK: Float[Array, "*layers D 3 H K"]
    o_HxKxD: Float[Array, "*layers H K D"]
    norm_ff_D: Float[Array, "*layers D"]
    feed_forward: FeedForward


class SeqBoatRoutes(NamedTuple):
    """Attributes: which tokens attended, and which could be seen from then on; the same ones here."""

    attended_BxT: Bool[Array, "*shape"]
    kept_BxT: Bool[Array, "*shape"]


class SeqBoatAux(NamedTuple):
    """Attributes: `routes`, to count and to look at."""

    routes: SeqBoatRoutes


class SeqBoatCache(NamedTuple):
    """Attributes: tokens seen, the recurrent memory's state, and a ring of keys and values of those that attended."""

    position: Int[Array, ""]
    working_BxW: Float[Array, "B W"]
    episodic: episodic.EpisodicCache


def init(key: Key, cfg: SeqBoatConfig) -> SeqBoatParams:
    """Unit-variance projections; about half of the tokens attend."""
    w, c, qkv, o, ff = jax.random.split(key, 5)
    D, H, K = cfg.D, cfg.heads, cfg.head_dim
    return SeqBoatParams(
        jnp.ones(D),
        working_memory.init(w, D, cfg.working),
        normal(c, (D, 2), D),
        jnp.zeros(()),
        normal(qkv, (D, 3, H, K), D),
        normal(o, (H, K, D), H * K),
        jnp.ones(D),
        init_feed_forward(ff, D, cfg.F),
    )


def init_state(cfg: SeqBoatConfig) -> tuple[()]:
    """Nothing is learned outside the parameters."""
    return ()


def init_cache(cfg: SeqBoatConfig, batch: int) -> SeqBoatCache:
    """Nothing seen yet."""
    shape = (batch * cfg.heads, cfg.memory, cfg.head_dim)
    ring = episodic.EpisodicCache(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(batch, jnp.int32))
    return SeqBoatCache(jnp.zeros((), jnp.int32), working_memory.init_cache(cfg.working, batch), ring)


def _choose(params: SeqBoatParams, worked: Float[Array, "... D"]):
    """(who attends, the probability of that choice)."""
    share = jax.nn.softmax(worked @ params.choice_Dx2 * jnp.exp(-params.log_temperature))
    return share[..., ATTEND] > share[..., PASS], share[..., ATTEND]


def _qkv(qkv_Dx3xHxK, z_BxCxD, position_BxC, cfg: SeqBoatConfig):
    q, k, v = jnp.moveaxis(jnp.einsum("bcd,dxhk->bcxhk", z_BxCxD, qkv_Dx3xHxK), 2, 0)
    return (rotate(q, position_BxC), rotate(k, position_BxC), v) if cfg.rotary else (q, k, v)


def _read(cfg: SeqBoatConfig, backend: str, plan: kernels.SkipPlan, weights, z_BxTxD):
    """What the tokens of the plan read, projections for them alone; 0 elsewhere."""
    qkv_Dx3xHxK, o_HxKxD = weights
    q, _, _ = _qkv(qkv_Dx3xHxK, plan.gather_queries(z_BxTxD), plan.rows_BxC, cfg)
    _, k, v = _qkv(qkv_Dx3xHxK, plan.gather_keys(z_BxTxD), plan.slots_BxS, cfg)
    o_BxCxHxK = kernels.skip_attention_compact(q, k, v, plan, backend=backend)
    return plan.scatter(jnp.einsum("bchk,hkd->bcd", o_BxCxHxK, o_HxKxD), z_BxTxD.shape[1])


def _finish(params: SeqBoatParams, x, worked, attended):
    x = x + worked + attended
    return x + feed_forward(params.feed_forward, rms_norm(params.norm_ff_D, x))


def apply(
    params: SeqBoatParams,
    state: tuple[()],
    x_BxTxD: Tokens,
    *,
    cfg: SeqBoatConfig,
    gap_BxT: Gaps | None = None,
    key: Key | None = None,
    train: bool = False,
    segment_BxT: Segments | None = None,
) -> tuple[Tokens, SeqBoatAux]:
    """A whole sequence; attention is computed for the tokens that chose it.

    `state`, `key` and `train` are of the shared contract and change nothing here.
    """
    del state, key, train
    check_inputs(x_BxTxD, cfg.D, gap_BxT, segment_BxT)
    B, T, _ = x_BxTxD.shape
    gap_BxT = jnp.ones((B, T), x_BxTxD.dtype) if gap_BxT is None else gap_BxT
    z_BxTxD = rms_norm(params.norm_D, x_BxTxD)
    worked_BxTxD, _ = working_memory.apply(params.working, z_BxTxD, gap_BxT, segment_BxT, cfg.working)
    attends_BxT, share_BxT = _choose(params, worked_BxTxD)
    plan = kernels.make_plan(attends_BxT, kept_BxT=attends_BxT, memory=cfg.memory, segment_BxT=segment_BxT)
    read = partial(_read, cfg, kernels.resolve("auto", T, T))
    attended_BxTxD = kernels.on_ladder(read, plan, (params.qkv_Dx3xHxK, params.o_HxKxD), z_BxTxD)
    y_BxTxD = _finish(params, x_BxTxD, worked_BxTxD, share_BxT[..., None] * attended_BxTxD)
    return y_BxTxD, SeqBoatAux(SeqBoatRoutes(attends_BxT, attends_BxT))


def step(
    params: SeqBoatParams,
    state: tuple[()],
    cache: SeqBoatCache,
    x_BxD: Token,
    *,
    cfg: SeqBoatConfig,
    gap_B: Gap | None = None,
    key: Key | None = None,
) -> tuple[Token, SeqBoatCache, SeqBoatRoutes]:
    """One token, streaming; equals `apply` at that position."""
    del state, key
    B = x_BxD.shape[0]
    gap_B = jnp.ones(B, x_BxD.dtype) if gap_B is None else gap_B
    check_inputs(x_BxD[:, None], cfg.D, gap_B[:, None], None)
    z_BxD = rms_norm(params.norm_D, x_BxD)
    worked_BxD, working_BxW, _ = working_memory.step(params.working, cache.working_BxW, z_BxD, gap_B, cfg.working)
    attends_B, share_B = _choose(params, worked_BxD)
    q, k, v = _qkv(params.qkv_Dx3xHxK, z_BxD[:, None], jnp.full((B, 1), cache.position), cfg)
    ring = cache.episodic
    place_B = jnp.where(attends_B, ring.written_B % cfg.memory, cfg.memory)  # beyond the end: dropped
    ring = episodic.EpisodicCache(
        kernels.write_cache(ring.k_NxMxK, k[:, 0], place_B),
        kernels.write_cache(ring.v_NxMxV, v[:, 0], place_B),
        ring.written_B + attends_B,
    )
    end_B = jnp.where(attends_B, jnp.minimum(ring.written_B, cfg.memory), 0)
    o_BxHxK = kernels.read_cache(q[:, 0], ring.k_NxMxK, ring.v_NxMxV, end_B)
    attended_BxD = share_B[:, None] * jnp.einsum("bhk,hkd->bd", o_BxHxK, params.o_HxKxD)
    y_BxD = _finish(params, x_BxD, worked_BxD, attended_BxD)
    return y_BxD, SeqBoatCache(cache.position + 1, working_BxW, ring), SeqBoatRoutes(attends_B, attends_B)
