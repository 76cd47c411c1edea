"""What is read and counted in fresh streams, against counts by hand; and visits that are joined into one sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import deployment, readers, stream_runs
from stream_cases import ENTRIES, LENGTH, SIZE, configured, visited

from cram_jax.tasks.srcd import BINDING, QUERY
from cram_jax.training import step as training


class Knowing(readers.Reader):
    """Answers rightly, but in visit 3."""

    def begin(self, params, trained, size):
        return jnp.zeros((), jnp.int32)

    def read(self, params, carried, batch, key):
        answer = jnp.where(carried == 3, batch.answer_BxT + 1, batch.answer_BxT) % self.learner.task.data.srcd.answers
        read_out = params.task.answer_DxA.T  # rows are the directions of the answers
        y_BxTxD = (read_out / jnp.linalg.norm(read_out, axis=1, keepdims=True))[answer]
        marks = jnp.zeros(answer.shape, bool)
        return carried + 1, readers.Reading(y_BxTxD, marks, jnp.zeros(()), jnp.zeros(()))


def test_joined_visits_are_those_that_others_read():
    # Given trainings with 8 rows of one visit, and with 2 sequences of 4 visits
    config = configured("mamba2, carried")
    config.data.lifetimes = (8,)
    learner, _ = stream_runs.build(config)
    joined, single = learner.task, stream_runs.deployed_learner(config, ENTRIES["mamba2, carried"]).task
    # When both go through as many steps
    steps, size = 8, 2
    singly = [single.batch("train", 0, i, LENGTH, 8) for i in range(steps)]
    whole = [joined.batch("train", 0, i, 4 * LENGTH, size) for i in range(steps)]
    visits = lambda batches: {np.asarray(one).tobytes() for b in batches for one in b.target_BxT.reshape(-1, LENGTH)}
    # Then they read the same visits, but for streams that live on to the end of a sequence
    common = len(visits(singly) & visits(whole))
    assert common >= 0.6 * len(visits(singly)) and len(visits(whole)) == steps * 8
    # and a sequence is consecutive visits of one stream, event by event
    held_out = joined.batch("held_out", 0, 1, 4 * LENGTH, size)
    for i in range(4):
        one = single.batch("held_out", 0, 4 + i, LENGTH, size)
        part = jax.tree.map(lambda a, i=i: a[:, i * LENGTH : (i + 1) * LENGTH], held_out)
        jax.tree.map(np.testing.assert_array_equal, part, one)
    with pytest.raises(ValueError, match="length must be a multiple of a visit's, 32, got 129"):
        joined.batch("train", 0, 0, 4 * LENGTH + 1, size)
    with pytest.raises(ValueError, match="split must be 'train' or 'held_out', got 'test'"):
        joined.batch("test", 0, 0, LENGTH, size)


def test_sequences_grow_and_steps_keep_their_tokens():
    config = configured("mamba2, carried")
    config.joined = (1, 2, 4)
    _, settings = stream_runs.build(config)
    shapes = [settings.shape(step) for step in range(20)]
    assert shapes == 6 * [(LENGTH, 4)] + 6 * [(2 * LENGTH, 2)] + 8 * [(4 * LENGTH, 1)]


def test_what_is_carried_may_train_longer_and_nothing_else_does():
    for label, steps in (("mamba2, carried", 60), ("transformer", 20)):
        config = configured(label)
        config.longer = 3
        learner, settings = stream_runs.build(config)
        assert settings.steps == learner.optimizer.steps == steps
    config.carried, config.longer = True, 0
    with pytest.raises(ValueError, match="longer must be at least 1, got 0"):
        stream_runs.build(config)


def test_the_least_attention_is_counted_by_hand():
    learner, _ = stream_runs.build(configured("memory learns"))
    params, reader = training.init(learner, 0, 0, 2).params, Knowing(learner)
    progress, asked = deployment.begin(reader, params, (), 2), [set(), set()]
    for index in range(4):
        batch = learner.task.batch("held_out", 0, index, LENGTH, 2)
        progress, counts = visited(reader, params, progress, index)
        least, seen = 0, [set(), set()]
        for row in range(2):
            for pattern, new, answer in zip(
                *(np.asarray(a[row]) for a in (batch.pattern_BxT, batch.is_new_BxT, batch.answer_BxT)), strict=True
            ):
                if answer >= 0:
                    least += bool(new) or int(pattern) not in asked[row]
                    seen[row] |= set() if new else {int(pattern)}
        assert int(counts["least"]) == least
        asked = [a | b for a, b in zip(asked, seen, strict=True)]


def test_answers_about_changed_patterns_are_counted_by_their_bindings():
    # Given streams whose first three patterns change at visit 2, and a reader that answers everything rightly
    config = configured("memory learns")
    config.data.change_visit, config.data.change_share = 2, 0.5
    learner, _ = stream_runs.build(config)
    state = training.init(learner, 0, 0, SIZE)
    progress = deployment.begin(Knowing(learner), state.params, (), SIZE)
    bound, expected = np.zeros((SIZE, 3), int), np.zeros(deployment.BINDINGS + 1, int)
    for index in range(5):
        batch = learner.task.batch("held_out", 0, index, LENGTH, SIZE)
        progress, counts = visited(Knowing(learner), state.params, progress, index)
        # When bindings and queries of the three are counted by hand
        bound, expected = bound * (index != 2), expected * 0
        kinds, patterns = np.asarray(batch.kind_BxT), np.asarray(batch.pattern_BxT)
        for row, t in np.argwhere((patterns >= 0) & (patterns < 3)):
            bound[row, patterns[row, t]] += kinds[row, t] == BINDING
            if kinds[row, t] == QUERY and index >= 2:
                expected[bound[row, patterns[row, t]]] += 1
        # Then that is what was counted, and all that was asked is right, or wrong where the reader is told so
        np.testing.assert_array_equal(counts["changed_by_binding"], expected)
        np.testing.assert_array_equal(counts["changed_right_by_binding"], expected * (index != 3))
        assert counts["changed_queries"] == expected.sum() and expected[0] == 0
        np.testing.assert_array_equal(progress.bound_BxP[:, :3], bound)
