"""Deploys a trained model in fresh streams: parameters are fixed, there are no labels, and only memories change."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Int
from cram_jax.tasks import streams
from cram_jax.tasks.srcd import QUERY, SRCDBatch
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training.step import Learner, Params

EXPOSURES = 32  # earlier queries of a pattern; the last bin holds this many and more


class Progress(NamedTuple):
    """What streams carry from visit to visit.

    Attributes:
      states: of the model's layers, with an axis of streams.
      asked_BxP: patterns that earlier visits asked for since their answer last changed.
      exposures_BxP: how often.
    """

    states: tuple
    asked_BxP: Bool[Array, "B P"]
    exposures_BxP: Int[Array, "B P"]


def begin(learner: Learner, trained: tuple, size: int) -> Progress:
    """Fresh streams, whose router decides.

    Args:
      trained: the consolidation states at the end of training: what they hold of all streams together is kept.
    """
    P, states = learner.task.data.srcd.patterns, learner.model.for_streams(trained, size)
    return Progress(states, jnp.zeros((size, P), bool), jnp.zeros((size, P), jnp.int32))


@partial(jax.jit, static_argnums=(0, 3))
def visit(
    learner: Learner,
    params: Params,
    progress: Progress,
    consolidate: bool,
    batch: SRCDBatch,
    index: Int[Array, ""] | int,
) -> tuple[Progress, dict[str, Array]]:
    """One visit of each stream: what was attended to and answered, as counts over all streams.

    Args:
      consolidate: False keeps the states as they are, to compare with.
      batch: visit `index` of all streams.
    """
    task: StreamsTask = learner.task
    size, length = batch.kind_BxT.shape
    x_BxTxD, gap_BxT = task.embed(params.task, batch)
    y_BxTxD, aux = learner.model.apply(params.model, progress.states, x_BxTxD, gap_BxT=gap_BxT)
    executed = learner.model.operations(aux, (size, length), False)
    routes = [one for _, one in learner.model.routes(aux)]
    attended_BxT = jnp.any(jnp.stack([one.attended_BxT for one in routes]), axis=0)

    asked_BxP = streams.asked_before(task.data, progress.asked_BxP, jnp.full(size, index))
    exposures_BxP = jnp.where(asked_BxP, progress.exposures_BxP, 0)
    query_BxT, new_BxT = batch.kind_BxT == QUERY, batch.is_new_BxT
    right_BxT = (jnp.argmax(task.read(params.task, y_BxTxD, batch)[0], axis=-1) == batch.answer_BxT) & query_BxT
    least_BxT = streams.needs_attention(batch, asked_BxP)
    count = lambda marks: jnp.sum(marks, dtype=jnp.int32)
    out = {
        "tokens": jnp.asarray(size * length),
        "queries": count(query_BxT),
        "new_queries": count(new_BxT),
        "least": count(least_BxT),
        "attended": count(attended_BxT),
        "right": count(right_BxT),
        "right_new": count(right_BxT & new_BxT),
        "operations": executed.total,
    }
    pattern_BxT = jnp.maximum(batch.pattern_BxT, 0)
    recurring_BxT = query_BxT & ~new_BxT
    k_BxT = jnp.minimum(jnp.take_along_axis(exposures_BxP, pattern_BxT, axis=1), EXPOSURES)
    binned = lambda marks: jnp.zeros(EXPOSURES + 1, jnp.int32).at[k_BxT].add(marks.astype(jnp.int32))
    out |= {"asked_by_exposure": binned(recurring_BxT), "attended_by_exposure": binned(recurring_BxT & attended_BxT)}
    seen_BxP = jax.vmap(lambda k, at, marks: k.at[at].add(marks))(
        exposures_BxP, pattern_BxT, recurring_BxT.astype(jnp.int32)
    )
    states = learner.model.update(progress.states, aux) if consolidate else progress.states
    return Progress(states, streams.asked(batch, asked_BxP), seen_BxP), out


def deploy(
    learner: Learner,
    params: Params,
    trained: tuple,
    *,
    size: int,
    visits: int,
    length: int,
    seed: int,
    consolidate: bool,
    show: Callable[[int, list[dict]], None],
) -> dict[str, np.ndarray]:
    """Deploys in `size` fresh streams; returns counts by name, each with an axis of visits in front.

    Args:
      trained, consolidate: see `begin` and `visit`.
      show: called after each visit with the number of visits done, and the counts of each.
    """
    progress, all_counts = begin(learner, trained, size), []
    for index in range(visits):
        batch = learner.task.batch("held_out", seed, index, length, size)
        progress, counts = visit(learner, params, progress, consolidate, batch, index)
        all_counts.append(jax.device_get(counts))
        show(index + 1, all_counts)
    return {name: np.stack([counts[name] for counts in all_counts]) for name in all_counts[0]}


def blocks(counts: dict[str, np.ndarray], width: int = 10) -> list[dict]:
    """Returns what a person reads of each block of visits: shares of tokens and of queries."""
    rows = []
    for first in range(0, len(counts["tokens"]), width):
        total = {
            name: float(values[first : first + width].sum()) for name, values in counts.items() if values.ndim == 1
        }
        recurring = total["queries"] - total["new_queries"]
        rows.append(
            {
                "first_visit": first,
                "attention_tokens": total["attended"] / total["tokens"],
                "least": total["least"] / total["tokens"],
                "over_least": total["attended"] / total["least"],
                "queries": total["queries"] / total["tokens"],
                "new": total["new_queries"] / total["tokens"],
                "retrieval_accuracy": total["right"] / total["queries"],
                "retrieval_accuracy_new": total["right_new"] / total["new_queries"],
                "retrieval_accuracy_recurring": (total["right"] - total["right_new"]) / recurring,
                "operations_per_token": total["operations"] / total["tokens"],
            }
        )
    return rows
