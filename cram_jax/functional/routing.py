"""The three-way router: working memory only, episodic retrieval, or semantic recall (CRAM, Eq 7)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Key
from cram_jax.functional.checks import check_at_least_one, check_fields, check_not_negative, check_shares
from cram_jax.functional.common import FeedForward, feed_forward, init_feed_forward, silent

WORKING, EPISODIC, SEMANTIC = 0, 1, 2
FEATURES = ("content", "gap", "dynamics", "familiarity", "uncertainty")
PAPER_FEATURES = ("gap", "dynamics", "familiarity", "uncertainty")
DECIDES = ("learned", "random", "positions")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class RoutingConfig:
    """features: the router's inputs, from `FEATURES`. `CRAMConfig._route` computes them. The paper's list has no
        content, so it cannot tell a query from another event.
    width: hidden units of the router.
    working_always: True: working memory is added for every token, and choosing WORKING means that nothing else is.
        False: it is added only where WORKING is chosen, the paper's sum of three gated paths taken literally.
    temperature: of the Gumbel-softmax; lower is closer to hard decisions, with a noisier gradient.
    audit_rate: in training, share of tokens that retrieve although routed elsewhere, so that the router and the
        familiarity head keep learning what retrieval would give. They count as attention.
    audit_gain: this times pi^E is added to the rate: tokens of which the router is unsure are audited more often,
        because the gradient of their gate is large. The weight 1 / rate keeps the expected gradient unchanged.
    evaluation_audit_rate: the rate outside training, if a key is given.
    decide: what decides on attention. "learned": the router. To compare with: "random": chance, for a share `budget` of
        tokens; "positions": the place in the sequence, every 1/budget-th. The choice between the other two memories is
        always learned.
    budget: share of tokens that attend, for random and positions.
    """

    features: tuple[str, ...] = FEATURES
    width: int = 128
    working_always: bool = True
    temperature: float = 2.0
    audit_rate: float = 0.02
    audit_gain: float = 2.0
    evaluation_audit_rate: float = 0.00025
    decide: str = "learned"
    budget: float = 0.05

    def __post_init__(self):
        check_fields(self)
        check_at_least_one(self, "width")
        if self.decide not in DECIDES:
            raise ValueError(f"decide must be one of {DECIDES}, got {self.decide!r}")
        check_shares(self, "budget", "evaluation_audit_rate")
        check_not_negative(self, "audit_gain")
        unknown = set(self.features) - set(FEATURES)
        if unknown or not self.features:
            raise ValueError(f"features must be some of {FEATURES}, got {self.features}")
        if not 0 < self.audit_rate <= 1:
            raise ValueError(f"audit_rate must be in (0, 1]: audits carry the router's gradient; got {self.audit_rate}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")


class Gates(NamedTuple):
    """Attributes:
    soft_BxTx3: Gumbel-softmax probabilities (softmax without noise), through which the gradient goes.
    mean_BxTx3: the same without noise; these are priced. They are a token's chances in training at temperature 1 only;
        at the default of 2 they are flatter.
    choice_BxT: the memory that each token takes.
    routed_BxT: chose episodic memory.
    audited_BxT: chose another, and retrieves all the same.
    audit_weight_BxT: 1 / (chance of an audit).
    """

    soft_BxTx3: Float[Array, "*shape 3"]
    mean_BxTx3: Float[Array, "*shape 3"]
    choice_BxT: Int[Array, "*shape"]
    routed_BxT: Bool[Array, "*shape"]
    audited_BxT: Bool[Array, "*shape"]
    audit_weight_BxT: Float[Array, "*shape"]


class CRAMRoutes(NamedTuple):
    """What each token did, for counting and looking at. No gradient.

    Attributes:
      choice_BxT: WORKING, EPISODIC or SEMANTIC.
      attended_BxT: routed to episodic memory, or audited.
      retrieved_BxT: attended, and the buffer was not empty.
      kept_BxT: entered the buffer.
      margin_BxT: distance in logits of the token's closest decision (route or write) from falling otherwise.
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

    @property
    def chose_BxT(self) -> Bool[Array, "*shape"]:
        """Routed to episodic memory; audits are no choice."""
        return self.choice_BxT == EPISODIC


def feature_width(D: int, cfg: RoutingConfig) -> int:
    """Numbers that the router reads of a token."""
    return sum(D if name == "content" else 1 for name in cfg.features)


def init(key: Key, D: int, cfg: RoutingConfig) -> FeedForward:
    """An indifferent router: its output weights are zero."""
    return silent(init_feed_forward(key, feature_width(D, cfg), cfg.width, 3))


