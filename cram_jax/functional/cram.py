"""The CRAM layer: a router and three memories, then a feed-forward network; both with a residual and a norm.

Read it from `_decide`: what a token's route depends on is available without any retrieval.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Bool, Float, Gap, Gaps, Int, Key, Scalar, Segments, Token, Tokens
from cram_jax.functional import consolidation, episodic, routing, semantic, uncertainty, working_memory
from cram_jax.functional.common import (
    FeedForward,
    at_least_one,
    cast,
    check_compute,
    check_inputs,
    feed_forward,
    init_feed_forward,
    rms_norm,
    uniforms,
)
from cram_jax.functional.consolidation import ConsolidationConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.functional.semantic import SemanticConfig
from cram_jax.functional.working_memory import WorkingConfig


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CRAMConfig:
    """D: width. F: hidden units of the feed-forward network. The others: see their files.
    compute_dtype: of attention and its buffer, semantic recall and the feed-forward network; None is that of the
        tokens, which the tokens themselves, working memory, router, heads, state and losses keep in any case.
    """

    D: int = 64
    F: int = 128
    compute_dtype: str | None = None
    working: WorkingConfig = WorkingConfig()
    episodic: EpisodicConfig = EpisodicConfig()
    semantic: SemanticConfig = SemanticConfig()
    consolidation: ConsolidationConfig = ConsolidationConfig()
    routing: RoutingConfig = RoutingConfig()

    def __post_init__(self):
        at_least_one(self, "D", "F")
        check_compute(self.compute_dtype)


class CRAMParams(NamedTuple):
    """Attributes: the layer's parts, each described in its file; `norm_D` before the memories, `norm_ff_D` after."""

    norm_D: Float[Array, "D"]
    working: working_memory.Params
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
      working_BxW: state of the working memory.
      episodic: the ring of kept events.
    """

    position: Int[Array, ""]
    working_BxW: Float[Array, "B W"]
    episodic: episodic.EpisodicCache


class CRAMSums(NamedTuple):
    """Sums over a layer's tokens, from which `objective.py` forms Eq 8; they add across devices and micro-batches.

    Attributes:
      tokens: how many there were.
      retrieved: how many retrieved something, audits included.
      episodic: sum of pi^(2), the router's lean to episodic memory, which is priced.
      familiar: sum of pi^(3) q-hat, semantic use where it is good.
      write: sum of exp(logit) of the write gate.
      use: 0, with the gradient of the attention that kept events received from routed queries (see `episodic.py`).
      routed: how many chose episodic memory.
      distillation: sum of |f_sem - r^E|^2 / sigma^2 over those that retrieved (Eq 5, in units of sigma^2).
      familiarity: summed cross-entropy of q-hat against q over the same.
      prediction, predicted: summed cross-entropy of the uncertainty read-out, and over how many tokens.
    """

    tokens: Scalar
    retrieved: Scalar
    episodic: Scalar
    familiar: Scalar
    write: Scalar
    use: Scalar
    routed: Scalar
    distillation: Scalar
    familiarity: Scalar
    prediction: Scalar
    predicted: Scalar


class CRAMRoutes(NamedTuple):
    """What each token did, for counting and looking at. No gradient.

    Attributes:
      choice_BxT: routing.WORKING, EPISODIC or SEMANTIC.
      attended_BxT: routed to episodic memory, or audited.
      retrieved_BxT: attended, and the buffer was not empty.
      kept_BxT: entered the buffer.
      margin_BxT: distance of the closest decision (route or write) from being another; logits.
      familiarity_BxT: q-hat.
      quality_BxT: q where it retrieved, else 0.
    """

    choice_BxT: Int[Array, "*shape"]
    attended_BxT: Bool[Array, "*shape"]
    retrieved_BxT: Bool[Array, "*shape"]
    kept_BxT: Bool[Array, "*shape"]
    margin_BxT: Float[Array, "*shape"]
    familiarity_BxT: Float[Array, "*shape"]
    quality_BxT: Float[Array, "*shape"]


class CRAMAux(NamedTuple):
    """Attributes: `stats` for `consolidation.update`, `sums` for the objective, `routes` to look at."""

    stats: consolidation.ConsolidationStats
    sums: CRAMSums
    routes: CRAMRoutes


def init(key: Key, cfg: CRAMConfig) -> CRAMParams:
    """Fresh parameters: an indifferent router, a semantic memory that recalls 0, a gate that keeps almost all."""
    w, e, s, f, r, ff = jax.random.split(key, 6)
    D = cfg.D
    return CRAMParams(
        jnp.ones(D),
        working_memory.init(w, D, cfg.working),
        episodic.init(e, D, cfg.episodic),
        semantic.init(s, D, cfg.semantic),
        consolidation.init_familiarity(f, D, cfg.consolidation),
        uncertainty.init(D),
        routing.init(r, D, cfg.routing),
        jnp.ones(D),
        init_feed_forward(ff, D, cfg.F),
    )


def init_state(cfg: CRAMConfig) -> consolidation.ConsolidationState:
    """Every token attends until `consolidation.release`."""
    return consolidation.init_state(cfg.D, cfg.consolidation)


def init_cache(cfg: CRAMConfig, batch: int) -> CRAMCache:
    """Nothing seen yet."""
    return CRAMCache(
        jnp.zeros((), jnp.int32),
        working_memory.init_cache(cfg.working, batch),
        episodic.init_cache(cfg.episodic, batch, cfg.compute_dtype),
    )


class _Decisions(NamedTuple):
    routes: routing.Routes
    familiarity_logit: Array
    novelty: Array
    writes: episodic.Writes


def _decide(
    params: CRAMParams, state, x, gap, magnitude, position, uniform, *, cfg: CRAMConfig, train: bool, quality
) -> _Decisions:
    """Route, audit and write gate of each token, from the token, its gap and the memories' states alone.

    quality: of every token's recall, from its write decisions; called for circular routes only, which retrieve for it.
    """
    logit = consolidation.familiarity_logit(params.familiarity, x)
    novelty = jax.lax.stop_gradient(1 - jax.nn.sigmoid(logit))
    sampled = uniform[..., 4] if train and uniform is not None else None
    writes = episodic.decide_writes(params.episodic, x, novelty, sampled, cfg=cfg.episodic)
    features = {
        "content": x,
        "gap": jnp.log1p(gap),
        "dynamics": magnitude,
        "familiarity": quality(writes) if cfg.routing.decide == "circular" else 1 - novelty,
        "uncertainty": uncertainty.uncertainty(params.uncertainty_DxU, x),
    }
    noise = None if uniform is None else uniform[..., :4]
    routes = routing.route(params.router, features, noise, state.released, position, cfg=cfg.routing, train=train)
    return _Decisions(routes, logit, novelty, writes)


def _computed(params: CRAMParams, cfg: CRAMConfig) -> CRAMParams:
    """The parameters with those of attention, recall and feed-forward network in the compute dtype."""
    heavy = ("episodic", "semantic", "feed_forward")
    return params._replace(**{name: cast(getattr(params, name), cfg.compute_dtype) for name in heavy})


def _feed_forward(heavy: CRAMParams, x, cfg: CRAMConfig):
    z = cast(rms_norm(heavy.norm_ff_D, x), cfg.compute_dtype)
    return feed_forward(heavy.feed_forward, z).astype(x.dtype)


def _margin(decided: _Decisions, released, cfg: CRAMConfig) -> Array:
    """How far the closest of a token's decisions is from falling otherwise, in logits (meant without noise)."""
    first, second = jnp.moveaxis(jax.lax.top_k(jnp.log(decided.routes.mean_BxTx3), 2)[0], -1, 0)
    route = jnp.where(released, cfg.routing.temperature * (first - second), jnp.inf)
    return jax.lax.stop_gradient(jnp.minimum(route, jnp.abs(decided.writes.logit_BxT)))


