"""The total loss (CRAM, Eq 8): the task, the price of attention, the reward of familiar recall, and consolidation.

L = L_task + lambda_E mean pi^(2) - lambda_S mean pi^(3) q-hat + gamma L_cons + L_write + the losses of the
familiarity head and of the uncertainty read-out. Means are over (token, layer) pairs, those of L_cons and of
familiarity over the pairs that retrieved. In place of Eq 8's q_t, which a token that did not retrieve lacks, q-hat.
"""

import dataclasses

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Scalar
from cram_jax.functional.cram import CRAMSums


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """semantic_reward: lambda_S. distillation: gamma.
    write_price: lambda_W, how many times the reads of an average event one must expect to be worth keeping; no more
        than 1 / lambda_W of all events can. Above 0: without a price the write gate's loss has no minimum.
    familiarity, prediction: weights of the two heads' own losses, which share no parameter with anything else.
    The price of attention lambda_E is a state, see `training/price.py`.
    """

    semantic_reward: float = 0.01
    distillation: float = 0.1
    write_price: float = 1.0
    familiarity: float = 0.1
    prediction: float = 0.1

    def __post_init__(self):
        if not self.write_price > 0:
            raise ValueError(f"write_price must be above 0, got {self.write_price}; 0.01 keeps nearly all events")


FEWEST = 0.01  # reads of an average event, at least: a layer in which nobody attends has nothing to keep either


def write_loss(sums: CRAMSums, cfg: ObjectiveConfig) -> Scalar:
    """Poisson regression of the use of events, mean over (event, layer) pairs of p exp(logit) - use logit.

    p is lambda_W times the reads of an average event of that layer, so exp(logit) settles at the use expected of an
    event over p, and is kept above 1. Relative to the average, because right after the release many attend, to nothing
    in particular, and every event is read a little; later few do, and new bindings are read ten times the average.
    Unlike that of a sigmoid, the gradient does not vanish where the gate is sure: a binding once dropped, whose queries
    are then routed away, was never kept again.
    """
    average_L = jnp.maximum(sums.routed / jnp.maximum(sums.tokens, 1), FEWEST)
    each_L = cfg.write_price * jax.lax.stop_gradient(average_L) * sums.write - sums.use
    return jnp.sum(each_L) / jnp.maximum(jnp.sum(sums.tokens), 1)


def memory_loss(sums: CRAMSums, price: Scalar, cfg: ObjectiveConfig) -> tuple[Scalar, dict[str, Array]]:
    """All of Eq 8 but L_task.

    Args:
      sums: of all layers, each field with a leading L axis; or those of one.
      price: lambda_E.

    Returns:
      The weighted sum, and its unweighted means by name.
    """
    total = jax.tree.map(jnp.sum, sums)
    mean = lambda sum_, count: sum_ / jnp.maximum(count, 1)
    parts = {
        "expected_episodic": mean(total.episodic, total.tokens),
        "expected_familiar": mean(total.familiar, total.tokens),
        "write": write_loss(sums, cfg),
        "distillation": mean(total.distillation, total.retrieved),
        "familiarity": mean(total.familiarity, total.retrieved),
        "prediction": mean(total.prediction, total.predicted),
    }
    loss = (
        price * parts["expected_episodic"]
        - cfg.semantic_reward * parts["expected_familiar"]
        + parts["write"]
        + cfg.distillation * parts["distillation"]
        + cfg.familiarity * parts["familiarity"]
        + cfg.prediction * parts["prediction"]
    )
    return loss, parts
