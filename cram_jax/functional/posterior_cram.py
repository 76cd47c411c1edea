"""The CRAM layer whose semantic memory is a posterior: it learns without labels or gradients, for each stream apart.

Working and episodic memory are those of `cram.py`. Semantic memory is solved from what was retrieved, in blocks
(`posterior.py`, `blocks.py`), and how well it would answer follows from its uncertainty, before any retrieval. So the
router asks first whether a token needs memory, and then whether semantic memory knows the answer (`two_stage.py`).
Parameters stay fixed once they are trained; what a stream's memory learns is in its state. Read it from
`PosteriorCRAMConfig.mix`.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Bool, Float, Gap, Gaps, Int, Key, Token, Tokens
from cram_jax.functional import (
    addressed,
    blocks,
    episodic,
    operations,
    stream_memory,
    two_stage,
    working,
)
from cram_jax.functional.addressed import AddressedParams, Contradictions
from cram_jax.functional.checks import check_at_least_one, check_compute_dtype, check_fields
from cram_jax.functional.common import FeedForward, cast, feed_forward, init_feed_forward, rms_norm, uniforms
from cram_jax.functional.episodic import EpisodicConfig, Writes
from cram_jax.functional.layer import Layer, LayerAux, Operations, apply, init, init_cache, init_state, step
from cram_jax.functional.posterior import PosteriorConfig, PosteriorSums
from cram_jax.functional.routing import SEMANTIC, WORKING, CRAMRoutes
from cram_jax.functional.stream_memory import LearningConfig, StreamState, StreamStats
from cram_jax.functional.two_stage import Decisions, RouterParams, TwoStageConfig
from cram_jax.functional.working import WorkingConfig

__all__ = [
    "PosteriorCRAMCache", "PosteriorCRAMConfig", "PosteriorCRAMParams", "apply", "init", "init_cache", "init_state",
    "step",
]  # fmt: skip


class PosteriorCRAMParams(NamedTuple):
    """Attributes: the layer's parts, each described in its file; `norm_D` before the memories, `norm_ff_D` after."""

    norm_D: Float[Array, "D"]
    working: Any
    episodic: AddressedParams
    router: RouterParams
    norm_ff_D: Float[Array, "D"]
    feed_forward: FeedForward