def _lessons(plan: kernels.SkipPlan, params: semantic.SemanticParams, z_BxTxD, retrieved_BxTxD):
    """(Eq 5's sum, statistics) from the rows that retrieved.

    Distillation teaches the semantic memory, not the features it reads.
    """
    z_BxCxD = jax.lax.stop_gradient(plan.gather_queries(z_BxTxD))
    recalled_BxCxD = semantic.recall(params, z_BxCxD).astype(retrieved_BxTxD.dtype)
    r_BxCxD, found_BxC = plan.gather_queries(retrieved_BxTxD), plan.end_BxC > plan.start_BxC
    distilled = semantic.distillation(recalled_BxCxD, r_BxCxD, found_BxC)
    return distilled, consolidation.statistics(r_BxCxD, found_BxC)


def apply(
    params: CRAMParams,
    state: consolidation.ConsolidationState,
    x_BxTxD: Tokens,
    *,
    cfg: CRAMConfig,
    gap_BxT: Gaps | None = None,
    key: Key | None = None,
    train: bool = False,
    segment_BxT: Segments | None = None,
) -> tuple[Tokens, CRAMAux]:
    """A whole sequence through the layer; causal, differentiable (Eq 2 to 7).

    Args:
      state: read, never changed here; `consolidation.update(state, aux.stats)` once a training step.
      gap_BxT: time since the previous event; 1 everywhere by default.
      key: for audits, and in training for Gumbel noise and sampled writes. Without one there are none.
      train: hard decisions either way; in training they are sampled.
      segment_BxT: packed sequences, which do not see each other.

    Returns:
      The tokens after the layer, and sums, counts and routes of this batch.

    Raises:
      ValueError, TypeError: for shapes or dtypes that do not fit the layer.
    """
    check_inputs(x_BxTxD, cfg.D, gap_BxT, segment_BxT)
    B, T, _ = x_BxTxD.shape
    gap_BxT = jnp.ones((B, T), x_BxTxD.dtype) if gap_BxT is None else gap_BxT
    z_BxTxD = rms_norm(params.norm_D, x_BxTxD)
    uniform_BxTx5 = None if key is None else uniforms(key, jnp.arange(T), B, 5)

    worked_BxTxD, magnitude_BxT = working_memory.apply(params.working, z_BxTxD, gap_BxT, segment_BxT, cfg.working)
    heavy, c_BxTxD = _computed(params, cfg), cast(z_BxTxD, cfg.compute_dtype)
    recalled_BxTxD = semantic.recall(heavy.semantic, c_BxTxD).astype(x_BxTxD.dtype)
    sigma2 = consolidation.variance(state)

    def retrieve(writes, attended_BxT):
        plan = episodic.plan_reads(writes, attended_BxT, segment_BxT, cfg=cfg.episodic)
        read = episodic.read(heavy.episodic, plan, c_BxTxD, writes.worth_BxT, cfg=cfg.episodic)
        retrieved_BxTxD, use_BxT = (a.astype(x_BxTxD.dtype) for a in read)
        # Who attends an empty buffer retrieves nothing, and there is nothing to learn from it.
        retrieved_BxT = attended_BxT & plan.scatter(plan.end_BxC > plan.start_BxC, T)
        quality_BxT = consolidation.quality(recalled_BxTxD, retrieved_BxTxD, retrieved_BxT, sigma2)
        return plan, retrieved_BxTxD, use_BxT, retrieved_BxT, quality_BxT

    decided = _decide(
        params, state, z_BxTxD, gap_BxT, magnitude_BxT, jnp.arange(T), uniform_BxTx5, cfg=cfg, train=train,
        quality=lambda writes: retrieve(writes, jnp.ones((B, T), bool))[-1],
    )  # fmt: skip
    routes = decided.routes
    attended_BxT = routes.routed_BxT | routes.audited_BxT
    plan, retrieved_BxTxD, use_BxT, retrieved_BxT, quality_BxT = retrieve(decided.writes, attended_BxT)
    x_BxTxD = x_BxTxD + routing.mix(routes, worked_BxTxD, retrieved_BxTxD, recalled_BxTxD, cfg=cfg.routing)
    y_BxTxD = x_BxTxD + _feed_forward(heavy, x_BxTxD, cfg)

    distillation, stats = kernels.in_buckets(
        _lessons, plan, heavy.semantic, c_BxTxD, retrieved_BxTxD, sizes=episodic.BUCKET_SIZES
    )
    prediction, predicted = uncertainty.loss(params.uncertainty_DxU, z_BxTxD, segment_BxT)
    sums = CRAMSums(
        tokens=jnp.asarray(B * T, stats.count.dtype),
        retrieved=stats.count,
        episodic=jnp.sum(routes.mean_BxTx3[..., routing.EPISODIC]),
        familiar=jnp.sum(routes.mean_BxTx3[..., routing.SEMANTIC] * (1 - decided.novelty)),
        # While every token attends, use says nothing about worth: the gate does not learn yet.
        write=jnp.sum(jnp.exp(decided.writes.logit_BxT), where=state.released),
        use=jnp.sum(use_BxT, where=routes.routed_BxT & state.released),
        routed=jnp.sum(routes.routed_BxT, dtype=stats.count.dtype),
        distillation=distillation / sigma2,
        familiarity=consolidation.familiarity_loss(decided.familiarity_logit, quality_BxT, retrieved_BxT),
        prediction=prediction,
        predicted=predicted,
    )
    margin_BxT = _margin(decided, state.released, cfg)
    kept_BxT = decided.writes.kept_BxT
    seen = CRAMRoutes(
        routes.choice_BxT, attended_BxT, retrieved_BxT, kept_BxT, margin_BxT, 1 - decided.novelty, quality_BxT
    )
    return y_BxTxD, CRAMAux(stats, sums, seen)


