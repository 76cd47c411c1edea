"""SeqBoat (Ren et al. 2023, arXiv 2306.11197) as a layer: a recurrent memory decides which tokens attend.

From the memory's output, a two-way softmax with a learned temperature says "attend" or "pass". Each token takes the
likelier one, and attention's output is multiplied by that probability, which is how the rule learns: no noise, no
audits. Tokens that attend see only earlier tokens that attended. Shapes are static here: a plan lists the chosen
tokens, where the authors' code gathers as many as there are.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Int, Key, Token, Tokens
from cram_jax.functional import attention, episodic, operations, working
from cram_jax.functional.attention import AttentionConfig, AttentionParams
from cram_jax.functional.checks import check_at_least_one, check_fields
from cram_jax.functional.common import normal, rms_norm
from cram_jax.functional.episodic import EpisodicCache, EpisodicConfig
from cram_jax.functional.layer import Layer, LayerAux, Operations, Routes, apply, init, init_cache, init_state, step
from cram_jax.functional.working import WorkingConfig

__all__ = ["SeqBoatCache", "SeqBoatConfig", "SeqBoatParams", "apply", "init", "init_cache", "init_state", "step"]

PASS, ATTEND = 0, 1
BUCKET_SIZES = ((1 / 8, 1 / 8), (1, 1))  # rows and slots are the same tokens


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SeqBoatConfig(Layer):
    """attention: width, heads and feed-forward network; its `context` is not used.
    memory: a token sees the last `memory` tokens that attended (the paper's working memory).
    working: the recurrent memory.
    """

    attention: AttentionConfig = AttentionConfig()
    memory: int = 2048
    working: WorkingConfig = WorkingConfig(body="gated_scan")

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "memory")

    @property
    def D(self) -> int:
        return self.attention.D

    def init(self, key: Key) -> "SeqBoatParams":
        """Unit-variance projections; about half of the tokens attend."""
        w, c, a = jax.random.split(key, 3)
        return SeqBoatParams(
            norm_D=jnp.ones(self.D),
            working=working.init(w, self.D, self.working),
            choice_Dx2=normal(c, (self.D, 2), self.D),
            log_temperature=jnp.zeros(()),
            attention=attention.init(a, self.attention),
        )

    def init_cache(self, batch: int) -> "SeqBoatCache":
        """Nothing seen yet."""
        like = EpisodicConfig(heads=self.attention.heads, head_dim=self.attention.head_dim, memory=self.memory)
        return SeqBoatCache(
            jnp.zeros((), jnp.int32),
            working.init_cache(self.working, batch),
            episodic.init_cache(like, batch, self.attention.compute_dtype),
        )

    def mix(self, params: "SeqBoatParams", state, x_BxTxD: Tokens, gap_BxT: Gaps, *, key, train, segment_BxT):
        """The recurrent memory, and attention for the tokens that chose it."""
        T = x_BxTxD.shape[1]
        z_BxTxD = rms_norm(params.norm_D, x_BxTxD)
        worked_BxTxD, _ = working.apply(params.working, z_BxTxD, gap_BxT, segment_BxT, self.working)
        attends_BxT, share_BxT = _choose(params, worked_BxTxD)
        plan = kernels.make_plan(attends_BxT, kept_BxT=attends_BxT, memory=self.memory, segment_BxT=segment_BxT)
        kind = jnp.dtype(self.attention.compute_dtype or x_BxTxD.dtype)
        read = partial(_read, self.attention, kernels.resolve("auto", T, T, kind))
        read_BxTxD = kernels.in_buckets(read, plan, params.attention, x_BxTxD, sizes=BUCKET_SIZES)
        mixed_BxTxD = worked_BxTxD + share_BxT[..., None] * read_BxTxD.astype(x_BxTxD.dtype)
        return mixed_BxTxD, LayerAux(routes=Routes(attends_BxT, attends_BxT, attends_BxT))

    def mix_token(self, params: "SeqBoatParams", state, cache: "SeqBoatCache", x_BxD: Token, gap_B: Gap, *, key):
        """Where no sequence of the batch attends, nothing is read."""
        z_BxD = rms_norm(params.norm_D, x_BxD)
        worked_BxD, working_BxN, _ = working.step(params.working, cache.working_BxN, z_BxD, gap_B, self.working)
        attends_B, share_B = _choose(params, worked_BxD)
        position_Bx1 = jnp.full((x_BxD.shape[0], 1), cache.position)
        q, k, v = attention.qkv(params.attention, x_BxD[:, None], position_Bx1, self.attention)
        ring = episodic.push(cache.episodic, k[:, 0], v[:, 0], attends_B)

        def attend():
            o_BxHxK = episodic.look_up(ring, q[:, 0], attends_B)
            return attention.output(params.attention, o_BxHxK[:, None], self.attention)[:, 0].astype(x_BxD.dtype)

        read_BxD = jax.lax.cond(jnp.any(attends_B), attend, lambda: jnp.zeros_like(x_BxD))
        mixed_BxD = worked_BxD + share_B[:, None] * read_BxD
        routes = Routes(attends_B, attends_B, attends_B)
        return mixed_BxD, SeqBoatCache(cache.position + 1, working_BxN, ring), LayerAux(routes=routes)

    def mixer_params(self, params):
        """Without the feed-forward network."""
        return params._replace(attention=self.attention.mixer_params(params.attention))

    def feed(self, params: "SeqBoatParams", x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """The attention layer's feed-forward network."""
        return self.attention.feed(params.attention, x)

    def operations(self, shape: tuple[int, int], routes: Routes, train: bool) -> Operations:
        """Attention over the plan of the chosen tokens; recurrent memory, choice and feed-forward network of all."""
        plan = kernels.make_plan(routes.attended_BxT, kept_BxT=routes.kept_BxT, memory=self.memory)
        work, cfg = operations.plan_work(plan, shape), self.attention
        attended = operations.attention(work, self.D, cfg.heads, cfg.head_dim, train=train, in_buckets=True)
        beside = working.operations(self.D, self.working) + 4 * self.D + operations.network(self.D, cfg.F, self.D)
        return Operations(attended, attended + operations.per_token(beside, work.tokens, train))


class SeqBoatParams(NamedTuple):
    """Attributes:
    norm_D: before the recurrent memory. working: the memory.
    choice_Dx2, log_temperature: from its output to PASS or ATTEND.
    attention: for those that attend, and the feed-forward network for all.
    """

    norm_D: Float[Array, "*layers D"]
    working: Any
    choice_Dx2: Float[Array, "*layers D 2"]
    log_temperature: Float[Array, "*layers"]
    attention: AttentionParams


class SeqBoatCache(NamedTuple):
    """Attributes: tokens seen, the recurrent memory's state, and a ring of keys and values of those that attended."""

    position: Int[Array, ""]
    working_BxN: Float[Array, "B N"]
    episodic: EpisodicCache


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
