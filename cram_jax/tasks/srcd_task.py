"""SRCD as a task: embeds events, reads answers and the process's value out of a network, and scores both."""

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
    """Attributes: embeddings of an event's parts (keys have fixed codes), the last norm, and the two read-outs."""

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
    """data: what is sampled. dynamics_weight: of the squared error beside the cross-entropy of answers."""

    data: SRCDConfig = SRCDConfig()
    dynamics_weight: float = 1.0
    headline: ClassVar[str] = "retrieval_accuracy"

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> SRCDBatch:
        """Batch `index` of "train" or "held_out": `size` sequences of `length` events."""
        return _sample(batch_key(split, seed, index), dataclasses.replace(self.data, length=length, batch=size))

    def init(self, key: Key, D: int) -> SRCDParams:
        """Embeddings whose sum has about unit variance; read-outs that start small."""
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
        """Keys as random vectors that nobody learns: an embedding would be a memory of its own, outside the layers.

        What is left of one is the read-out, a linear map of codes to answers; `experiments/lesion.py` measures it.
        """
        return jax.random.normal(jax.random.key(self.data.table_seed), (self.data.key_ids, D))

    def embed(self, params: SRCDParams, batch: SRCDBatch) -> tuple[Tokens, Gaps]:
        """(events as vectors, time gaps). An event without a key or value adds nothing for it."""
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
        """(logits of the answer, predicted value of the process, as a change of the previous one)."""
        y_BxTxD = rms_norm(params.norm_D, y_BxTxD)
        change_BxT = y_BxTxD @ params.dynamics_D + params.dynamics_bias
        return y_BxTxD @ params.answer_DxA, batch.previous_BxT + change_BxT

    def score(
        self, params: SRCDParams, y_BxTxD: Tokens, batch: SRCDBatch
    ) -> tuple[Scalar, dict[str, tuple[Scalar, Scalar]]]:
        """(loss, metrics as (sum, count)): retrieval of all, recurring and new bindings, and squared errors."""
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
        """Queries (all, of recurring and of new bindings), bindings (recurring, new), mere observations; where patterns
        changed, queries of those."""
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
        """The recurring pattern a query is about; -1 for other events."""
        return jnp.where(batch.answer_BxT >= 0, batch.pattern_BxT, -1)
