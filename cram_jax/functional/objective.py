"""The total loss (CRAM, Eq 8): the task, the price of attention, the reward of familiar recall, and consolidation.

L = L_task + lambda_E mean pi^E - lambda_S mean pi^S q-hat + gamma L_cons + L_write + the losses of the familiarity
head and of the uncertainty read-out. A router in two stages also pays a part of lambda_E for each token that needs
memory. pi^E and pi^S are the probabilities of episodic and semantic memory, pi^(2) and
pi^(3) in the paper.

Means are over (token, layer) pairs; those of L_cons and of familiarity are over the pairs that retrieved. Eq 8 has q_t
in the place of q-hat, but a token that did not retrieve has no q_t.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float
from cram_jax.functional.checks import check_fields, check_not_negative


class MemorySums(NamedTuple):
    """Sums over the tokens of a layer, or with a leading L axis; they add across devices and micro-batches.

    Attributes:
      tokens: number of tokens.
      attended: tokens that attended, audits included.
      retrieved: those of them that found something: the buffer was not empty.
      episodic: sum of pi^E, the router's probability of episodic memory, which is priced.
      needed: sum of the probability that a token needs memory, in a router of two stages; else 0.
      semantic: sum of pi^S q-hat: use of semantic memory where it is good.
      write: sum of exp(logit) of the write gate.
      reads: 0, with the gradient of the attention that kept events received from routed queries (`episodic.py`).
      routed: tokens that chose episodic memory.
      distillation: sum of |f_sem - r^E|^2 / sigma^2 over tokens that retrieved (Eq 5, in units of sigma^2).
      familiarity: summed cross-entropy of q-hat against q over the same tokens.
      prediction, predicted: summed cross-entropy of the uncertainty read-out, and the number of its predictions.
    """

    tokens: Float[Array, "*layers"]
    attended: Float[Array, "*layers"]
    retrieved: Float[Array, "*layers"]
    needed: Float[Array, "*layers"]
    episodic: Float[Array, "*layers"]
    semantic: Float[Array, "*layers"]
    write: Float[Array, "*layers"]
    reads: Float[Array, "*layers"]
    routed: Float[Array, "*layers"]
    distillation: Float[Array, "*layers"]
    familiarity: Float[Array, "*layers"]
    prediction: Float[Array, "*layers"]
    predicted: Float[Array, "*layers"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """semantic_reward: lambda_S. distillation: gamma.
    need_price: this times lambda_E is the price of needing memory, so that only tokens that must ask do.
    write_price: lambda_W: an event is worth keeping if its expected reads are at least this many times those of an
        average event. So at most 1 / lambda_W of all events can be kept. It must be above 0, since without a price the
        write gate's loss has no minimum.
    familiarity, prediction: weights of the two heads' own losses, which share no parameter with anything else.
    The price of attention, lambda_E, is a state: see `training/controller.py`.
    """

    semantic_reward: float = 0.01
    need_price: float = 0.05
    distillation: float = 0.1
    write_price: float = 1.0
    familiarity: float = 0.1
    prediction: float = 0.1

    def __post_init__(self):
        check_fields(self)
        check_not_negative(self, "semantic_reward", "need_price", "distillation", "familiarity", "prediction")
        if not self.write_price > 0:
            raise ValueError(f"write_price must be above 0, got {self.write_price}; 0.01 keeps almost all events")


LEAST_READS = 0.01  # of an average event: where no token attends, an event needs few reads to be kept


def write_loss(sums: MemorySums, cfg: ObjectiveConfig) -> Float[Array, ""]:
    """Poisson regression of an event's reads: the mean over (event, layer) pairs of p exp(logit) - reads logit.

    p is lambda_W times the reads of an average event of the layer. So exp(logit) settles at the expected reads of an
    event divided by p, and an event is kept where that is above 1. The threshold is relative to the average because the
    average changes: right after the release many tokens attend to nothing in particular; later few do, and new bindings
    are read ten times the average. Unlike a sigmoid's, this gradient does not vanish where the gate is sure. With a
    sigmoid, a binding that was dropped once, and whose queries were then routed away, was never kept again.
    """
    average_L = jnp.maximum(sums.routed / jnp.maximum(sums.tokens, 1), LEAST_READS)
    each_L = cfg.write_price * jax.lax.stop_gradient(average_L) * sums.write - sums.reads
    return jnp.sum(each_L) / jnp.maximum(jnp.sum(sums.tokens), 1)


def memory_loss(
    sums: MemorySums, price: Float[Array, ""] | float, cfg: ObjectiveConfig
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """All of Eq 8 but L_task.

    Args:
      sums: of one layer, or of all layers with a leading L axis.
      price: lambda_E.

    Returns:
      The weighted sum, and the unweighted means by name.
    """
    total = jax.tree.map(jnp.sum, sums)
    mean = lambda sum_, count: sum_ / jnp.maximum(count, 1)
    parts = {
        "expected_episodic": mean(total.episodic, total.tokens),
        "expected_needed": mean(total.needed, total.tokens),
        "expected_semantic": mean(total.semantic, total.tokens),
        "write": write_loss(sums, cfg),
        "distillation": mean(total.distillation, total.retrieved),
        "familiarity": mean(total.familiarity, total.retrieved),
        "prediction": mean(total.prediction, total.predicted),
    }
    loss = (
        price * (parts["expected_episodic"] + cfg.need_price * parts["expected_needed"])
        - cfg.semantic_reward * parts["expected_semantic"]
        + parts["write"]
        + cfg.distillation * parts["distillation"]
        + cfg.familiarity * parts["familiarity"]
        + cfg.prediction * parts["prediction"]
    )
    return loss, parts
