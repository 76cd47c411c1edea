"""Which streams a batch holds: rows of training at all ages, and held-out streams that training never sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.tasks import streams
from cram_jax.tasks.srcd import QUERY, SRCDConfig
from cram_jax.tasks.streams import FIRST_HELD_OUT, StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training.task import Task

CFG = StreamsConfig(
    SRCDConfig(length=64, patterns=20, answers=8), universe=200, lifetimes=(2, 3, 5), change_visit=3, change_share=0.25
)


def test_schedule_gives_each_row_one_fresh_stream_after_the_other():
    # Given 10 rows, as many as a round through the lifetimes has steps
    rows, steps = 10, 40
    plan = jax.jit(lambda step: streams.schedule(CFG, jnp.arange(rows), step))
    stream_TxB, visit_TxB = map(np.asarray, jax.vmap(plan)(jnp.arange(steps)))

    owners = {}
    for row in range(rows):
        # When one row's streams are read in order
        visits_of = {}  # dictionaries keep the order of insertion
        for stream, visit in zip(stream_TxB[:, row].tolist(), visit_TxB[:, row].tolist(), strict=True):
            visits_of.setdefault(stream, []).append(visit)
        # Then each is nobody else's, and is visited from its first visit on; a stream that came back would break this
        for stream, visits in visits_of.items():
            assert owners.setdefault(stream, row) == row and visits == list(range(len(visits)))
        # and they live as long as the list says, from some place on; step 0 cuts the first life, step 40 the last
        lived = [len(visits) for visits in visits_of.values()]
        rounds = [(CFG.lifetimes * steps)[i : i + len(lived)] for i in range(len(CFG.lifetimes))]
        (life,) = [life for life in rounds if list(life[1:-1]) == lived[1:-1]]
        assert lived[0] <= life[0] and lived[-1] <= life[-1]
    assert stream_TxB.max() < FIRST_HELD_OUT

    # and, once the first streams have ended, rows are of all ages at each step
    for visit_B in visit_TxB[max(CFG.lifetimes) :]:
        assert sorted(visit_B) == sorted(v for life in CFG.lifetimes for v in range(life))
    # Steps far ahead need no walk: ten thousand rounds on, the visits are the same, of other streams
    far_stream_B, far_visit_B = plan(jnp.asarray(30 + 10 * 10**4))
    np.testing.assert_array_equal(far_visit_B, visit_TxB[30])
    np.testing.assert_array_equal(far_stream_B - stream_TxB[30], 3 * 10**4)
    # and a row's stream does not depend on how many rows there are
    some_B, _ = streams.schedule(CFG, jnp.arange(4, 6), 7)
    np.testing.assert_array_equal(some_B, stream_TxB[7, 4:6])


def test_training_follows_the_schedule_and_held_out_streams_live_on_their_own():
    task, size = StreamsTask(CFG), 16
    assert isinstance(task, Task)
    visits = jax.jit(streams.visits, static_argnums=0)
    # Given step 7 of training and visit 3 of held-out streams
    for split, index, (stream_B, visit_B) in (
        ("train", 7, streams.schedule(CFG, jnp.arange(size), 7)),
        ("held_out", 3, (FIRST_HELD_OUT + jnp.arange(size), jnp.full(size, 3))),
    ):
        batch = task.batch(split, 1, index, CFG.srcd.length, size)
        jax.tree.map(np.testing.assert_array_equal, batch, visits(CFG, 1, stream_B, visit_B))
        np.testing.assert_array_equal(task.fresh(split, index, size), visit_B == 0)
    assert 0 < np.sum(task.fresh("train", 7, size)) < size
    assert np.all(task.fresh("train", 0, size)) and np.all(task.fresh("held_out", 0, size))
    assert task.batch("held_out", 1, 0, 128, 2).key_BxT.shape == (2, 128)

    # Queries are about patterns of their stream; those that change have a group of their own, at any visit
    asked_BxT = np.asarray(task.asked(batch))
    np.testing.assert_array_equal(asked_BxT, np.where(batch.kind_BxT == QUERY, batch.pattern_BxT, -1))
    np.testing.assert_array_equal(task.groups(batch)["query_changed"], (asked_BxT >= 0) & (asked_BxT < 5))
    assert np.any((asked_BxT >= 0) & (asked_BxT < 5)) and np.any(asked_BxT >= 5)
    # and each id of the universe has a code of its own
    assert len(np.unique(np.asarray(task.srcd.key_codes(4)), axis=0)) == CFG.universe
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out', got 'test'"):
        task.batch("test", 0, 0, 8, 1)


def test_a_perfect_read_out_is_scored_by_kind_of_query():
    # Given a network whose output is the answer's code at queries of patterns, and another code at those of one-offs
    task = StreamsTask(CFG)
    batch = task.batch("held_out", 1, 3, CFG.srcd.length, 16)
    params = task.init(jax.random.key(0), 8)._replace(answer_DxA=jnp.eye(8))
    y_BxTxD = jax.nn.one_hot(jnp.where(batch.is_new_BxT, (batch.answer_BxT + 1) % 8, batch.answer_BxT), 8)
    # When it is scored, then it is right at the former and wrong at the latter
    _, metrics = task.score(params, y_BxTxD, batch)
    share = {name: float(right / count) for name, (right, count) in metrics.items()}
    assert share["retrieval_accuracy_recurring"] == share["retrieval_accuracy_changed"] == 1
    assert share["retrieval_accuracy_new"] == 0 and metrics["retrieval_accuracy_new"][1] > 0
