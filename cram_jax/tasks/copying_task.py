"""Selective copying as a task: embeds events, reads symbols out of a network, and scores them at the questions."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Key, Scalar, Tokens
from cram_jax.functional.common import normal, rms_norm
from cram_jax.tasks import copying
from cram_jax.tasks.answers import answered, batch_key, looked_up, mean, over
from cram_jax.tasks.copying import CopyBatch, CopyConfig

_sample = jax.jit(copying.sample, static_argnums=1)


class CopyParams(NamedTuple):
    """Parameters of embedding and read-out. Numbers and previous answers have fixed codes, see `CopyTask.codes`.

    Attributes:
      kind_3xD: embedding of an event's kind: blank, symbol or question.
      symbol_AxD: embedding of the symbol that an event shows.
      norm_D: scale of the last norm.
      answer_DxA: read-out.
    """

    kind_3xD: Float[Array, "3 D"]
    symbol_AxD: Float[Array, "A D"]
    norm_D: Float[Array, "D"]
    answer_DxA: Float[Array, "D A"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class CopyTask:
    """data: settings of the sampler."""

    data: CopyConfig = CopyConfig()
    headline: ClassVar[str] = "accuracy"

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> CopyBatch:
        """Returns batch `index` of "train" or "held_out": `size` sequences of `length` events."""
        return _sample(batch_key(split, seed, index), dataclasses.replace(self.data, length=length, batch=size))

    def init(self, key: Key, D: int) -> CopyParams:
        """Draws parameters: embeddings of unit variance, and a read-out whose first logits are about 1."""
        kind, symbol, answer = jax.random.split(key, 3)
        A = self.data.symbols
        return CopyParams(
            jax.random.normal(kind, (3, D)),
            jax.random.normal(symbol, (A, D)),
            jnp.ones(D),
            normal(answer, (D, A), D),
        )

    def codes(self, D: int) -> tuple[Float[Array, "X D"], Float[Array, "A D"]]:
        """Returns fixed random vectors for numbers and for previous answers: (X D) and (A D).

        They are not learned, as SRCD's keys are not. A learned embedding of the previous answer could memorise which
        symbol follows it, and the layers would have nothing to learn.
        """
        number, previous = jax.random.split(jax.random.fold_in(jax.random.key(self.data.table_seed), 1))
        shown = self.data.rounds * self.data.phrase
        return jax.random.normal(number, (shown, D)), jax.random.normal(previous, (self.data.symbols, D))

    def embed(self, params: CopyParams, batch: CopyBatch) -> tuple[Tokens, None]:
        """Returns the events as vectors, and None because this task has no time gaps."""
        number_XxD, previous_AxD = self.codes(params.norm_D.size)
        kind_BxT = jnp.where(batch.answer_BxT >= 0, 2, jnp.where(batch.symbol_BxT >= 0, 1, 0))
        x_BxTxD = (
            params.kind_3xD[kind_BxT]
            + looked_up(params.symbol_AxD, batch.symbol_BxT)
            + looked_up(number_XxD, batch.number_BxT)
            + looked_up(previous_AxD, batch.previous_BxT)
        )
        return x_BxTxD, None

    def score(
        self, params: CopyParams, y_BxTxD: Tokens, batch: CopyBatch
    ) -> tuple[Scalar, dict[str, tuple[Scalar, Scalar]]]:
        """Returns the mean cross-entropy of answers in nats, and metrics as (sum, count)."""
        logits_BxTxA = rms_norm(params.norm_D, y_BxTxD) @ params.answer_DxA
        nats_BxT, right_BxT, asked_BxT = answered(logits_BxTxA, batch.answer_BxT)
        every_BxT = jnp.ones_like(asked_BxT)
        metrics = {
            "answer_nats": over(nats_BxT, asked_BxT),
            "accuracy": over(right_BxT, asked_BxT),
            "accuracy_recurring": over(right_BxT, asked_BxT & ~batch.is_new_BxT),
            "accuracy_new": over(right_BxT, batch.is_new_BxT),
            "realised_new_share": over(batch.is_new_BxT, every_BxT),
            "realised_query_share": over(asked_BxT, every_BxT),
        }
        return mean(metrics["answer_nats"]), metrics

    def groups(self, batch: CopyBatch) -> dict[str, Bool[Array, "B T"]]:
        """Returns marks of the questions (all, recurring, new), the symbols shown and the blanks."""
        query_BxT, symbol_BxT = batch.answer_BxT >= 0, batch.symbol_BxT >= 0
        return {
            "query": query_BxT,
            "query_recurring": query_BxT & ~batch.is_new_BxT,
            "query_new": batch.is_new_BxT,
            "symbol": symbol_BxT,
            "blank": ~(query_BxT | symbol_BxT),
        }

    def asked(self, batch: CopyBatch) -> Int[Array, "B T"]:
        """Returns the previous symbol, which names the pattern, at questions that are not new; -1 elsewhere."""
        return jnp.where((batch.answer_BxT >= 0) & ~batch.is_new_BxT, batch.previous_BxT, -1)
