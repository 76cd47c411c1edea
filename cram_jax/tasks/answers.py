"""What tasks share whose events ask for an answer, one of A: keys of batches, look-ups that may be empty, scores."""

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Int, Key, Scalar

SPLITS = {"train": 0, "held_out": 1}


def batch_key(split: str, seed: int, index: int) -> Key:
    """Of batch `index` of "train" or "held_out", for tasks that sample."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), SPLITS[split]), index)


def looked_up(table_AxD: Float[Array, "A D"], index_BxT: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """Rows of a table; 0 where the index is below 0."""
    return jnp.where(index_BxT[..., None] >= 0, table_AxD[jnp.maximum(index_BxT, 0)], 0)


def answered(
    logits_BxTxA: Float[Array, "B T A"], answer_BxT: Int[Array, "B T"]
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"], Bool[Array, "B T"]]:
    """(cross-entropy in nats, whether the likeliest is right, whether an answer is asked for: it is 0 or above)."""
    answer_BxTx1 = jnp.maximum(answer_BxT, 0)[..., None]
    nats_BxT = -jnp.take_along_axis(jax.nn.log_softmax(logits_BxTxA), answer_BxTx1, axis=-1)[..., 0]
    return nats_BxT, jnp.argmax(logits_BxTxA, axis=-1) == answer_BxT, answer_BxT >= 0


def over(what_BxT: Array, where_BxT: Bool[Array, "B T"]) -> tuple[Scalar, Scalar]:
    """(sum, count): a mean over places, of batches that are added up."""
    return (
        jnp.sum(what_BxT, where=where_BxT, dtype=jnp.float32),
        jnp.sum(where_BxT, dtype=jnp.float32),
    )


def mean(pair: tuple[Scalar, Scalar]) -> Scalar:
    """0 over no places."""
    return pair[0] / jnp.maximum(pair[1], 1)
