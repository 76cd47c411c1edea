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
from cram_jax.functional import attention, episodic, working_memory
from cram_jax.functional.attention import AttentionConfig, AttentionParams
from cram_jax.functional.common import at_least_one, check_inputs, normal, rms_norm
from cram_jax.functional.episodic import EpisodicCache, EpisodicConfig
from cram_jax.functional.working_memory import WorkingConfig

PASS, ATTEND = 0, 1
BUCKET_SIZES = ((1 / 8, 1 / 8), (1, 1))  # rows and slots are the same tokens, in lists of different length


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SeqBoatConfig:
    """attention: width, heads and feed-forward network; its `context` is not used.
    memory: tokens that attended, the last ones of which a token sees (the paper's working memory).
    working: the recurrent memory.
    """

    attention: AttentionConfig = AttentionConfig()
    memory: int = 2048
    working: WorkingConfig = WorkingConfig(body="gated_scan")

    def __post_init__(self):
        at_least_one(self, "memory")

    @property
    def D(self) -> int:
        return self.attention.D


class SeqBoatParams(NamedTuple):
    """Attributes:
    norm_D: before the recurrent memory. working: the memory.
    choice_Dx2, log_temperature: from its output to PASS or ATTEND.
    attention: for those that attend, and the feed-forward network for all.
    """

    norm_D: Float[Array, "*layers D"]
    working: working_memory.Params
    choice_Dx2: Float[Array, "*layers D 2"]
    log_temperature: Float[Array, "*layers"]
    attention: AttentionParams


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
    episodic: EpisodicCache


def init(key: Key, cfg: SeqBoatConfig) -> SeqBoatParams:
    """Unit-variance projections; about half of the tokens attend."""
    w, c, a = jax.random.split(key, 3)
    return SeqBoatParams(
        norm_D=jnp.ones(cfg.D),
        working=working_memory.init(w, cfg.D, cfg.working),
        choice_Dx2=normal(c, (cfg.D, 2), cfg.D),
        log_temperature=jnp.zeros(()),
        attention=attention.init(a, cfg.attention),
    )


def init_state(cfg: SeqBoatConfig) -> tuple[()]:
    """Nothing is learned outside the parameters."""
    return ()


def init_cache(cfg: SeqBoatConfig, batch: int) -> SeqBoatCache:
    """Nothing seen yet."""
    like = EpisodicConfig(heads=cfg.attention.heads, head_dim=cfg.attention.head_dim, memory=cfg.memory)
    return SeqBoatCache(
        jnp.zeros((), jnp.int32),
        working_memory.init_cache(cfg.working, batch),
        episodic.init_cache(like, batch, cfg.attention.compute_dtype),
    )


def _choose(params: SeqBoatParams, worked: Float[Array, "... D"]):
    """(who attends, the probability of attending)."""
    share = jax.nn.softmax(worked @ params.choice_Dx2 * jnp.exp(-params.log_temperature))
    return share[..., ATTEND] > share[..., PASS], share[..., ATTEND]


def _read(cfg: AttentionConfig, backend: str, plan: kernels.SkipPlan, params: AttentionParams, x_BxTxD):
    """What the tokens of the plan read, projections for them alone; 0 elsewhere."""
    q, k, v = attention.qkv(params, plan.gather_keys(x_BxTxD), plan.slots_BxS, cfg)
    q = q[:, : plan.rows_BxC.shape[1]]  # the list of queries is the shorter one
    o_BxCxHxK = kernels.skip_attention_compact(q, k, v, plan, backend=backend)
    return plan.scatter(attention.output(params, o_BxCxHxK, cfg), x_BxTxD.shape[1])


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
    kind = jnp.dtype(cfg.attention.compute_dtype or x_BxTxD.dtype)
    read = partial(_read, cfg.attention, kernels.resolve("auto", T, T, kind))
    read_BxTxD = kernels.in_buckets(read, plan, params.attention, x_BxTxD, sizes=BUCKET_SIZES).astype(x_BxTxD.dtype)
    x_BxTxD = x_BxTxD + worked_BxTxD + share_BxT[..., None] * read_BxTxD
    return attention.feed(params.attention, x_BxTxD, cfg.attention), SeqBoatAux(SeqBoatRoutes(attends_BxT, attends_BxT))


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
    """One token, streaming; equals `apply` at that position. Where none of the batch attends, nothing is read."""
    del state, key
    B = x_BxD.shape[0]
    gap_B = jnp.ones(B, x_BxD.dtype) if gap_B is None else gap_B
    check_inputs(x_BxD[:, None], cfg.D, gap_B[:, None], None)
    z_BxD = rms_norm(params.norm_D, x_BxD)
    worked_BxD, working_BxW, _ = working_memory.step(params.working, cache.working_BxW, z_BxD, gap_B, cfg.working)
    attends_B, share_B = _choose(params, worked_BxD)

    q, k, v = attention.qkv(params.attention, x_BxD[:, None], jnp.full((B, 1), cache.position), cfg.attention)
    ring = episodic.push(cache.episodic, k[:, 0], v[:, 0], attends_B)

    def attend():
        o_BxHxK = episodic.look_up(ring, q[:, 0], attends_B)
        return attention.output(params.attention, o_BxHxK[:, None], cfg.attention)[:, 0].astype(x_BxD.dtype)

    read_BxD = jax.lax.cond(jnp.any(attends_B), attend, lambda: jnp.zeros_like(x_BxD))
    y_BxD = attention.feed(params.attention, x_BxD + worked_BxD + share_B[:, None] * read_BxD, cfg.attention)
    return y_BxD, SeqBoatCache(cache.position + 1, working_BxW, ring), SeqBoatRoutes(attends_B, attends_B)