def step(
    params: CRAMParams,
    state: consolidation.ConsolidationState,
    cache: CRAMCache,
    x_BxD: Token,
    *,
    cfg: CRAMConfig,
    gap_B: Gap | None = None,
    key: Key | None = None,
) -> tuple[Token, CRAMCache, CRAMRoutes]:
    """One token, streaming; equals `apply` with `train=False` at that position. Routes have shape (B,)."""
    gap_B = jnp.ones(x_BxD.shape[0], x_BxD.dtype) if gap_B is None else gap_B
    check_inputs(x_BxD[:, None], cfg.D, gap_B[:, None], None)
    z_BxD = rms_norm(params.norm_D, x_BxD)
    uniform_Bx5 = None if key is None else uniforms(key, cache.position[None], x_BxD.shape[0], 5)[:, 0]

    worked_BxD, working_BxW, magnitude_B = working_memory.step(
        params.working, cache.working_BxW, z_BxD, gap_B, cfg.working
    )
    heavy, c_BxD = _computed(params, cfg), cast(z_BxD, cfg.compute_dtype)
    recalled_BxD = semantic.recall(heavy.semantic, c_BxD).astype(x_BxD.dtype)
    sigma2 = consolidation.variance(state)

    def retrieve(writes, attended_B):
        ring = episodic.write(heavy.episodic, cache.episodic, c_BxD, writes.kept_BxT, cache.position, cfg=cfg.episodic)
        read = episodic.read_cache(heavy.episodic, ring, c_BxD, attended_B, cache.position, cfg=cfg.episodic)
        retrieved_BxD, retrieved_B = read.astype(x_BxD.dtype), attended_B & (ring.written_B > 0)
        quality_B = consolidation.quality(recalled_BxD, retrieved_BxD, retrieved_B, sigma2)
        return ring, retrieved_BxD, retrieved_B, quality_B

    decided = _decide(
        params, state, z_BxD, gap_B, magnitude_B, cache.position, uniform_Bx5, cfg=cfg, train=False,
        quality=lambda writes: retrieve(writes, jnp.ones_like(gap_B, bool))[-1],
    )  # fmt: skip
    routes = decided.routes
    attended_B = routes.routed_BxT | routes.audited_BxT
    ring, retrieved_BxD, retrieved_B, quality_B = retrieve(decided.writes, attended_B)
    x_BxD = x_BxD + routing.mix(routes, worked_BxD, retrieved_BxD, recalled_BxD, cfg=cfg.routing)
    y_BxD = x_BxD + _feed_forward(heavy, x_BxD, cfg)
    margin_B, kept_B = _margin(decided, state.released, cfg), decided.writes.kept_BxT
    seen = CRAMRoutes(routes.choice_BxT, attended_B, retrieved_B, kept_B, margin_B, 1 - decided.novelty, quality_B)
    return y_BxD, CRAMCache(cache.position + 1, working_BxW, ring), seen
