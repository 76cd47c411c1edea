"""The experiment on streams: trained, deployed in fresh streams with fixed parameters, gathered and drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams
from commands import run, written
from configs import streams as streams_config
from lib import deployment, results

from cram_jax.training import loop
from cram_jax.training import step as training

SETTINGS = {
    "run.steps": 20, "run.log_every": 20, "run.checkpoint_every": 20, "run.length": 32, "run.batch": 4,
    "run.held_out_tokens": 128, "run.final_tokens": 128, "data.srcd.patterns": 6, "data.universe": 40,
    "posterior_cram.semantic.features": 32, "price.start": 5, "price.plateau": 1.0, "deployment.streams": 3,
    "deployment.visits": 20,
}  # fmt: skip
TINY = "--config=experiments/configs/streams.py:tiny"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where it ran, its result, what it printed)."""
    at = tmp_path_factory.mktemp("runs") / "streams"
    said = run("streams", TINY, f"--runs={at}", **SETTINGS)
    return at, results.load(at.name, at.parent), said


@pytest.fixture(scope="module")
def trained():
    """(learner, state) after a few steps, the router released."""
    config = streams_config.get_config("tiny")
    config.update_from_flattened_dict(SETTINGS)
    learner, settings = streams.build(config)
    state = training.init(learner, 0, 0, loop.streams(learner, settings))
    for i in range(8):
        batch, fresh_B = learner.task.batch("train", 0, i, 32, 4), learner.task.fresh("train", i, 4)
        state, _ = training.train_step(learner, state, batch, fresh_B)
    return learner, state


def visited(learner, state, progress, index, learns=True):
    """(progress, counts) after one visit of fresh streams."""
    batch = learner.task.batch("held_out", 0, index, 32, progress.asked_BxP.shape[0])
    return deployment.visit(learner, state.params, progress, learns, batch, index)


def test_both_arms_are_deployed_and_only_one_learns(finished):
    _, result, said = finished
    assert set(result["entries"]) == set(streams.ARMS)
    learns, fixed = (result["entries"][arm] for arm in streams.ARMS)
    for found in (learns, fixed):
        assert found["curves"][0]["first_visit"] == [0, 10]
    # The same data: what is asked and the least that is needed are the same, visit by visit
    for name in ("queries", "new", "least"):
        assert learns["curves"][0][name] == fixed["curves"][0][name], name
    assert "memory learns: visits 10 to 19" in said and "queries of new bindings" in said


def test_a_second_call_trains_and_deploys_nothing_again(finished):
    at, result, _ = finished
    before = written(at), (at / "seed_0" / "deployed.json").stat().st_mtime_ns
    run("streams", TINY, f"--runs={at}", **SETTINGS)
    assert (written(at), (at / "seed_0" / "deployed.json").stat().st_mtime_ns) == before
    assert results.load(at.name, at.parent)["entries"] == result["entries"]


def test_a_figure_is_left(finished):
    at, _, _ = finished
    assert (at / "figure.png").stat().st_size > 10_000 and (at / "figure.svg").exists()


def test_a_fixed_memory_stays_empty_and_parameters_stay(trained):
    learner, state = trained
    before = jax.device_get(state.params)
    progress = deployment.begin(learner, state.consolidation, 3)
    for index in range(3):
        progress, _ = visited(learner, state, progress, index, learns=False)
    np.testing.assert_array_equal(progress.states[0].memory.sums.A_SxFxF, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)


def test_each_stream_has_a_memory_of_its_own(trained):
    # Given a deployment of three streams, and one of the first two
    learner, state = trained
    three, two = (deployment.begin(learner, state.consolidation, size) for size in (3, 2))
    for index in range(3):
        three, _ = visited(learner, state, three, index)
        two, _ = visited(learner, state, two, index)
    # Then what the two consolidated is the same, whoever else is served
    sums = (jax.tree.leaves(one.states[0].memory.sums) for one in (three, two))
    for a, b in zip(*sums, strict=True):
        np.testing.assert_allclose(a[:, :2], b, atol=1e-5)


def test_training_resets_the_memory_of_a_fresh_stream(trained):
    # Given a state whose streams have all written something, and one that differs by two empty memories
    learner, state = trained
    fresh_B, nobody_B = jnp.array([True, False, False, True]), jnp.zeros(4, bool)
    sums = lambda states: np.asarray(states[0].memory.sums.A_SxFxF[0])
    emptied = state._replace(consolidation=learner.model.reset(state.consolidation, fresh_B))
    written = np.any(sums(emptied.consolidation) != 0, axis=(1, 2))
    assert np.all(np.any(sums(state.consolidation) != 0, axis=(1, 2)))
    np.testing.assert_array_equal(written, ~fresh_B)
    # When both are trained on one batch, the first told which streams are fresh, then they end alike
    batch, copied = learner.task.batch("train", 0, 8, 32, 4), lambda tree: jax.tree.map(jnp.copy, tree)
    told, _ = training.train_step(learner, copied(state), batch, fresh_B)
    before, _ = training.train_step(learner, copied(emptied), batch, nobody_B)
    untold, _ = training.train_step(learner, copied(state), batch, nobody_B)
    np.testing.assert_array_equal(sums(told.consolidation), sums(before.consolidation))
    assert np.any(sums(told.consolidation) != sums(untold.consolidation))


def test_the_least_attention_is_counted_by_hand(trained):
    learner, state = trained
    progress, asked = deployment.begin(learner, state.consolidation, 2), [set(), set()]
    for index in range(4):
        batch = learner.task.batch("held_out", 0, index, 32, 2)
        progress, counts = visited(learner, state, progress, index)
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
