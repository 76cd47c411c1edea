"""Helpers for tasks in which some events ask for one of A answers: random keys, table look-ups and scores."""

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Key, Scalar

SPLITS = {"train": 0, "held_out": 1}


def batch_key(split: str, seed: int, index: int) -> Key:
    """Returns the random key of batch `index` of a split, "train" or "held_out"."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), SPLITS[split]), index)


def looked_up(table_AxD: Float[Array, "A D"], index_BxT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Returns the table's rows at these indices, and a row of zeros where the index is negative."""
    return jnp.where(index_BxT[..., None] >= 0, table_AxD[jnp.maximum(index_BxT, 0)], 0)


def answered(
    logits_BxTxA: Float[Array, "B T A"], answer_BxT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Scores logits against answers; a negative answer means that the event asks for none.

    Returns:
      (cross-entropy in nats, whether the most likely answer is right, whether an answer is asked for). Where none is
      asked for, the first two mean nothing.
    """
    answer_BxTx1 = jnp.maximum(answer_BxT, 0)[..., None]
    nats_BxT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BxTxA), answer_BxTx1, axis=-1)[..., 0]
    return nats_BxT, jnp.argmax(logits_BxTxA, axis=-1) == answer_BxT, answer_BxT >= 0


def over(what_BxT: Array, where_BxT: Bool[Array, "B T"]) -> tuple[Scalar, Scalar]:
    """Returns (sum, count) over the marked places. Add the pairs of several batches to get their common mean."""
    return (
        jnp.sum(what_BxT, where=where_BxT, dtype=jnp.float32),
        jnp.sum(where_BxT, dtype=jnp.float32),
    )


def mean(pair: tuple[Scalar, Scalar]) -> Scalar:
    """Returns the mean of a (sum, count) pair; 0 if the count is 0."""
    return pair[0] / jnp.maximum(pair[1], 1)
