"""SRCD as a task: embeds events, reads answers and values of the process out of a network, and scores both."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Gaps, Int, Key, Scalar, Tokens
from cram_jax.functional.common import normal, rms_norm
from cram_jax.tasks import srcd
from cram_jax.tasks.answers import answered, batch_key, looked_up, mean, over
from cram_jax.tasks.srcd import SRCDBatch, SRCDConfig

_sample = jax.jit(srcd.sample, static_argnums=1)


class SRCDParams(NamedTuple):
    """Parameters of embedding and read-out. Keys have fixed codes, see `SRCDTask.key_codes`.

    Attributes:
      kind_3xD: embedding of an event's kind.
      value_AxD: embedding of the answer that a binding gives.
      number_2xD: embedding of the previous value and of log(1 + gap).
      norm_D: scale of the last norm.
      answer_DxA: read-out of answers.
      dynamics_D, dynamics_bias: read-out of the process's change.
    """

    kind_3xD: Float[Array, "3 D"]
    value_AxD: Float[Array, "A D"]
    number_2xD: Float[Array, "2 D"]
    norm_D: Float[Array, "D"]
    answer_DxA: Float[Array, "D A"]
    dynamics_D: Float[Array, "D"]
    dynamics_bias: Float[Array, ""]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SRCDTask:
    """data: settings of the sampler.
    dynamics_weight: weight of the squared error of the process's value. The cross-entropy of answers has weight 1.
    """

    data: SRCDConfig = SRCDConfig()
    dynamics_weight: float = 1.0
    headline: ClassVar[str] = "retrieval_accuracy"

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> SRCDBatch:
        """Returns batch `index` of "train" or "held_out": `size` sequences of `length` events."""
        return _sample(batch_key(split, seed, index), dataclasses.replace(self.data, length=length, batch=size))

    def init(self, key: Key, D: int) -> SRCDParams:
        """Draws embeddings of about unit variance, and read-outs whose first outputs are about 1."""
        kind, value, number, answer, dynamics = jax.random.split(key, 5)
        return SRCDParams(
            jax.random.normal(kind, (3, D)),
            jax.random.normal(value, (self.data.answers, D)),
            normal(number, (2, D), 2),
            jnp.ones(D),
            normal(answer, (D, self.data.answers), D),
            normal(dynamics, (D,), D),
            jnp.zeros(()),
        )

    def key_codes(self, D: int) -> Float[Array, "K D"]:
        """Returns fixed random vectors for the keys. A learned embedding could memorise answers outside the layers.

        The read-out can still map codes to answers linearly; `experiments/lib/lesion.py` measures how much it does.
        """
        return jax.random.normal(jax.random.key(self.data.table_seed), (self.data.key_ids, D))

    def embed(self, params: SRCDParams, batch: SRCDBatch) -> tuple[Tokens, Gaps]:
        """Returns the events as vectors, and the time gaps. A missing key or value adds 0."""
        numbers_BxTx2 = jnp.stack([batch.previous_BxT, jnp.log1p(batch.gap_BxT)], axis=-1)
        x_BxTxD = (
            params.kind_3xD[batch.kind_BxT]
            + looked_up(self.key_codes(params.norm_D.size), batch.key_BxT)
            + looked_up(params.value_AxD, batch.value_BxT)
            + numbers_BxTx2 @ params.number_2xD
        )
        return x_BxTxD, batch.gap_BxT

    def read(
        self, params: SRCDParams, y_BxTxD: Tokens, batch: SRCDBatch
    ) -> tuple[Float[Array, "B T A"], Float[Array, "B T"]]:
        """Returns the logits of the answers, and the predicted values of the process: previous value plus change."""
        y_BxTxD = rms_norm(params.norm_D, y_BxTxD)
        change_BxT = y_BxTxD @ params.dynamics_D + params.dynamics_bias
        return y_BxTxD @ params.answer_DxA, batch.previous_BxT + change_BxT

    def score(
        self, params: SRCDParams, y_BxTxD: Tokens, batch: SRCDBatch
    ) -> tuple[Scalar, dict[str, tuple[Scalar, Scalar]]]:
        """Returns the loss, and metrics as (sum, count): accuracies by kind of query, and squared errors."""
        logits_BxTxA, value_BxT = self.read(params, y_BxTxD, batch)
        nats_BxT, right_BxT, asked_BxT = answered(logits_BxTxA, batch.answer_BxT)
        every_BxT = jnp.ones_like(asked_BxT)
        metrics = {
            "answer_nats": over(nats_BxT, asked_BxT),
            "retrieval_accuracy": over(right_BxT, asked_BxT),
            "retrieval_accuracy_recurring": over(right_BxT, asked_BxT & ~batch.is_new_BxT),
            "retrieval_accuracy_new": over(right_BxT, batch.is_new_BxT),
            "dynamics_mse": over((value_BxT - batch.target_BxT) ** 2, every_BxT),
            "dynamics_mse_persistence": over((batch.previous_BxT - batch.target_BxT) ** 2, every_BxT),
            "realised_new_share": over(batch.is_new_BxT, every_BxT),
            "realised_query_share": over(asked_BxT, every_BxT),
        }
        if self.data.changed:
            metrics["retrieval_accuracy_changed"] = over(right_BxT, self._about_changed(batch))
        return mean(metrics["answer_nats"]) + self.dynamics_weight * mean(metrics["dynamics_mse"]), metrics

    def groups(self, batch: SRCDBatch) -> dict[str, Bool[Array, "B T"]]:
        """Returns marks of the queries (all, recurring, new), the bindings (recurring, new) and the observations.

        If patterns changed, `query_changed` marks their queries.
        """
        query_BxT, binding_BxT = batch.kind_BxT == srcd.QUERY, batch.kind_BxT == srcd.BINDING
        changed = {"query_changed": self._about_changed(batch)} if self.data.changed else {}
        return {
            "query": query_BxT,
            "query_recurring": query_BxT & ~batch.is_new_BxT,
            "query_new": query_BxT & batch.is_new_BxT,
            "binding_recurring": binding_BxT & (batch.pattern_BxT >= 0),
            "binding_new": binding_BxT & (batch.pattern_BxT < 0),
            "observation": batch.kind_BxT == srcd.OBSERVATION,
        } | changed

    def _about_changed(self, batch: SRCDBatch) -> Bool[Array, "B T"]:
        asked_BxT = self.asked(batch)
        return (asked_BxT >= 0) & (asked_BxT < self.data.changed)

    def asked(self, batch: SRCDBatch) -> Int[Array, "B T"]:
        """Returns the recurring pattern that a query is about; -1 for all other events."""
        return jnp.where(batch.answer_BxT >= 0, batch.pattern_BxT, -1)
