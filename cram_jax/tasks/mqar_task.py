"""MQAR as a task: embeds tokens, reads values out with the same embedding, and scores them at the queries."""

import dataclasses
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Float, Int, Key, Scalar, Tokens
from cram_jax.functional.common import normal, rms_norm
from cram_jax.tasks import mqar
from cram_jax.tasks.answers import mean, over
from cram_jax.tasks.mqar import MQARBatch, MQARConfig

DATA = 0  # folded into a run's key, before the number of the split; 2 and 3 are taken (training/step.py)
SPLITS = {"train": 0, "held_out": 1, "validation": 2}
_sample = jax.jit(mqar.sample, static_argnums=1)


@partial(jax.jit, static_argnums=2)
def _examples(key: Key, example_B: Int[Array, "B"], cfg: MQARConfig) -> MQARBatch:
    """Sequences of the fixed training set, by their numbers."""
    return jax.vmap(lambda i: mqar.sequence(jax.random.fold_in(key, i), cfg))(example_B)


class MQARParams(NamedTuple):
    """Attributes: token_AxD, embedding of the tokens and also the read-out; norm_D, scale of the last norm."""

    token_AxD: Float[Array, "A D"]
    norm_D: Float[Array, "D"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MQARTask:
    """data: settings of the sampler.
    examples: size of the training set, in sequences; each is seen once an epoch (the Palimpsa recipe: 100,000). At 0
        every training batch is new. Held-out and validation batches are always new.
    """

    data: MQARConfig = MQARConfig()
    examples: int = 0
    headline: ClassVar[str] = "accuracy"

    def __post_init__(self):
        if self.examples < 0:
            raise ValueError(f"examples must be at least 0 (0: fresh sequences in every batch), got {self.examples}")

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> MQARBatch:
        """Returns batch `index` of "train", "held_out" (for reporting) or "validation" (for choosing settings).

        Returns:
          `size` sequences of `length` tokens. With a fixed training set, a batch may hold the end of one epoch and the
          beginning of the next.
        """
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), DATA), SPLITS[split])
        data = dataclasses.replace(self.data, length=length, batch=size)
        if split == "train" and self.examples:
            return _examples(key, self._visited(seed, index * size, size), data)
        return _sample(jax.random.fold_in(key, index), data)

    def _visited(self, seed: int, first: int, size: int) -> Int[np.ndarray, "B"]:
        """Numbers of the next `size` training examples from place `first` on. Each epoch has its own random order."""
        epoch_B, place_B = np.divmod(first + np.arange(size), self.examples)
        example_B = np.empty(size, np.int32)
        for epoch in np.unique(epoch_B):
            among_B = epoch_B == epoch
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, int(epoch)])))
            example_B[among_B] = random.permutation(self.examples)[place_B[among_B]]
        return example_B

    def init(self, key: Key, D: int) -> MQARParams:
        """Draws an embedding of standard deviation D^-1/2 (the Palimpsa recipe). First logits have unit variance."""
        return MQARParams(normal(key, (self.data.vocabulary, D), D), jnp.ones(D))

    def embed(self, params: MQARParams, batch: MQARBatch) -> tuple[Tokens, None]:
        """Returns the tokens as vectors, and None because this task has no time gaps."""
        return params.token_AxD[batch.token_BxT], None

    def score(
        self, params: MQARParams, y_BxTxD: Tokens, batch: MQARBatch
    ) -> tuple[Scalar, dict[str, tuple[Scalar, Scalar]]]:
        """Returns the mean cross-entropy at queries in nats, and metrics as (sum, count)."""
        # At most a quarter of the tokens are queries, so only that many rows are multiplied with the whole vocabulary.
        C = y_BxTxD.shape[1] // 4
        place_BxC = jnp.argsort(batch.target_BxT < 0, axis=1)[:, :C]
        target_BxC = jnp.take_along_axis(batch.target_BxT, place_BxC, axis=1)
        y_BxCxD = jnp.take_along_axis(y_BxTxD, place_BxC[..., None], axis=1)

        logits_BxCxA = rms_norm(params.norm_D, y_BxCxD) @ params.token_AxD.T
        asked_BxC = target_BxC >= 0
        at_target_BxCx1 = jnp.take_along_axis(logits_BxCxA, jnp.maximum(target_BxC, 0)[..., None], axis=-1)
        nats_BxC = jax.nn.logsumexp(logits_BxCxA, axis=-1) - at_target_BxCx1[..., 0]
        right_BxC = jnp.argmax(logits_BxCxA, axis=-1) == target_BxC
        metrics = {"accuracy": over(right_BxC, asked_BxC), "answer_nats": over(nats_BxC, asked_BxC)}
        return mean(metrics["answer_nats"]), metrics

    def groups(self, batch: MQARBatch) -> dict[str, Bool[Array, "B T"]]:
        """Returns marks of the queries, the keys and values of pairs, and the fillers. Each token is of one kind."""
        query_BxT, token_BxT = batch.target_BxT >= 0, batch.token_BxT
        filler_BxT, value_BxT = token_BxT == mqar.FILLER, token_BxT >= self.data.vocabulary // 2
        return {
            "query": query_BxT,
            "pair_key": ~(query_BxT | value_BxT | filler_BxT),
            "pair_value": value_BxT,
            "filler": filler_BxT,
        }

    def asked(self, batch: MQARBatch) -> Int[Array, "B T"]:
        """Returns -1 everywhere: no pair recurs, because each sequence draws its own."""
        return jnp.full(batch.token_BxT.shape, -1)
