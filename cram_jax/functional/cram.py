"""The CRAM layer: a router and three memories (Eq 2 to 7), then a feed-forward network.

Read it from `CRAMConfig.mix`. Everything that a token's route depends on is available without any retrieval.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Float, Gap, Gaps, Int, Key, Token, Tokens
from cram_jax.functional import consolidation, episodic, operations, routing, semantic, uncertainty, working
from cram_jax.functional.checks import check_at_least_one, check_compute_dtype, check_fields
from cram_jax.functional.common import (
    FeedForward,
    cast,
    feed_forward,
    init_feed_forward,
    rms_norm,
    total,
    uniforms,
    wide,
)
from cram_jax.functional.consolidation import ConsolidationConfig, ConsolidationState
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.layer import Layer, LayerAux, Operations, apply, init, init_cache, init_state, step
from cram_jax.functional.objective import MemorySums
from cram_jax.functional.routing import CRAMRoutes, Gates, RoutingConfig
from cram_jax.functional.semantic import SemanticConfig
from cram_jax.functional.working import WorkingConfig

__all__ = [
    "CRAMCache", "CRAMConfig", "CRAMParams", "CRAMRoutes", "apply", "init", "init_cache", "init_state", "step",
]  # fmt: skip

OPEN = 1e3  # added to the write gate's logit: every event is kept


class CRAMParams(NamedTuple):
    """Attributes: the layer's parts, each described in its file; `norm_D` before the memories, `norm_ff_D` after."""

    norm_D: Float[Array, "D"]
    working: Any
    episodic: episodic.EpisodicParams
    semantic: semantic.SemanticParams
    familiarity: FeedForward
    uncertainty_DxU: Float[Array, "D U"]
    router: FeedForward
    norm_ff_D: Float[Array, "D"]
    feed_forward: FeedForward


class CRAMCache(NamedTuple):
    """What streaming carries from token to token.

    Attributes:
      position: tokens seen so far.
      working_BxN: state of the working memory.
      episodic: the ring of kept events.
    """

    position: Int[Array, ""]
    working_BxN: Float[Array, "B N"]
    episodic: episodic.EpisodicCache


class Retrieval(NamedTuple):
    """What a set of tokens retrieved.

    Attributes:
      r: r^E of the tokens that attend, 0 elsewhere.
      found: attended, and the buffer was not empty. Who attends an empty buffer has nothing to learn from it.
      quality: q (Eq 6) where found, 0 elsewhere.
      plan, reads: of whole sequences: the plan that was executed, and the gradient of reads (`MemorySums.reads`).
    """

    r: Array
    found: Array
    quality: Array
    plan: Any = None
    reads: Any = None