class PosteriorCRAMCache(NamedTuple):
    """What streaming carries from token to token.

    Attributes:
      position: tokens seen so far.
      working_BxN: state of the working memory.
      episodic: the ring of kept events.
      against: contradictions so far; places are filled in order.
    """

    position: Int[Array, ""]
    working_BxN: Float[Array, "B N"]
    episodic: episodic.EpisodicCache
    against: Contradictions


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PosteriorCRAMConfig(Layer):
    """D: width. F: hidden units of the feed-forward network. The others: see their files.
    contradictions: most contradictions noticed in a sequence, the first ones. With 0, a pattern that changes its answer
        is answered as before.
    compute_dtype: of attention, its buffer and the feed-forward network; None is that of the tokens. The memories'
        decisions and semantic memory always keep float32 or wider.
    """

    D: int = 64
    F: int = 128
    compute_dtype: str | None = None
    contradictions: int = 64
    working: WorkingConfig = WorkingConfig()
    episodic: EpisodicConfig = EpisodicConfig(heads=1, memory=256)
    semantic: PosteriorConfig = PosteriorConfig()
    learning: LearningConfig = LearningConfig()
    routing: TwoStageConfig = TwoStageConfig()

    draws: ClassVar[bool] = True
    consolidates: ClassVar[bool] = True
    no_decay: ClassVar[tuple[str, ...]] = ("episodic.write.*", "episodic.frequencies_ExR", "router.*")

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "D", "F")
        if self.contradictions < 0:
            raise ValueError(f"contradictions must be at least 0, got {self.contradictions}")
        check_compute_dtype(self.compute_dtype)
        if self.episodic.rotary:
            raise ValueError(
                "episodic.rotary must be False: an address that turns with its position is never met again"
            )

    def init(self, key: Key) -> PosteriorCRAMParams:
        """Most tokens need memory, and almost all events are kept."""
        w, e, r, ff = jax.random.split(key, 4)
        return PosteriorCRAMParams(
            jnp.ones(self.D),
            working.init(w, self.D, self.working),
            addressed.init(e, self.D, self.episodic, self.semantic),
            two_stage.init(r, self.D, self.routing),
            jnp.ones(self.D),
            init_feed_forward(ff, self.D, self.F),
        )

    def init_state(self, streams: int | None = None) -> StreamState:
        """An empty memory, one for each stream, or one for all if None. Every token attends until `release`."""
        axes = () if streams is None else (streams,)
        return stream_memory.init_state(self.D, blocks.init(self.D, self.semantic, axes), self.learning)

    def init_cache(self, batch: int) -> PosteriorCRAMCache:
        """Nothing seen yet."""
        E, G = self.episodic.heads * self.episodic.head_dim, self.contradictions
        return PosteriorCRAMCache(
            jnp.zeros((), jnp.int32),
            working.init_cache(self.working, batch),
            episodic.init_cache(self.episodic, batch, self.compute_dtype),
            addressed.no_contradictions(batch, G, E),
        )

    def mix(self, params: PosteriorCRAMParams, state, x_BxTxD: Tokens, gap_BxT: Gaps, *, key, train, segment_BxT):
        """The three memories over whole sequences. Decisions are hard; in training they are sampled."""
        B, T, _ = x_BxTxD.shape
        z_BxTxD = rms_norm(params.norm_D, x_BxTxD)
        uniform_BxTx4 = None if key is None else uniforms(key, jnp.arange(T), B, 4)
        noise = lambda i: uniform_BxTx4[..., i] if train and uniform_BxTx4 is not None else None
        worked_BxTxD, _ = working.apply(params.working, z_BxTxD, gap_BxT, segment_BxT, self.working)
        writes = self._decide_writes(params, z_BxTxD, noise(1))
        held, memory, seen_BxTxD = jax.lax.stop_gradient((params.episodic, state.memory, z_BxTxD))
        used = state.retrievals.released

        need = two_stage.need(params.router, z_BxTxD, gap_BxT, noise(0), self.routing)
        tells_BxT = writes.kept_BxT & ~need.hard  # a token that asks has no answer to compare with
        how = self.contradictions, self.learning.own_weights
        against, own = addressed.told(held, memory, tells_BxT, seen_BxTxD, *how, used)
        coin = None if uniform_BxTx4 is None else uniform_BxTx4[..., 2]
        audited = two_stage.audits(coin, ~need.hard, need.mean, train, self.routing)
        looks_BxT = need.hard | audited[0] | ~used
        plan = addressed.listed(looks_BxT)
        first_BxT = jnp.zeros((B, T), jnp.int32) if segment_BxT is None else kernels.segment_firsts(segment_BxT)
        asked = addressed.look_up(held, memory, plan, seen_BxTxD, first_BxT, against, self.semantic.bandwidth, used)
        made = self._decide(params, state, need, audited, looks_BxT, asked, noise(3), coin, train)

        attends = addressed.plan_reads(made.attended_BxT, writes.kept_BxT, segment_BxT, self.episodic.memory)
        computed, c_BxTxD = cast(params.episodic, self.compute_dtype), cast(z_BxTxD, self.compute_dtype)
        read = addressed.read(computed, attends, c_BxTxD, writes.read_weight_BxT, cfg=self.episodic)
        r_BxTxD, reads_BxT = (a.astype(x_BxTxD.dtype) for a in read)
        found_BxT = made.attended_BxT & attends.scatter(attends.end_BxC > attends.start_BxC, T)
        mixed_BxTxD = two_stage.mix(made, worked_BxTxD, r_BxTxD, asked.answer.recalled.astype(x_BxTxD.dtype))

        weight_BxT = stream_memory.weights(state, made, found_BxT, asked, self.learning)
        written = addressed.written(held, plan, seen_BxTxD, r_BxTxD, weight_BxT, self.semantic.blocks, used)
        written = jax.tree.map(jnp.add, own, written)
        stats = stream_memory.statistics(state, made, r_BxTxD, found_BxT, asked, written)
        familiarity_BxT, quality_BxT = stream_memory.quality(state, found_BxT, r_BxTxD, asked)
        routes = two_stage.report(made, writes, found_BxT, familiarity_BxT, quality_BxT, used)
        sums = two_stage.memory_sums(made, writes, found_BxT, familiarity_BxT, reads_BxT, used)
        return mixed_BxTxD, LayerAux(stats, sums, routes)

    def mix_token(
        self, params: PosteriorCRAMParams, state, cache: PosteriorCRAMCache, x_BxD: Token, gap_B: Gap, *, key
    ):
        """The three memories for one token. `aux.stats` has what it teaches; add it up over a visit."""
        B = x_BxD.shape[0]
        z_BxD = rms_norm(params.norm_D, x_BxD)
        uniform_Bx4 = None if key is None else uniforms(key, cache.position[None], B, 4)[:, 0]
        worked_BxD, working_BxN, _ = working.step(params.working, cache.working_BxN, z_BxD, gap_B, self.working)
        writes = self._decide_writes(params, z_BxD, None)
        address_BxE = addressed.joined(addressed.addresses(params.episodic, z_BxD))

        need = two_stage.need(params.router, z_BxD, gap_B, None, self.routing)
        at, own_Bx1xD, compared = addressed.event(params.episodic, state.memory, z_BxD[:, None])
        tells_Bx1 = (writes.kept_BxT & ~need.hard)[:, None]
        wrong_B = (tells_Bx1 & compared.contradicts)[:, 0]
        against = addressed.noted(cache.against, address_BxE, wrong_B, cache.position)
        coin = None if uniform_Bx4 is None else uniform_Bx4[..., 2]
        audited = two_stage.audits(coin, ~need.hard, need.mean, False, self.routing)
        looks_B = need.hard | audited[0] | ~state.retrievals.released
        place_Bx1 = jnp.full((B, 1), cache.position)
        by = address_BxE[:, None], place_Bx1, jnp.zeros_like(place_Bx1)
        asked = addressed.ask(params.episodic, state.memory, *by, against, self.semantic.bandwidth)
        asked = jax.tree.map(lambda a: jnp.where(looks_B[(...,) + (None,) * (a.ndim - 2)], a[:, 0], 0), asked)
        made = self._decide(params, state, need, audited, looks_B, asked, None, coin, False)

        computed, c_BxD = cast(params.episodic, self.compute_dtype), cast(z_BxD, self.compute_dtype)
        ring = cache.episodic
        q_BxHxK = addressed.query(computed, addressed.addresses(computed, c_BxD))
        look_up = lambda: episodic.output(computed.o_HxVxD, episodic.look_up(ring, q_BxHxK, made.attended_BxT))[0]
        attend = lambda: look_up().astype(x_BxD.dtype)
        r_BxD = jax.lax.cond(jnp.any(made.attended_BxT), attend, lambda: jnp.zeros_like(x_BxD))
        found_B = made.attended_BxT & (ring.written_B > 0)
        mixed_BxD = two_stage.mix(made, worked_BxD, r_BxD, asked.answer.recalled.astype(x_BxD.dtype))
        k_BxHxK, v_BxHxK = addressed.keys_values(computed, c_BxD, jnp.zeros(B, c_BxD.dtype))
        ring = episodic.push(ring, k_BxHxK, v_BxHxK, writes.kept_BxT)

        weight_B = stream_memory.weights(state, made, found_B, asked, self.learning)
        write = partial(blocks.writes, at, blocks=self.semantic.blocks)
        written = write(r_BxD[:, None], weight_B[:, None])
        tells_Bx1 &= state.retrievals.released
        own_Bx1 = jnp.where(tells_Bx1, jnp.where(compared.agrees, *self.learning.own_weights), 0)
        written = jax.tree.map(jnp.add, written, write(own_Bx1xD, own_Bx1))
        stats = stream_memory.statistics(state, made, r_BxD, found_B, asked, written)
        guessed = stream_memory.quality(state, found_B, r_BxD, asked)
        routes = two_stage.report(made, writes, found_B, *guessed, state.retrievals.released)
        after = PosteriorCRAMCache(cache.position + 1, working_BxN, ring, against)
        return mixed_BxD, after, LayerAux(stats, (), routes)

    def _decide_writes(self, params: PosteriorCRAMParams, z, uniform) -> Writes:
        return episodic.decide_writes(params.episodic.write, z, jnp.ones(z.shape[:-1]), uniform, cfg=self.episodic)

    def _decide(self, params, state: StreamState, need, audited, looks, asked, uniform, coin, train) -> Decisions:
        novelty = jnp.maximum(stream_memory.novelty(asked), asked.doubt_BxT)
        more = dict(uniform=uniform, coin=coin, train=train, cfg=self.routing)
        return two_stage.decide(params.router, need, audited, novelty, looks, state.retrievals.released, **more)

    def mixer_params(self, params):
        """Without the feed-forward network."""
        return params._replace(norm_ff_D=(), feed_forward=())

    def feed(self, params: PosteriorCRAMParams, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """x + W_out gelu(W_in norm(x) + b)."""
        network = cast(params.feed_forward, self.compute_dtype)
        return x + feed_forward(network, cast(rms_norm(params.norm_ff_D, x), self.compute_dtype)).astype(x.dtype)

    def update(self, state: StreamState, stats: StreamStats, axis_name: str | None = None) -> StreamState:
        """The state after a visit (`stream_memory.update`)."""
        return stream_memory.update(state, stats, axis_name)

    def release(self, state: StreamState, when=True) -> StreamState:
        """From now on the router decides who attends (`stream_memory.release`)."""
        return stream_memory.release(state, when)

    def for_streams(self, state: StreamState, streams: int) -> StreamState:
        """Empty memories; scales of retrievals and the release are those of all streams."""
        axes = (*state.retrievals.released.shape, streams)  # of layers, if they are stacked
        return state._replace(memory=blocks.init(self.D, self.semantic, axes))

    def reset(self, state: StreamState, fresh_S: Bool[Array, "S"]) -> StreamState:
        """The marked streams begin anew (`stream_memory.reset`)."""
        return stream_memory.reset(state, fresh_S)

    def streams_at(self, state: StreamState, id_B: Int[Array, "B"]) -> StreamState:
        """The state of these streams (`stream_memory.streams_at`)."""
        return stream_memory.streams_at(state, id_B)

    def put_streams(self, state: StreamState, id_B: Int[Array, "B"], of_B: StreamState) -> StreamState:
        """The state with these streams put back (`stream_memory.put_streams`)."""
        return stream_memory.put_streams(state, id_B, of_B)

    def learned(self, state: StreamState) -> PosteriorSums:
        """All that the streams' memories hold."""
        return state.memory.sums

    def merge(self, state: StreamState, learned: PosteriorSums) -> StreamState:
        """The state whose memories also hold these sums (`stream_memory.merge`)."""
        return stream_memory.merge(state, learned)

    def audited(self) -> "PosteriorCRAMConfig":
        """Every token is audited in evaluation."""
        return dataclasses.replace(self, routing=dataclasses.replace(self.routing, evaluation_audit_rate=1.0))

    def attentive(self, length: int) -> "PosteriorCRAMConfig":
        """Every token is audited, over a buffer that keeps all events."""
        opened = dataclasses.replace(
            self.episodic, memory=max(length, self.episodic.memory), write_bias=self.episodic.write_bias + 1e3
        )
        return dataclasses.replace(self.audited(), episodic=opened)

    def operations(self, shape: tuple[int, int], routes: CRAMRoutes, train: bool) -> Operations:
        """Attention over the plan that was executed, look-ups of the tokens that asked, networks of all tokens."""
        D, network, read = self.D, operations.network, self.episodic
        plan = addressed.plan_reads(routes.attended_BxT, routes.kept_BxT, None, read.memory)
        work = operations.plan_work(plan, shape)
        attended = operations.attention(work, D, read.heads, read.head_dim, train=train, in_buckets=True)
        beside = (
            working.operations(D, self.working)
            + network(D + 1, self.routing.width, 1)
            + network(D + 1, read.width, 1)
            + network(D, self.F, D)
        )
        each = operations.per_token(beside, work.tokens, train)
        return Operations(attended, attended + self.lookups(shape, routes) + each)

    def lookups(self, shape: tuple[int, int], routes: CRAMRoutes) -> Array:
        """Operations of semantic memory, which has no backward pass: asked, compared with, written and solved."""
        D, E, F, G = self.D, self.episodic.heads * self.episodic.head_dim, self.semantic.features, self.semantic.blocks
        asked = jnp.sum(routes.attended_BxT | (routes.choice_BxT == SEMANTIC), dtype=jnp.float32)
        kept = jnp.sum(routes.kept_BxT & (routes.choice_BxT == WORKING), dtype=jnp.float32)
        attended = jnp.sum(routes.attended_BxT, dtype=jnp.float32)
        at_address, recalled = 2 * D * E + E * (F + G), 2 * F * D
        of_write = blocks.operations(F, D, G)
        of_asked = at_address + recalled + 2 * F**2  # u takes F^2 multiply-adds
        of_attended = at_address + of_write  # addresses are formed once to ask and once to write
        of_kept = at_address + recalled + 4 * D * E + of_write  # all are written, with weight 0 if they do not agree
        # Once a visit: Cholesky factors, their inverses, two triangular systems for W_up, and the squares of both
        of_visit = G * (2 * F**3 / 3 + 2 * F**2 * D + 2 * F * (F + D))
        return asked * of_asked + attended * of_attended + kept * of_kept + shape[0] * of_visit
