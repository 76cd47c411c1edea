"""The CRAM layer whose semantic memory is a posterior: it learns without labels or gradients, for each stream apart.

Working and episodic memory are those of `cram.py`. Semantic memory is solved from what was retrieved (`posterior.py`),
and how well it would answer follows from its uncertainty, before any retrieval. So the router asks first whether a
token needs memory, and then whether semantic memory knows the answer (`two_stage.py`). Parameters stay fixed once they
are trained; what a stream's memory learns is in its state. Read it from `PosteriorCRAMConfig.mix`.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Bool, Float, Gap, Gaps, Int, Key, Token, Tokens
from cram_jax.functional import addressed, consolidation, episodic, operations, posterior, two_stage, working
from cram_jax.functional.addressed import AddressedParams, Contradictions
from cram_jax.functional.common import (
    FeedForward,
    cast,
    check_at_least_one,
    check_compute_dtype,
    feed_forward,
    init_feed_forward,
    rms_norm,
    uniforms,
)
from cram_jax.functional.consolidation import ConsolidationConfig, ConsolidationState, ConsolidationStats
from cram_jax.functional.episodic import EpisodicConfig, Writes
from cram_jax.functional.layer import Layer, LayerAux, Operations, apply, init, init_cache, init_state, step
from cram_jax.functional.objective import MemorySums
from cram_jax.functional.posterior import Posterior, PosteriorConfig, PosteriorSums
from cram_jax.functional.routing import EPISODIC, SEMANTIC, CRAMRoutes
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


class PosteriorCRAMState(NamedTuple):
    """Attributes:
    retrievals: their running mean and variance, and whether the router decides.
    memory: semantic memory, with an axis of streams if each sequence of a batch has its own.
    """

    retrievals: ConsolidationState
    memory: Posterior


class PosteriorCRAMStats(NamedTuple):
    """What a visit teaches. Sums: they add over tokens and micro-batches.

    Attributes:
      retrievals: sums of what was retrieved.
      written: sums of what is written into semantic memory, for each sequence.
    """

    retrievals: ConsolidationStats
    written: PosteriorSums


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


NEVER = jnp.iinfo(jnp.int32).max  # the position of a contradiction that there is not
LEAST = 1e-6  # of u, which is divided by


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PosteriorCRAMConfig(Layer):
    """D: width. F: hidden units of the feed-forward network. The others: see their files.
    first, growth: a retrieval is written with the weight first + growth times what is written at its address already.
        So what is met once takes little of the memory, and a new value outweighs the one that it contradicts.
    rehearsal: weight of the write of a token that semantic memory answered. It writes its own recall again, so what
        is used stays, and what is not fades.
    contradictions: most contradictions noticed in a sequence, the first ones.
    compute_dtype: of attention, its buffer and the feed-forward network; None is that of the tokens. The memories'
        decisions and semantic memory always keep float32 or wider.
    """

    D: int = 64
    F: int = 128
    compute_dtype: str | None = None
    first: float = 0.2
    growth: float = 2.0
    rehearsal: float = 0.5
    contradictions: int = 16
    working: WorkingConfig = WorkingConfig()
    episodic: EpisodicConfig = EpisodicConfig(heads=1, memory=256)
    semantic: PosteriorConfig = PosteriorConfig()
    consolidation: ConsolidationConfig = ConsolidationConfig()
    routing: TwoStageConfig = TwoStageConfig()

    draws: ClassVar[bool] = True
    consolidates: ClassVar[bool] = True
    no_decay: ClassVar[tuple[str, ...]] = ("episodic.write.*", "episodic.frequencies_ExR", "router.*")

    def __post_init__(self):
        check_at_least_one(self, "D", "F", "contradictions")
        check_compute_dtype(self.compute_dtype)
        if self.episodic.rotary:
            raise ValueError(
                "episodic.rotary must be False: an address that turns with its position is never met again"
            )
        if not 0 <= self.rehearsal <= 1:
            raise ValueError(f"rehearsal must be a weight between 0 and 1, got {self.rehearsal}")

    def init(self, key: Key) -> PosteriorCRAMParams:
        """Most tokens need memory, nothing is known, and almost all events are kept."""
        w, e, r, ff = jax.random.split(key, 4)
        return PosteriorCRAMParams(
            jnp.ones(self.D),
            working.init(w, self.D, self.working),
            addressed.init(e, self.D, self.episodic, self.semantic),
            two_stage.init(r, self.D, self.routing),
            jnp.ones(self.D),
            init_feed_forward(ff, self.D, self.F),
        )

    def init_state(self, streams: int | None = None) -> PosteriorCRAMState:
        """An empty memory, one for each stream, or one for all if None. Every token attends until `release`."""
        axes = () if streams is None else (streams,)
        retrievals = consolidation.init_state(self.D, self.consolidation)
        return PosteriorCRAMState(retrievals, posterior.init(self.D, self.semantic, axes))

    def init_cache(self, batch: int) -> PosteriorCRAMCache:
        """Nothing seen yet."""
        E, G = self.episodic.heads * self.episodic.head_dim, self.contradictions
        return PosteriorCRAMCache(
            jnp.zeros((), jnp.int32),
            working.init_cache(self.working, batch),
            episodic.init_cache(self.episodic, batch, self.compute_dtype),
            Contradictions(jnp.zeros((batch, G, E)), jnp.full((batch, G), NEVER, jnp.int32)),
        )

    def mix(self, params: PosteriorCRAMParams, state, x_BxTxD: Tokens, gap_BxT: Gaps, *, key, train, segment_BxT):
        """The three memories over whole sequences. Decisions are hard; in training they are sampled."""
        B, T, _ = x_BxTxD.shape
        z_BxTxD = rms_norm(params.norm_D, x_BxTxD)
        uniform_BxTx4 = None if key is None else uniforms(key, jnp.arange(T), B, 4)
        noise = lambda i: uniform_BxTx4[..., i] if train and uniform_BxTx4 is not None else None
        worked_BxTxD, _ = working.apply(params.working, z_BxTxD, gap_BxT, segment_BxT, self.working)
        writes = self._decide_writes(params, z_BxTxD, noise(3))
        fixed = jax.lax.stop_gradient((params.episodic, state.memory, z_BxTxD))
        against = addressed.contradictions(*fixed[:2], writes.kept_BxT, fixed[2], self.contradictions)

        need = two_stage.need(params.router, z_BxTxD, gap_BxT, noise(0))
        doubt = None if uniform_BxTx4 is None else uniform_BxTx4[..., 2]
        audited_BxT, rate_BxT = two_stage.audits(doubt, ~need.hard, need.mean, train, self.routing)
        looks_BxT = need.hard | audited_BxT | ~state.retrievals.released
        plan = addressed.plan_lists(looks_BxT, writes.kept_BxT, segment_BxT, self.episodic.memory)
        first_BxT = _first(segment_BxT, (B, T))
        asked = addressed.look_up(*fixed[:2], plan, fixed[2], first_BxT, against, self.semantic.bandwidth)
        made = self._decide(params, state, need, looks_BxT, asked, audited_BxT, rate_BxT, noise(1), doubt, train)

        attends = addressed.plan_lists(made.attended_BxT, writes.kept_BxT, segment_BxT, self.episodic.memory)
        computed, c_BxTxD = cast(params.episodic, self.compute_dtype), cast(z_BxTxD, self.compute_dtype)
        read = addressed.read(computed, attends, c_BxTxD, writes.read_weight_BxT, cfg=self.episodic)
        r_BxTxD, reads_BxT = (a.astype(x_BxTxD.dtype) for a in read)
        found_BxT = made.attended_BxT & attends.scatter(attends.end_BxC > attends.start_BxC, T)
        mixed_BxTxD = two_stage.mix(made, worked_BxTxD, r_BxTxD, asked.recalled_BxTxD.astype(x_BxTxD.dtype))

        weight_BxT, value_BxTxD = self._lessons(state, made, found_BxT, r_BxTxD, asked)
        stats = PosteriorCRAMStats(
            consolidation.statistics(r_BxTxD, found_BxT),
            addressed.written(fixed[0], plan, fixed[2], value_BxTxD, weight_BxT),
        )
        routes, familiarity_BxT = self._report(state, made, writes, found_BxT, r_BxTxD, asked)
        zero, count = jnp.zeros((), z_BxTxD.dtype), lambda marks: jnp.sum(marks, dtype=z_BxTxD.dtype)
        sums = MemorySums(
            tokens=jnp.asarray(B * T, z_BxTxD.dtype),
            retrieved=count(found_BxT),
            needed=jnp.sum(need.mean),
            episodic=jnp.sum(made.episodic_BxT),
            semantic=jnp.sum(made.semantic_BxT * familiarity_BxT),
            # While every token attends, reads say nothing about an event's value: the gate does not learn yet.
            write=jnp.sum(jnp.exp(writes.logit_BxT), where=state.retrievals.released),
            reads=jnp.sum(reads_BxT, where=(made.choice_BxT == EPISODIC) & state.retrievals.released),
            routed=count(made.choice_BxT == EPISODIC),
            distillation=zero,  # Eq 5 is solved, not descended
            familiarity=zero,
            prediction=zero,
            predicted=zero,
        )
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
        wrong_B = writes.kept_BxT & addressed.contradicts(params.episodic, state.memory.up_SxFxD, z_BxD[:, None])[:, 0]
        address_BxE = addressed.joined(addressed.addresses(params.episodic, z_BxD))
        against = _noted(cache.against, address_BxE, wrong_B, cache.position)

        need = two_stage.need(params.router, z_BxD, gap_B, None)
        doubt = None if uniform_Bx4 is None else uniform_Bx4[..., 2]
        audited_B, rate_B = two_stage.audits(doubt, ~need.hard, need.mean, False, self.routing)
        looks_B = need.hard | audited_B | ~state.retrievals.released
        place_Bx1 = jnp.full((B, 1), cache.position)
        asked = addressed.ask(
            params.episodic,
            state.memory,
            address_BxE[:, None],
            place_Bx1,
            jnp.zeros_like(place_Bx1),
            against,
            self.semantic.bandwidth,
        )
        asked = jax.tree.map(lambda a: jnp.where(looks_B.reshape(-1, *[1] * (a.ndim - 2)), a[:, 0], 0), asked)
        made = self._decide(params, state, need, looks_B, asked, audited_B, rate_B, None, doubt, False)

        computed, c_BxD = cast(params.episodic, self.compute_dtype), cast(z_BxD, self.compute_dtype)
        ring = cache.episodic
        q_BxHxK = addressed.query(computed, addressed.addresses(computed, c_BxD))
        attend = lambda: addressed.output(computed, episodic.look_up(ring, q_BxHxK, made.attended_BxT))[0]
        r_BxD = jax.lax.cond(jnp.any(made.attended_BxT), attend, lambda: jnp.zeros_like(c_BxD)).astype(x_BxD.dtype)
        found_B = made.attended_BxT & (ring.written_B > 0)
        mixed_BxD = two_stage.mix(made, worked_BxD, r_BxD, asked.recalled_BxTxD.astype(x_BxD.dtype))
        k_BxHxK, v_BxHxK = addressed.keys_values(computed, c_BxD, jnp.zeros(B, c_BxD.dtype))
        ring = episodic.push(ring, k_BxHxK, v_BxHxK, writes.kept_BxT)

        weight_B, value_BxD = self._lessons(state, made, found_B, r_BxD, asked)
        phi_Bx1xF = posterior.features(params.episodic.frequencies_ExR, address_BxE)[:, None]
        stats = PosteriorCRAMStats(
            consolidation.statistics(r_BxD[:, None], found_B[:, None]),
            posterior.writes(phi_Bx1xF, value_BxD[:, None], weight_B[:, None]),
        )
        routes, _ = self._report(state, made, writes, found_B, r_BxD, asked)
        return (
            mixed_BxD,
            PosteriorCRAMCache(cache.position + 1, working_BxN, ring, against),
            LayerAux(stats, (), routes),
        )

    def _decide_writes(self, params: PosteriorCRAMParams, z, uniform) -> Writes:
        return episodic.decide_writes(params.episodic.write, z, jnp.ones(z.shape[:-1]), uniform, cfg=self.episodic)

    def _decide(self, params, state, need, looks, asked, audited, rate, noise, doubt, train: bool) -> Decisions:
        """Both stages together. A token that semantic memory answers may be audited, too."""
        u = jnp.maximum(asked.u_BxT, asked.doubt_BxT)
        free = _beside(posterior.free_share(state.memory), u)
        known = two_stage.known(params.router, u, free, looks, noise)
        released = state.retrievals.released
        choice = jnp.where(need.hard, jnp.where(known.hard, SEMANTIC, EPISODIC), 0)
        choice = jnp.where(released, choice, EPISODIC)
        answered = choice == SEMANTIC
        checked, checked_rate = two_stage.audits(doubt, answered, need.mean * (1 - known.mean), train, self.routing)
        audited = (audited & (choice == 0)) | checked
        weight = 1 / jnp.maximum(jnp.where(answered, checked_rate, rate), 1e-6)
        return Decisions(choice, audited, weight, need, known)

    def _lessons(self, state, made: Decisions, found, r, asked: addressed.Lookup):
        """(weight, value) of what each token writes: its retrieval if it needed memory, or what it recalled, again."""
        needs = (made.choice_BxT != 0) & state.retrievals.released
        rehearses = needs & (made.choice_BxT == SEMANTIC) & ~made.audited_BxT
        # u = lambda / (lambda + w) after writes of weight w at an address of its own
        there = _beside(state.memory.ridge, asked.u_BxT) * (1 / jnp.maximum(asked.u_BxT, LEAST) - 1)
        weight = jnp.where(rehearses, self.rehearsal, jnp.where(found & needs, self.first + self.growth * there, 0))
        value = jnp.where(rehearses[..., None], posterior.unbiased(asked.recalled_BxTxD, asked.u_BxT), r)
        return jax.lax.stop_gradient((weight, value))

    def _report(self, state, made: Decisions, writes, found, r, asked) -> tuple[CRAMRoutes, Array]:
        """(what each token did; q-hat, Eq 6 with the expected squared error u E|r|^2 in the place of the error)."""
        sigma2 = consolidation.variance(state.retrievals)
        squared = state.retrievals.square / jnp.maximum(state.retrievals.weight, 1e-6)
        looked = asked.u_BxT > 0
        familiarity = jax.lax.stop_gradient(jnp.where(looked, jnp.exp(-asked.u_BxT * squared / sigma2), 0))
        quality = consolidation.quality(asked.recalled_BxTxD, r, found & looked, sigma2)
        second = jnp.where(looked & made.need.hard, jnp.abs(made.known.logit), jnp.inf)
        decided = jnp.where(state.retrievals.released, jnp.minimum(jnp.abs(made.need.logit), second), jnp.inf)
        margin = jax.lax.stop_gradient(jnp.minimum(decided, jnp.abs(writes.logit_BxT)))
        routes = CRAMRoutes(made.choice_BxT, made.attended_BxT, found, writes.kept_BxT, margin, familiarity, quality)
        return routes, familiarity

    def mixer_params(self, params):
        """Without the feed-forward network."""
        return params._replace(norm_ff_D=(), feed_forward=())

    def feed(self, params: PosteriorCRAMParams, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """x + W_out gelu(W_in norm(x) + b)."""
        network = cast(params.feed_forward, self.compute_dtype)
        return x + feed_forward(network, cast(rms_norm(params.norm_ff_D, x), self.compute_dtype)).astype(x.dtype)

    def update(self, state: PosteriorCRAMState, stats: PosteriorCRAMStats, axis_name: str | None = None):
        """The state after a visit: what is there fades a little, and what was written is added.

        If one memory serves all sequences, their writes are added up.
        """
        written = stats.written
        if state.memory.ridge.ndim < written.A_SxFxF.ndim - 2:
            written = jax.tree.map(lambda a: jnp.sum(a, axis=-3), written)
            written = written if axis_name is None else jax.lax.psum(written, axis_name)
        memory = posterior.update(state.memory, written)
        return PosteriorCRAMState(consolidation.update(state.retrievals, stats.retrievals, axis_name), memory)

    def release(self, state: PosteriorCRAMState, when=True) -> PosteriorCRAMState:
        """From now on the router decides who attends, and what is retrieved is consolidated."""
        return state._replace(retrievals=consolidation.release(state.retrievals, when))

    def reset(self, state: PosteriorCRAMState, fresh_S: Bool[Array, "S"]) -> PosteriorCRAMState:
        """The marked streams begin anew."""
        fresh = jnp.broadcast_to(fresh_S, state.memory.ridge.shape)
        return state._replace(memory=posterior.reset(state.memory, fresh))

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
        """Attention over the plan that was executed; look-ups of the tokens that asked; networks of all tokens."""
        D, network, read, Fs = self.D, operations.network, self.episodic, self.semantic.features
        plan = addressed.plan_lists(routes.attended_BxT, routes.kept_BxT, None, read.memory)
        work = operations.plan_work(plan, shape)
        attended = operations.attention(work, D, read.heads, read.head_dim, train=train, in_buckets=True)
        E = read.heads * read.head_dim
        address = 2 * D * E + E * Fs
        asked = jnp.sum(routes.attended_BxT | (routes.choice_BxT == SEMANTIC), dtype=jnp.float32)
        kept = jnp.sum(routes.kept_BxT, dtype=jnp.float32)
        # Of a token that asks: u, recall, and its write into both sums. Of a kept event: recall and its own value.
        memory = asked * (2 * address + 2 * Fs * Fs + 2 * Fs * D + 2 * Fs * (Fs + D))
        memory += kept * (address + 2 * Fs * D + 4 * D * E)
        # Once a visit and stream: Cholesky, its inverse, and W_up
        memory += shape[0] * (2 * Fs**3 / 3 + 4 * Fs * Fs * D)
        beside = (
            working.operations(D, self.working)
            + network(D + 1, self.routing.width, 1)
            + network(D + 1, read.width, 1)
            + network(D, self.F, D)
        )
        return Operations(attended, attended + memory + operations.per_token(beside, work.tokens, train))


def _beside(of_stream: Array, of_token: Array) -> Array:
    """A number of each stream, or of all together, with the axes of tokens."""
    axes = (1,) * (of_token.ndim - of_stream.ndim) if of_stream.ndim else ()
    return of_stream.reshape(of_stream.shape + axes)


def _first(segment_BxT, shape) -> Int[Array, "B T"]:
    """Where each token's segment starts."""
    if segment_BxT is None:
        return jnp.zeros(shape, jnp.int32)
    place_T = jnp.arange(shape[1], dtype=jnp.int32)
    return jax.lax.cummax(jnp.where(kernels.segment_starts(segment_BxT), place_T, 0), axis=1)


def _noted(against: Contradictions, address_BxE, wrong_B, position) -> Contradictions:
    """The list with one more contradiction, if there is room."""
    count_B = jnp.sum(against.position_BxG < NEVER, axis=1)
    here_BxG = (jnp.arange(against.position_BxG.shape[1]) == count_B[:, None]) & wrong_B[:, None]
    return Contradictions(
        jnp.where(here_BxG[..., None], address_BxE[:, None], against.address_BxGxE),
        jnp.where(here_BxG, position, against.position_BxG),
    )
