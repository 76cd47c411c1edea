"""How trained models read fresh streams: what they carry from visit to visit, and what they attend to."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams_memory
from commands import run
from lib import deployment, readers, results, stream_runs
from lib.stream_runs import Entry
from stream_cases import ENTRIES, LENGTH, SETTINGS, SIZE, configured, gathering, reader_of, trained_for, visited

from cram_jax.tasks import srcd
from cram_jax.training import step as training

VISITS = 3
TINY = "--config=experiments/configs/streams.py:tiny"


@pytest.fixture(scope="module")
def trained():
    """(learner, state) of "memory learns" after a few steps, the router released."""
    return trained_for("memory learns", 8)


@pytest.fixture(scope="module")
def models(trained):
    """(learner, state) of each training, by the label of its first entry; after two steps where it has code of its own.

    The others are trained as any model is, which other tests show.
    """
    steps = {"no consolidation": 2, "gradient adapter": 2, "mamba2, carried": 2}
    alone = [label for label, entry in ENTRIES.items() if entry.settings]
    return {"memory learns": trained} | {label: trained_for(label, steps.get(label, 0)) for label in alone}


@pytest.fixture(scope="module")
def counts(models):
    """Counts of each entry over a few visits."""
    found = {}
    for label, entry in ENTRIES.items():
        learner, state = models[label if entry.settings else "memory learns"]
        how = dict(size=SIZE, visits=VISITS, length=LENGTH, seed=0, show=lambda done, found: None)
        found[label] = deployment.deploy(reader_of(label, learner), state, **how)
    return found


def test_all_entries_make_one_result(counts, tmp_path):
    with gathering(lambda *args: counts):
        said = run("streams", TINY, "--what=controls", f"--runs={tmp_path}", **SETTINGS)
    result = results.load("streams_controls", tmp_path)
    assert list(result["entries"]) == list(ENTRIES)
    lines = [line for line in said.splitlines() if any(line.strip(" │").startswith(label) for label in ENTRIES)]
    assert len(lines) == len(ENTRIES)
    drawn = tmp_path / "streams_controls" / "figure"
    assert drawn.with_suffix(".png").stat().st_size > 10_000 and drawn.with_suffix(".svg").exists()


def test_entries_are_asked_the_same_and_attend_as_they_are(counts):
    tokens = LENGTH * SIZE
    for label, found in counts.items():
        for name in ("tokens", "queries", "new_queries", "least", "asked_by_exposure"):
            np.testing.assert_array_equal(found[name], counts["memory learns"][name], label)
        np.testing.assert_array_equal(found["to_consolidate"], tokens if label == "gradient adapter" else 0, label)
        assert np.all(found["operations"] > 0), label
    np.testing.assert_array_equal(counts["transformer"]["attended"], tokens)
    for label in ("mamba2, carried", "palimpsa, carried"):
        np.testing.assert_array_equal(counts[label]["attended"], 0)


def test_a_fixed_memory_stays_empty_and_parameters_stay(trained):
    learner, state = trained
    before = jax.device_get(state.params)
    reader = reader_of("memory fixed", learner)
    progress = deployment.begin(reader, state.params, state.consolidation, SIZE)
    for index in range(VISITS):
        progress, _ = visited(reader, state.params, progress, index)
    np.testing.assert_array_equal(progress.carried[0].memory.sums.A_SxFxF, 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), before)


def test_without_consolidation_the_memory_is_empty_in_training_too(trained):
    # Given trainings of the same streams, in which the router decides
    (_, written_to), (_, never) = trained, trained_for("no consolidation", 8)
    assert never.consolidation[0].retrievals.released[0]
    # Then only one of them has anything in its memory; both know the scale of retrievals
    sums = lambda state: np.asarray(state.consolidation[0].memory.sums.A_SxFxF)
    assert np.any(sums(written_to) != 0) and not np.any(sums(never))
    assert never.consolidation[0].retrievals.weight[0] > 0


def test_chance_lets_a_share_of_those_attend_that_need_to(counts):
    some, everyone = (counts[label]["attended"] for label in ("routed by chance", "memory fixed"))
    assert np.all(some <= everyone) and everyone.sum() > 100
    # 30% of them, within four standard deviations
    assert abs(some.sum() / everyone.sum() - 0.3) < 4 * (0.3 * 0.7 / everyone.sum()) ** 0.5


def test_each_stream_has_a_memory_of_its_own(trained):
    # Given a deployment of three streams, and one of the first two
    learner, state = trained
    reader = reader_of("memory learns", learner)
    three, two = (deployment.begin(reader, state.params, state.consolidation, size) for size in (3, 2))
    for index in range(3):
        three, _ = visited(reader, state.params, three, index)
        two, _ = visited(reader, state.params, two, index)
    # Then what the two consolidated is the same, whoever else is served
    sums = (jax.tree.leaves(one.carried[0].memory.sums) for one in (three, two))
    for a, b in zip(*sums, strict=True):
        np.testing.assert_allclose(a[:, :2], b, atol=1e-5)


def test_each_stream_teaches_an_adapter_of_its_own(models):
    learner, state = models["gradient adapter"]
    reader = reader_of("gradient adapter", learner)
    progress = deployment.begin(reader, state.params, state.consolidation, SIZE)
    before, (now, *_) = state.params.model[0], visited(reader, state.params, progress, 0)[0].carried[0]
    # Then the adapters differ from the trained one, and from each other
    ups = [before.semantic.up_RxD, *now.semantic.up_RxD]
    assert all(np.max(np.abs(a - b)) > 1e-4 for a, b in itertools.combinations(ups, 2))
    # and all that is not taught is what it was
    same = lambda old, new: np.testing.assert_array_equal(new, np.stack([old] * SIZE))
    for part in ("episodic", "router", "feed_forward"):
        jax.tree.map(same, getattr(before, part), getattr(now, part))


def test_a_carried_state_goes_on_from_visit_to_visit(models):
    learner, state = models["mamba2, carried"]
    reader, batches = (
        reader_of("mamba2, carried", learner),
        [learner.task.batch("held_out", 0, i, LENGTH, 2) for i in (0, 1)],
    )
    read = jax.jit(lambda carried, batch: reader.read(state.params, carried, batch, None))
    fresh = reader.begin(state.params, state.consolidation, 2)
    carried, _ = read(fresh, batches[0])
    _, later = read(carried, batches[1])
    # What a stream outputs in its second visit depends on its first
    _, alone = read(fresh, batches[1])
    assert np.max(np.abs(later.y_BxTxD - alone.y_BxTxD)) > 1e-3
    # and is what one sequence of both visits gives there
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), *batches)
    x_BxTxD, gap_BxT = learner.task.embed(state.params.task, both)
    whole, _ = learner.model.apply(state.params.model, learner.model.init_state(), x_BxTxD, gap_BxT=gap_BxT)
    # Sums over 64 tokens in float32, in another order
    np.testing.assert_allclose(later.y_BxTxD, whole[:, LENGTH:], atol=1e-3)


def test_training_resets_the_memory_of_a_fresh_stream(trained):
    # Given a state whose streams have all written something, and one that differs by two empty memories
    learner, state = trained
    fresh_B, nobody_B = jnp.array([True, False, False, True]), jnp.zeros(4, bool)
    sums = lambda states: np.asarray(states[0].memory.sums.A_SxFxF[0])
    emptied = state._replace(consolidation=learner.model.reset(state.consolidation, fresh_B))
    has_some = np.any(sums(emptied.consolidation) != 0, axis=(1, 2, 3))
    assert np.all(np.any(sums(state.consolidation) != 0, axis=(1, 2, 3)))
    np.testing.assert_array_equal(has_some, ~fresh_B)
    # When both are trained on one batch, the first told which streams are fresh, then they end alike
    batch, copied = learner.task.batch("train", 0, 8, LENGTH, 4), lambda tree: jax.tree.map(jnp.copy, tree)
    told, _ = training.train_step(learner, copied(state), batch, fresh_B)
    before, _ = training.train_step(learner, copied(emptied), batch, nobody_B)
    untold, _ = training.train_step(learner, copied(state), batch, nobody_B)
    np.testing.assert_array_equal(sums(told.consolidation), sums(before.consolidation))
    assert np.any(sums(told.consolidation) != sums(untold.consolidation))


def test_a_probe_counts_queries_by_what_they_ask_for(trained):
    # Given a visit of streams whose last half of patterns has retired, as it would be had they not
    learner, state = trained
    data = dataclasses.replace(learner.task.data, retire_visit=1, retire_share=0.5)
    learner = dataclasses.replace(learner, task=dataclasses.replace(learner.task, data=data))
    full = dataclasses.replace(learner.task, data=dataclasses.replace(data, retire_visit=None))
    batch = full.batch("held_out", 0, 3, LENGTH, SIZE)
    states = reader_of("memory learns", learner).begin(state.params, state.consolidation, SIZE)
    found = streams_memory.probe(learner, state.params, states, batch, 3)
    # Then all kinds occur, and nothing is answered by a memory that is empty
    query = np.asarray(batch.kind_BxT == srcd.QUERY)
    new, pattern = np.asarray(batch.is_new_BxT), np.asarray(batch.pattern_BxT)
    first = data.srcd.patterns - data.retired
    want = [query & ~new & (pattern >= first), query & ~new & (pattern < first), query & new]
    assert found.asked.tolist() == [mark.sum() for mark in want] and min(found.asked) > 0
    assert found.free_share == 1 and not found.answered.any()
    # and there are errors of all that retrieved
    assert len(found.errors[0]) == len(found.errors[1]) > 0


def test_consolidating_at_once_writes_what_a_visit_writes(trained):
    # Given a memory that is never asked, so that what is written does not depend on what was written before
    alone = {"routing.known_below": 0.0, "learning.growth": 0.0, "learning.rehearsal": 0.2, "learning.shown": 0.2}
    changed = {f"posterior_cram.{name}": value for name, value in alone.items()}
    config, (_, state) = configured("memory learns"), trained
    after = {}
    for how in (readers.learning, readers.immediate):
        entry = Entry({}, how, changed)
        reader = how(stream_runs.deployed_learner(config, entry), config.deployment)
        progress = deployment.begin(reader, state.params, state.consolidation, SIZE)
        for index in range(2):
            progress, counts = visited(reader, state.params, progress, index)
        after[how] = progress.carried[0].memory, counts["attended"], counts["right"]
    # Then after two visits all is the same, but that the second visit forgot the first one little by little
    (whole, *read), (at_once, *read_at_once) = after.values()
    assert read == read_at_once and read[0] > 0
    np.testing.assert_array_equal(whole.keep, at_once.keep)
    assert np.linalg.norm(whole.sums.A_SxFxF - at_once.sums.A_SxFxF) < 0.05 * np.linalg.norm(whole.sums.A_SxFxF)
    assert np.linalg.norm(whole.sums.A_SxFxF) > 0.1