Retrieve = Callable[[Array], Retrieval]  # from marks of who attends


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CRAMConfig(Layer):
    """D: width. F: hidden units of the feed-forward network. The others: see their files.
    compute_dtype: of attention and its buffer, semantic recall and the feed-forward network; None is that of the
        tokens. Tokens, working memory, router, heads, state and losses always keep their own.
    """

    D: int = 64
    F: int = 128
    compute_dtype: str | None = None
    working: WorkingConfig = WorkingConfig()
    episodic: EpisodicConfig = EpisodicConfig()
    semantic: SemanticConfig = SemanticConfig()
    consolidation: ConsolidationConfig = ConsolidationConfig()
    routing: RoutingConfig = RoutingConfig()

    draws: ClassVar[bool] = True
    consolidates: ClassVar[bool] = True
    # Weight decay erases patterns from other parameters once the semantic memory answers them, and keeps the router's
    # logits where they go on learning. Spared: the memory in which knowledge is to end up, and the regressions of q-hat
    # and of reads, which hold no answers.
    no_decay: ClassVar[tuple[str, ...]] = ("semantic.*", "familiarity.*", "episodic.write.*")
    taught: ClassVar[tuple[str, ...]] = ("semantic.*", "familiarity.*")

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "D", "F")
        check_compute_dtype(self.compute_dtype)

    def init(self, key: Key) -> CRAMParams:
        """An indifferent router, a semantic memory that recalls 0, a write gate that keeps almost all events."""
        w, e, s, f, r, ff = jax.random.split(key, 6)
        D = self.D
        return CRAMParams(
            jnp.ones(D),
            working.init(w, D, self.working),
            episodic.init(e, D, self.episodic),
            semantic.init(s, D, self.semantic),
            consolidation.init_familiarity(f, D, self.consolidation),
            uncertainty.init(D),
            routing.init(r, D, self.routing),
            jnp.ones(D),
            init_feed_forward(ff, D, self.F),
        )

    def init_state(self, streams: int | None = None) -> ConsolidationState:
        """Every token attends until `release`. One for all streams: its semantic memory is in the parameters."""
        return consolidation.init_state(self.D, self.consolidation.decay)

    def init_cache(self, batch: int) -> CRAMCache:
        """Nothing seen yet."""
        return CRAMCache(
            jnp.zeros((), jnp.int32),
            working.init_cache(self.working, batch),
            episodic.init_cache(self.episodic, batch, self.compute_dtype),
        )

    def mix(self, params: CRAMParams, state, x_BxTxD: Tokens, gap_BxT: Gaps, *, key, train, segment_BxT):
        """The three memories over whole sequences. Decisions are hard; in training they are sampled."""
        B, T, _ = x_BxTxD.shape
        z_BxTxD = rms_norm(params.norm_D, x_BxTxD)
        uniform_BxTx5 = None if key is None else uniforms(key, jnp.arange(T), B, 5)
        worked_BxTxD, magnitude_BxT = working.apply(params.working, z_BxTxD, gap_BxT, segment_BxT, self.working)
        computed, c_BxTxD = _in_compute_dtype(params, self), cast(z_BxTxD, self.compute_dtype)
        recalled_BxTxD = semantic.recall(computed.semantic, c_BxTxD).astype(x_BxTxD.dtype)
        sigma2 = consolidation.variance(state)
        novelty, logit_BxT = self._novelty(params, z_BxTxD)
        sampled = uniform_BxTx5[..., 4] if train and uniform_BxTx5 is not None else None
        writes = episodic.decide_writes(params.episodic.write, z_BxTxD, novelty, sampled, cfg=self.episodic)

        def retrieve(attended_BxT) -> Retrieval:
            plan = episodic.plan_reads(writes, attended_BxT, segment_BxT, cfg=self.episodic)
            read = episodic.read(computed.episodic, plan, c_BxTxD, writes.read_weight_BxT, cfg=self.episodic)
            r_BxTxD, reads_BxT = (a.astype(x_BxTxD.dtype) for a in read)
            found_BxT = attended_BxT & plan.scatter(plan.end_BxC > plan.start_BxC, T)
            quality_BxT = consolidation.quality(recalled_BxTxD, r_BxTxD, found_BxT, sigma2)
            return Retrieval(r_BxTxD, found_BxT, quality_BxT, plan=plan, reads=reads_BxT)

        gates = self._route(
            params, state, z_BxTxD, gap_BxT, magnitude_BxT, novelty, uniform_BxTx5, jnp.arange(T), train, retrieve
        )
        found = retrieve(gates.routed_BxT | gates.audited_BxT)
        mixed_BxTxD = routing.mix(gates, worked_BxTxD, found.r, recalled_BxTxD, cfg=self.routing)
        distillation, stats = kernels.in_buckets(
            _distill, found.plan, computed.semantic, c_BxTxD, found.r, sigma2, sizes=episodic.BUCKET_SIZES
        )
        prediction, predicted = uncertainty.loss(params.uncertainty_DxU, z_BxTxD, segment_BxT)
        sums = MemorySums(
            tokens=jnp.asarray(B * T, stats.count.dtype),
            attended=total(gates.routed_BxT | gates.audited_BxT),
            retrieved=stats.count,
            needed=jnp.zeros((), stats.count.dtype),
            episodic=total(gates.mean_BxTx3[..., routing.EPISODIC]),
            semantic=total(gates.mean_BxTx3[..., routing.SEMANTIC] * (1 - novelty)),
            # While every token attends, reads say nothing about an event's value: the gate does not learn yet.
            write=total(jnp.exp(wide(writes.logit_BxT)), where=state.released),
            reads=total(found.reads, where=gates.routed_BxT & state.released),
            routed=total(gates.routed_BxT),
            distillation=distillation,
            familiarity=consolidation.familiarity_loss(logit_BxT, found.quality, found.found),
            prediction=prediction,
            predicted=predicted,
        )
        seen = routing.report(gates, writes.logit_BxT, writes.kept_BxT, novelty, found, state.released, self.routing)
        return mixed_BxTxD, LayerAux(stats, sums, seen)

    def mix_token(self, params: CRAMParams, state, cache: CRAMCache, x_BxD: Token, gap_B: Gap, *, key):
        """The three memories for one token."""
        z_BxD = rms_norm(params.norm_D, x_BxD)
        uniform_Bx5 = None if key is None else uniforms(key, cache.position[None], x_BxD.shape[0], 5)[:, 0]
        worked_BxD, working_BxN, magnitude_B = working.step(
            params.working, cache.working_BxN, z_BxD, gap_B, self.working
        )
        computed, c_BxD = _in_compute_dtype(params, self), cast(z_BxD, self.compute_dtype)
        recalled_BxD = semantic.recall(computed.semantic, c_BxD).astype(x_BxD.dtype)
        sigma2 = consolidation.variance(state)
        novelty, _ = self._novelty(params, z_BxD)
        writes = episodic.decide_writes(params.episodic.write, z_BxD, novelty, None, cfg=self.episodic)
        ring = episodic.write(
            computed.episodic, cache.episodic, c_BxD, writes.kept_BxT, cache.position, cfg=self.episodic
        )

        def retrieve(attended_B) -> Retrieval:
            read = episodic.read_cache(computed.episodic, ring, c_BxD, attended_B, cache.position, cfg=self.episodic)
            r_BxD, found_B = read.astype(x_BxD.dtype), attended_B & (ring.written_B > 0)
            return Retrieval(r_BxD, found_B, consolidation.quality(recalled_BxD, r_BxD, found_B, sigma2))

        gates = self._route(
            params, state, z_BxD, gap_B, magnitude_B, novelty, uniform_Bx5, cache.position, False, retrieve
        )
        found = retrieve(gates.routed_BxT | gates.audited_BxT)
        mixed_BxD = routing.mix(gates, worked_BxD, found.r, recalled_BxD, cfg=self.routing)
        seen = routing.report(gates, writes.logit_BxT, writes.kept_BxT, novelty, found, state.released, self.routing)
        return mixed_BxD, CRAMCache(cache.position + 1, working_BxN, ring), LayerAux(routes=seen)

    def _novelty(self, params: CRAMParams, z: Float[Array, "... D"]):
        """(1 - q-hat without a gradient, the logit of q-hat)."""
        logit = consolidation.familiarity_logit(params.familiarity, z)
        return jax.lax.stop_gradient(1 - jax.nn.sigmoid(logit)), logit

    def _route(
        self, params: CRAMParams, state, z, gap, magnitude, novelty, uniform, position, train: bool, retrieve: Retrieve
    ) -> Gates:
        """Routes and audits of each token, from the token, its gap and the memories' states; nothing is retrieved.

        An input may depend on this token and on earlier ones, never on later ones: `step` does not have them.
        """
        features = {
            "content": z,
            "gap": jnp.log1p(gap),
            "dynamics": magnitude,
            "familiarity": 1 - novelty,
            "uncertainty": uncertainty.uncertainty(params.uncertainty_DxU, z),
        }
        noise = None if uniform is None else uniform[..., :4]
        return routing.route(params.router, features, noise, state.released, position, cfg=self.routing, train=train)

    def mixer_params(self, params):
        """Without the feed-forward network."""
        return params._replace(norm_ff_D=(), feed_forward=())

    def feed(self, params: CRAMParams, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """x + W_out gelu(W_in norm(x) + b)."""
        network = cast(params.feed_forward, self.compute_dtype)
        return x + feed_forward(network, cast(rms_norm(params.norm_ff_D, x), self.compute_dtype)).astype(x.dtype)

    def operations(self, shape: tuple[int, int], routes: CRAMRoutes, train: bool) -> Operations:
        """Attention over the plan that was executed; memories, heads and networks of all tokens."""
        D, network, read = self.D, operations.network, self.episodic
        plan = kernels.make_plan(routes.attended_BxT, kept_BxT=routes.kept_BxT, memory=read.memory)
        work = operations.plan_work(plan, shape)
        attended = operations.attention(work, D, read.heads, read.head_dim, train=train, in_buckets=True)
        # Distillation: forward, repeated, and the gradient of the parameters
        distilled = 3 * network(D, self.semantic.rank, D) * work.rows if train else 0.0
        beside = (
            working.operations(D, self.working)
            + network(D, self.semantic.rank, D)
            + network(D, self.consolidation.width, 1)
            + network(routing.feature_width(D, self.routing), self.routing.width, 3)
            + network(D + 1, read.width, 1)
            + network(D, self.F, D)
            + 2 * D * uncertainty.CODES
        )
        return Operations(attended, attended + distilled + operations.per_token(beside, work.tokens, train))

    def update(self, state: ConsolidationState, stats, axis_name: str | None = None) -> ConsolidationState:
        """Moves the running mean and variance of retrievals (`consolidation.update`)."""
        return consolidation.update(state, stats, axis_name)

    def release(self, state: ConsolidationState, when=True) -> ConsolidationState:
        """From now on the router decides who attends (`consolidation.release`)."""
        return consolidation.release(state, when)

    def audited(self) -> "CRAMConfig":
        """Every token is audited in evaluation."""
        return dataclasses.replace(self, routing=dataclasses.replace(self.routing, evaluation_audit_rate=1.0))

    def attentive(self, length: int) -> "CRAMConfig":
        """Every token is audited, over a buffer that keeps all events."""
        write_bias = self.episodic.write_bias + OPEN
        opened = dataclasses.replace(self.episodic, memory=max(length, self.episodic.memory), write_bias=write_bias)
        return dataclasses.replace(self.audited(), episodic=opened)


def _in_compute_dtype(params: CRAMParams, cfg: CRAMConfig) -> CRAMParams:
    """Parameters of attention and recall in the compute dtype."""
    return params._replace(
        episodic=cast(params.episodic, cfg.compute_dtype), semantic=cast(params.semantic, cfg.compute_dtype)
    )


def _distill(plan: kernels.SkipPlan, params: semantic.SemanticParams, z_BxTxD, retrieved_BxTxD, sigma2):
    """(sum of Eq 5, statistics) from the rows that retrieved.

    Distillation teaches the semantic memory, not the features it reads.
    """
    z_BxCxD = jax.lax.stop_gradient(plan.gather_queries(z_BxTxD))
    recalled_BxCxD = semantic.recall(params, z_BxCxD).astype(retrieved_BxTxD.dtype)
    r_BxCxD, found_BxC = plan.gather_queries(retrieved_BxTxD), plan.end_BxC > plan.start_BxC
    distilled = semantic.distillation(recalled_BxCxD, r_BxCxD, found_BxC, sigma2)
    return distilled, consolidation.statistics(r_BxCxD, found_BxC)
