"""A router in two stages: does a token need memory, and if so, is it familiar to semantic memory (CRAM, Eq 7)?

The first stage is learned; the second follows from the memory's uncertainty. The three probabilities are products:
pi^E = need (1 - known), pi^S = need known, and the rest is working memory only. Only tokens that need memory, or are
audited, ask semantic memory; so both memories are sparse.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Key
from cram_jax.functional.checks import check_at_least_one, check_fields, check_not_negative, check_shares
from cram_jax.functional.common import FeedForward, feed_forward, init_feed_forward, silent, total, wide
from cram_jax.functional.episodic import Writes
from cram_jax.functional.objective import MemorySums
from cram_jax.functional.routing import EPISODIC, SEMANTIC, WORKING, CRAMRoutes

UNTRUSTED = -0.15  # initial trust: 5% of what is known is answered from semantic memory
TRUST = 20.0  # logits in a unit of trust: Adam moves a number by its learning rate at most, whatever its gradient


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TwoStageConfig:
    """width: hidden units of the first stage.
    known_below: semantic memory answers where its uncertainty u is below this share of what u is at an address like
        none before (`posterior.novelty`).
    need_bias: initial logit of the first stage: at 2, 88% of the tokens need memory.
    audit_rate: in training, share of tokens routed elsewhere that retrieve all the same, so that the router learns what
        retrieval would have given them. They count as attention.
    audit_gain: this times the probability of episodic memory is added to the rate.
    evaluation_audit_rate: the rate outside training, if a key is given.
    """

    width: int = 64
    known_below: float = 0.35
    need_bias: float = 2.0
    audit_rate: float = 0.02
    audit_gain: float = 2.0
    evaluation_audit_rate: float = 0.0

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "width")
        check_shares(self, "evaluation_audit_rate")
        check_not_negative(self, "audit_gain")
        if not 0 <= self.known_below < 1:
            raise ValueError(
                f"known_below must be in [0, 1), got {self.known_below}; novelty is 1 at an address like none before"
            )
        if not 0 < self.audit_rate <= 1:
            raise ValueError(f"audit_rate must be in (0, 1]: audits carry the router's gradient; got {self.audit_rate}")


class Stage(NamedTuple):
    """A decision.

    Attributes:
      logit: without noise. hard: what is done. soft: its probability given the noise, which carries the gradient.
    """

    logit: Float[Array, "*shape"]
    hard: Bool[Array, "*shape"]
    soft: Float[Array, "*shape"]

    @property
    def mean(self) -> Float[Array, "*shape"]:
        """The probability without noise."""
        return jax.nn.sigmoid(self.logit)


class RouterParams(NamedTuple):
    """Attributes:
    need: the first stage, from a token and its gap to a logit.
    trust: how often semantic memory answers what it knows, as a twentieth of a logit.
    """

    need: FeedForward
    trust: Float[Array, ""]


def init(key: Key, D: int, cfg: TwoStageConfig) -> RouterParams:
    """The first stage is indifferent to the token: output weights are zero. Semantic memory is not yet trusted."""
    return RouterParams(silent(init_feed_forward(key, D + 1, cfg.width, 1)), jnp.asarray(UNTRUSTED))


def _decide(logit, uniform) -> Stage:
    noisy = logit if uniform is None else logit + jnp.log(uniform) - jnp.log1p(-uniform)
    return Stage(logit, noisy > 0, jax.nn.sigmoid(noisy))


def need(
    params: RouterParams, x: Float[Array, "... D"], gap: Float[Array, "..."], uniform: Array | None, cfg: TwoStageConfig
) -> Stage:
    """Whether a token needs memory, from the token and its gap alone.

    Args:
      uniform: a random number for each token, in training; None decides by the sign of the logit.
    """
    seen = jnp.concatenate([x, jnp.log1p(gap)[..., None]], axis=-1)
    return _decide(feed_forward(params.need, seen)[..., 0] + cfg.need_bias, uniform)


def known(
    params: RouterParams,
    novelty: Float[Array, "..."],
    looked: Bool[Array, "..."],
    uniform: Array | None,
    cfg: TwoStageConfig,
) -> Stage:
    """Whether semantic memory knows the address, novelty < `known_below`, and is trusted.

    Trust is one number, which training raises. After the release nearly all tokens need memory at first, and what they
    write is of no use; so semantic memory must not answer before the first stage has learned who needs it. Tokens that
    did not look anything up know nothing.
    """
    knows = looked & (novelty < cfg.known_below)
    return _decide(jnp.where(knows, TRUST * params.trust.astype(novelty.dtype), -jnp.inf), uniform)


class Decisions(NamedTuple):
    """Attributes:
    choice_BxT: WORKING, EPISODIC or SEMANTIC.
    audited_BxT: chose another, and retrieves all the same.
    weight_BxT: 1 / (chance of an audit).
    need, known: the stages.
    """

    choice_BxT: Int[Array, "*shape"]
    audited_BxT: Bool[Array, "*shape"]
    weight_BxT: Float[Array, "*shape"]
    need: Stage
    known: Stage

    @property
    def attended_BxT(self) -> Bool[Array, "*shape"]:
        """Routed to episodic memory, or audited."""
        return (self.choice_BxT == EPISODIC) | self.audited_BxT

    @property
    def episodic_BxT(self) -> Float[Array, "*shape"]:
        """pi^E without noise."""
        return self.need.mean * (1 - self.known.mean)

    @property
    def semantic_BxT(self) -> Float[Array, "*shape"]:
        """pi^S without noise."""
        return self.need.mean * self.known.mean


def audits(uniform: Array | None, among: Bool[Array, "..."], chance, train: bool, cfg: TwoStageConfig):
    """Draws audits: (which tokens of `among` are audited, the rate).

    Args:
      chance: each token's probability of episodic memory; in training it raises the rate.
    """
    rate = jnp.full(among.shape, cfg.evaluation_audit_rate)
    if train:
        rate = jax.lax.stop_gradient(jnp.minimum(cfg.audit_rate + cfg.audit_gain * chance, 1))
    audited = jnp.zeros_like(among) if uniform is None else among & (uniform < rate)
    return audited, rate


def decide(
    params: RouterParams,
    needs: Stage,
    audited: tuple[Bool[Array, "*shape"], Float[Array, "*shape"]],
    novelty: Float[Array, "*shape"],
    looked: Bool[Array, "*shape"],
    released: Bool[Array, ""],
    *,
    uniform: Array | None,
    coin: Array | None,
    train: bool,
    cfg: TwoStageConfig,
) -> Decisions:
    """Both stages together. A token that semantic memory answers may be audited, too.

    Args:
      needs: the first stage.
      audited: what `audits` drew among tokens that need no memory.
      novelty, looked: see `known`.
      released: while it is False, every token attends.
      uniform, coin: random numbers of the second stage, and of audits.
    """
    knows = known(params, novelty, looked, uniform, cfg)
    choice = jnp.where(needs.hard, jnp.where(knows.hard, SEMANTIC, EPISODIC), WORKING)
    choice = jnp.where(released, choice, EPISODIC)
    answered, (idle, rate) = choice == SEMANTIC, audited
    checked, checked_rate = audits(coin, answered, needs.mean * (1 - knows.mean), train, cfg)
    weight = 1 / jnp.maximum(jnp.where(answered, checked_rate, rate), 1e-6)
    return Decisions(choice, (idle & (choice == WORKING)) | checked, weight, needs, knows)


def memory_sums(
    made: Decisions,
    writes: Writes,
    found: Bool[Array, "*shape"],
    familiarity: Float[Array, "*shape"],
    reads: Float[Array, "*shape"],
    released: Bool[Array, ""],
) -> MemorySums:
    """What the layer's own loss is made of.

    Args:
      found: tokens that attended to something.
      familiarity: q-hat of each token.
      reads: with the gradient of the read weights of the events that were read (`episodic.output`).
    """
    zero = jnp.zeros(())
    routed = made.choice_BxT == EPISODIC
    return MemorySums(
        tokens=jnp.asarray(found.size, zero.dtype),
        attended=total(made.attended_BxT),
        retrieved=total(found),
        needed=total(made.need.mean),
        episodic=total(made.episodic_BxT),
        semantic=total(made.semantic_BxT * familiarity),
        # While every token attends, reads say nothing about an event's value: the gate does not learn yet.
        write=total(jnp.exp(wide(writes.logit_BxT)), where=released),
        reads=total(reads, where=routed & released),
        routed=total(routed),
        distillation=zero,  # Eq 5 is solved, not descended
        familiarity=zero,
        prediction=zero,
        predicted=zero,
    )


def report(made: Decisions, writes: Writes, found: Array, familiarity: Array, quality: Array, released: Array):
    """What each token did (`CRAMRoutes`).

    The margin is the smallest logit, in size, of the token's decisions: need, known if it was asked, and write.
    """
    asked = made.need.hard & jnp.isfinite(made.known.logit)
    second = jnp.where(asked, jnp.abs(made.known.logit), jnp.inf)
    decided = jnp.where(released, jnp.minimum(jnp.abs(made.need.logit), second), jnp.inf)
    margin = jax.lax.stop_gradient(jnp.minimum(decided, jnp.abs(writes.logit_BxT)))
    return CRAMRoutes(made.choice_BxT, made.attended_BxT, found, writes.kept_BxT, margin, familiarity, quality)


def mix(made: Decisions, worked_BxTxD: Array, retrieved_BxTxD: Array, recalled_BxTxD: Array) -> Array:
    """Working memory, plus retrieval or recall where it was chosen, with a straight-through gradient (Eq 7).

    Only tokens that attended have a retrieval, and only tokens that looked something up have a recall. Without one, a
    gate gets no gradient. Audits make up for it: theirs is weighted by one over their chance.
    """
    through = lambda soft: soft - jax.lax.stop_gradient(soft)  # 0, with the gradient of soft
    soft_E = through(made.need.soft * (1 - made.known.soft))
    soft_S = through(made.need.soft * made.known.soft)
    weight_BxT = jnp.where(made.audited_BxT, made.weight_BxT, 1)
    weight_S = jnp.where(made.choice_BxT == WORKING, weight_BxT, 1)
    gate_E = (made.choice_BxT == EPISODIC) + weight_BxT * soft_E
    gate_S = (made.choice_BxT == SEMANTIC) + weight_S * soft_S
    r_BxTxD = jnp.where(made.attended_BxT[..., None], retrieved_BxTxD, 0)
    return worked_BxTxD + gate_E[..., None] * r_BxTxD + gate_S[..., None] * recalled_BxTxD
