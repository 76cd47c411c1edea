"""Deploys a trained model in fresh streams: parameters are fixed, there are no labels, and only memories change."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Int, Key
from cram_jax.tasks import streams
from cram_jax.tasks.srcd import BINDING, QUERY, SRCDBatch
from cram_jax.training.step import EVALUATION, Params, TrainState
from lib.readers import Reader, Reading

EXPOSURES = 64  # earlier queries of a pattern; the last bin holds this many and more
BINDINGS = 32  # bindings of a changed pattern since its change; likewise


class Progress(NamedTuple):
    """What streams carry from visit to visit.

    Attributes:
      carried: by the reader: the memories of the model's layers, or its recurrent state.
      asked_BxP: patterns that earlier visits asked for since their answer last changed.
      exposures_BxP: how often.
      bound_BxP: how often they were bound since then.
    """

    carried: Any
    asked_BxP: Bool[Array, "B P"]
    exposures_BxP: Int[Array, "B P"]
    bound_BxP: Int[Array, "B P"]


def begin(reader: Reader, params: Params, trained: tuple, size: int) -> Progress:
    """Fresh streams. trained: see `Reader.begin`."""
    none_BxP = jnp.zeros((size, reader.learner.task.data.srcd.patterns), jnp.int32)
    return Progress(reader.begin(params, trained, size), none_BxP > 0, none_BxP, none_BxP)


@partial(jax.jit, static_argnums=0)
def visit(
    reader: Reader, params: Params, progress: Progress, batch: SRCDBatch, index: Int[Array, ""] | int, key: Key
) -> tuple[Progress, dict[str, Array]]:
    """One visit of each stream: what was attended to and answered, as counts over all streams.

    Args:
      batch: visit `index` of all streams.
      key: for the reader's random choices.
    """
    task = reader.learner.task
    carried, done = reader.read(params, progress.carried, batch, key)
    answer_BxT = jnp.argmax(task.read(params.task, done.y_BxTxD, batch)[0], axis=-1)
    right_BxT = (answer_BxT == batch.answer_BxT) & (batch.kind_BxT == QUERY)

    changes_P = streams.changes(task.data, index)
    asked_BxP = streams.asked_before(task.data, progress.asked_BxP, jnp.full(len(right_BxT), index))
    exposures_BxP = jnp.where(asked_BxP, progress.exposures_BxP, 0)
    bound_BxP = jnp.where(changes_P, 0, progress.bound_BxP)
    out = _counts(batch, done, right_BxT, streams.first_queries(batch, asked_BxP))
    out |= _by_exposure(batch, done, exposures_BxP)
    if task.data.changed:
        about_BxT = _recurring(batch) & (batch.pattern_BxT < task.data.changed) & (index >= task.data.change_visit)
        out |= _by_binding(batch, right_BxT, about_BxT, bound_BxP)
    after = Progress(
        carried,
        streams.asked(batch, asked_BxP),
        exposures_BxP + _per_pattern(batch, _recurring(batch), exposures_BxP),
        bound_BxP + _per_pattern(batch, batch.kind_BxT == BINDING, bound_BxP),
    )
    return after, out


def _counts(batch: SRCDBatch, done: Reading, right_BxT, least_BxT) -> dict[str, Array]:
    query_BxT, new_BxT = batch.kind_BxT == QUERY, batch.is_new_BxT
    count = lambda marks: jnp.sum(marks, dtype=jnp.int32)
    each = {"attended": done.attended_BxT, "least": least_BxT, "right": right_BxT, "queries": query_BxT}
    return {f"{name}_by_stream": jnp.sum(marks, axis=1, dtype=jnp.int32) for name, marks in each.items()} | {
        "tokens": jnp.asarray(query_BxT.size),
        "queries": count(query_BxT),
        "new_queries": count(new_BxT),
        "least": count(least_BxT),
        "attended": count(done.attended_BxT),
        "attended_queries": count(done.attended_BxT & query_BxT),
        "to_consolidate": done.to_consolidate,
        "right": count(right_BxT),
        "right_new": count(right_BxT & new_BxT),
        "operations": done.operations,
    }


def _by_exposure(batch: SRCDBatch, done: Reading, exposures_BxP) -> dict[str, Array]:
    """Queries of patterns, and those that attended, by the number of queries in earlier visits."""
    k_BxT = jnp.take_along_axis(exposures_BxP, jnp.maximum(batch.pattern_BxT, 0), axis=1)
    recurring_BxT = _recurring(batch)
    return {
        "asked_by_exposure": _binned(k_BxT, recurring_BxT, EXPOSURES),
        "attended_by_exposure": _binned(k_BxT, recurring_BxT & done.attended_BxT, EXPOSURES),
    }


def _by_binding(batch: SRCDBatch, right_BxT, about_BxT, bound_BxP) -> dict[str, Array]:
    """Queries of changed patterns and right answers, by the bindings since the change, those of this visit included.

    A query asks for a binding of its own visit, so there was at least one.
    """
    P = bound_BxP.shape[1]
    binds_BxTxP = jax.nn.one_hot(jnp.where(batch.kind_BxT == BINDING, batch.pattern_BxT, -1), P, dtype=jnp.int32)
    so_far_BxTxP = bound_BxP[:, None] + jnp.cumsum(binds_BxTxP, axis=1)
    pattern_BxTx1 = jnp.maximum(batch.pattern_BxT, 0)[..., None]
    n_BxT = jnp.take_along_axis(so_far_BxTxP, pattern_BxTx1, axis=-1)[..., 0]
    return {
        "changed_queries": jnp.sum(about_BxT, dtype=jnp.int32),
        "changed_right": jnp.sum(about_BxT & right_BxT, dtype=jnp.int32),
        "changed_by_binding": _binned(n_BxT, about_BxT, BINDINGS),
        "changed_right_by_binding": _binned(n_BxT, about_BxT & right_BxT, BINDINGS),
    }


def _recurring(batch: SRCDBatch) -> Bool[Array, "B T"]:
    """Queries of patterns."""
    return (batch.kind_BxT == QUERY) & ~batch.is_new_BxT


def _binned(number_BxT, marks_BxT, last: int) -> Int[Array, "K"]:
    """Counts the marked events by their number; `last` and more are one bin."""
    return jnp.zeros(last + 1, jnp.int32).at[jnp.minimum(number_BxT, last)].add(marks_BxT.astype(jnp.int32))


def _per_pattern(batch: SRCDBatch, marks_BxT, like_BxP) -> Int[Array, "B P"]:
    """How many of the marked events are about each pattern; those of one-off bindings do not count."""
    some_BxT = (marks_BxT & (batch.pattern_BxT >= 0)).astype(jnp.int32)
    add = lambda zero_P, at_T, some_T: zero_P.at[at_T].add(some_T)
    return jax.vmap(add)(jnp.zeros_like(like_BxP), jnp.maximum(batch.pattern_BxT, 0), some_BxT)


def deploy(
    reader: Reader,
    state: TrainState,
    *,
    size: int,
    visits: int,
    length: int,
    seed: int,
    show: Callable[[int, list[dict]], None],
    before: Callable[[int, Progress], None] = lambda index, progress: None,
) -> dict[str, np.ndarray]:
    """Deploys in `size` fresh streams; returns counts by name, each with an axis of visits in front.

    Args:
      state: at the end of training.
      show: called after each visit with the number of visits done, and the counts of each.
      before: called before each visit with its number, and with what streams carry into it.
    """
    progress, all_counts = begin(reader, state.params, state.consolidation, size), []
    for index in range(visits):
        before(index, progress)
        batch = reader.learner.task.batch("held_out", seed, index, length, size)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), EVALUATION), index)
        progress, counts = visit(reader, state.params, progress, batch, index, key)
        all_counts.append(jax.device_get(counts))
        show(index + 1, all_counts)
    return {name: np.stack([counts[name] for counts in all_counts]) for name in all_counts[0]}


def blocks(counts: dict[str, np.ndarray], width: int = 10) -> list[dict]:
    """Returns what a person reads of each block of visits: shares of tokens and of queries.

    A share of nothing is NaN.
    """
    rows = []
    share = lambda part, whole: part / whole if whole else float("nan")
    for first in range(0, len(counts["tokens"]), width):
        total = {
            name: float(values[first : first + width].sum()) for name, values in counts.items() if values.ndim == 1
        }
        recurring = total["queries"] - total["new_queries"]
        row = {
            "first_visit": first,
            "attention_tokens": total["attended"] / total["tokens"],
            "attention_queries": share(total["attended_queries"], total["queries"]),
            "consolidation_tokens": total["to_consolidate"] / total["tokens"],
            "least": total["least"] / total["tokens"],
            "over_least": share(total["attended"], total["least"]),
            "queries": total["queries"] / total["tokens"],
            "new": total["new_queries"] / total["tokens"],
            "retrieval_accuracy": share(total["right"], total["queries"]),
            "retrieval_accuracy_new": share(total["right_new"], total["new_queries"]),
            "retrieval_accuracy_recurring": share(total["right"] - total["right_new"], recurring),
            "operations_per_token": total["operations"] / total["tokens"],
        }
        if "changed_queries" in total:
            row["retrieval_accuracy_changed"] = share(total["changed_right"], total["changed_queries"])
        rows.append(row)
    return rows