def route(
    params: FeedForward,
    features: dict[str, Array],
    uniform_BxTx4: Float[Array, "*shape 4"] | None,
    released: Bool[Array, ""],
    position: Int[Array, "..."],
    *,
    cfg: RoutingConfig,
    train: bool,
) -> Gates:
    """Chooses a memory for each token, hard in training and evaluation alike (Eq 7).

    Args:
      features: by name; "content" (B T D), the others (B T).
      uniform_BxTx4: three numbers for Gumbel noise, used in training only, and one for the audit; None for neither.
      released: while it is False, every token is routed to episodic memory.
      position: of each token in its sequence; broadcast against (B T).

    Raises:
      ValueError: for random routes without random numbers.
    """
    seen_BxTxX = jnp.concatenate([features[n] if n == "content" else features[n][..., None] for n in cfg.features], -1)
    logits_BxTx3 = feed_forward(params, seen_BxTxX)
    noisy_BxTx3 = logits_BxTx3
    if train and uniform_BxTx4 is not None:
        noisy_BxTx3 = logits_BxTx3 - jnp.log(-jnp.log(uniform_BxTx4[..., :3]))
    choice_BxT = jnp.argmax(noisy_BxTx3, axis=-1)
    if cfg.decide in ("random", "positions"):
        other_BxT = jnp.where(noisy_BxTx3[..., SEMANTIC] > noisy_BxTx3[..., WORKING], SEMANTIC, WORKING)
        choice_BxT = jnp.where(_fixed(uniform_BxTx4, position, cfg), EPISODIC, other_BxT)
    choice_BxT = jnp.where(released, choice_BxT, EPISODIC)
    routed_BxT = choice_BxT == EPISODIC
    mean_BxTx3 = jax.nn.softmax(logits_BxTx3 / cfg.temperature)
    rate_BxT = jnp.full(routed_BxT.shape, cfg.evaluation_audit_rate, logits_BxTx3.dtype)
    if train:
        gained_BxT = cfg.audit_rate + cfg.audit_gain * mean_BxTx3[..., EPISODIC]
        rate_BxT = jax.lax.stop_gradient(jnp.minimum(gained_BxT, 1))
    audited_BxT = jnp.zeros_like(routed_BxT)
    if cfg.decide == "learned" and uniform_BxTx4 is not None:
        audited_BxT = ~routed_BxT & (uniform_BxTx4[..., 3] < rate_BxT)
    soft_BxTx3 = jax.nn.softmax(noisy_BxTx3 / cfg.temperature)
    return Gates(soft_BxTx3, mean_BxTx3, choice_BxT, routed_BxT, audited_BxT, 1 / jnp.maximum(rate_BxT, 1e-6))


def _fixed(uniform_BxTx4, position, cfg: RoutingConfig) -> Bool[Array, "..."]:
    """Who attends in a static route: by chance, or evenly spread over the sequence."""
    if cfg.decide == "positions":
        return jnp.floor((position + 1) * cfg.budget) > jnp.floor(position * cfg.budget)
    if uniform_BxTx4 is None:
        raise ValueError('decide="random" needs random numbers: pass a key')
    return uniform_BxTx4[..., 3] < cfg.budget


def mix(
    gates: Gates,
    working_BxTxD: Array,
    retrieved_BxTxD: Array,
    recalled_BxTxD: Array,
    *,
    cfg: RoutingConfig,
) -> Array:
    """Sum of the three memories, each times its gate. Gates are hard, with a straight-through gradient (Eq 7).

    A token that did not retrieve has no r^E, so its episodic gate gets neither value nor gradient, whatever its row
    holds. An audited token adds the value 0. The gradient of its gate is weighted by 1 / (chance of an audit), so that
    the router's expected gradient is that of a dense computation.
    """
    hard_BxTx3 = jax.nn.one_hot(gates.choice_BxT, 3, dtype=gates.soft_BxTx3.dtype)
    through_BxTx3 = gates.soft_BxTx3 - jax.lax.stop_gradient(gates.soft_BxTx3)  # 0, with soft's gradient
    gate_BxTx3 = hard_BxTx3 + through_BxTx3
    attended_BxT = gates.routed_BxT | gates.audited_BxT
    weight_BxT = jnp.where(gates.audited_BxT, gates.audit_weight_BxT, 1)
    episodic_BxT = hard_BxTx3[..., EPISODIC] + weight_BxT * through_BxTx3[..., EPISODIC]
    episodic_BxTxD = jnp.where(attended_BxT[..., None], retrieved_BxTxD, 0) * episodic_BxT[..., None]
    working_BxTx1 = jnp.ones_like(gate_BxTx3[..., :1]) if cfg.working_always else gate_BxTx3[..., WORKING, None]
    return working_BxTx1 * working_BxTxD + episodic_BxTxD + gate_BxTx3[..., SEMANTIC, None] * recalled_BxTxD


def report(
    gates: Gates, write_logit: Array, kept: Array, novelty: Array, retrieval, released: Array, cfg: RoutingConfig
) -> CRAMRoutes:
    """What each token did, from its gates, the write gate and what it retrieved (`cram.Retrieval`)."""
    first, second = jnp.moveaxis(jax.lax.top_k(jnp.log(gates.mean_BxTx3), 2)[0], -1, 0)
    route_margin = jnp.where(released, cfg.temperature * (first - second), jnp.inf)
    margin = jax.lax.stop_gradient(jnp.minimum(route_margin, jnp.abs(write_logit)))
    attended = gates.routed_BxT | gates.audited_BxT
    return CRAMRoutes(gates.choice_BxT, attended, retrieval.found, kept, margin, 1 - novelty, retrieval.quality)
