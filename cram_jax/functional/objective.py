"""The total loss (CRAM, Eq 8): the task, the price of attention, the reward of familiar recall, and consolidation.

L = L_task + lambda_E mean pi^(2) - lambda_S mean pi^(3) q-hat + gamma L_cons + mean (lambda_W write - use) + the losses
of the familiarity head and of the uncertainty read-out. Means are over (token, layer) pairs; those of L_cons and
of familiarity over the pairs that retrieved. In place of Eq 8's q_t, which a token that did not retrieve lacks,
stands q-hat.
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
    write_price: lambda_W, how many times the reads of an average event one must expect to be worth keeping.
    familiarity, prediction: weights of the two heads' own losses, which share no parameter with anything else.
    The price of attention lambda_E is a state, see `training/price.py`.
    """

    semantic_reward: float = 0.01
    distillation: float = 0.1
    write_price: float = 1.0
    familiarity: float = 0.1
    prediction: float = 0.1


def memory_loss(sums: CRAMSums, price: Scalar, cfg: ObjectiveConfig) -> tuple[Scalar, dict[str, Array]]:
    """All of Eq 8 but L_task.

    Args:
      sums: of all layers, each field with a leading L axis.
      price: lambda_E.

    Returns:
      The weighted sum, and its unweighted means by name.
    """
    total = jax.tree.map(jnp.sum, sums)
    mean = lambda sum_, count: sum_ / jnp.maximum(count, 1)
    parts = {
        "expected_episodic": mean(total.episodic, total.tokens),
        "expected_familiar": mean(total.familiar, total.tokens),
        "expected_write": mean(total.write, total.tokens),
        "distillation": mean(total.distillation, total.retrieved),
        "familiarity": mean(total.familiarity, total.retrieved),
        "prediction": mean(total.prediction, total.predicted),
    }
    loss = (
        price * parts["expected_episodic"]
        - cfg.semantic_reward * parts["expected_familiar"]
        + cfg.write_price * parts["expected_write"]
        - mean(total.use, total.tokens)
        + cfg.distillation * parts["distillation"]
        + cfg.familiarity * parts["familiarity"]
        + cfg.prediction * parts["prediction"]
    )
    return loss, parts
