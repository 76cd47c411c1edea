"""The experiments on streams: trained, deployed in fresh streams with fixed parameters, gathered and drawn."""

import dataclasses
import itertools
import json
import shutil
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams_memory
from commands import refused, run, written
from configs import streams as streams_config
from configs.streams import CHANGED, LONGER, MODEL
from configs.streams_ablations import ABLATIONS, GROUPS
from lib import deployment, gather, readers, results, stream_runs
from lib.stream_runs import Entry
from stream_cases import ENTRIES, LENGTH, SETTINGS, SIZE, configured, reader_of, trained_for, visited

from cram_jax.tasks import srcd
from cram_jax.training import step as training

VISITS = 3
TINY = "--config=experiments/configs/streams.py:tiny"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where the model alone ran, what was printed)."""
    at = tmp_path_factory.mktemp("runs") / "streams"
    return at, run("streams", TINY, f"--runs={at}", **SETTINGS)


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


def test_two_entries_share_a_training_and_others_are_not_trained(finished):
    at, said = finished
    assert sorted(path.name for path in at.iterdir()) == ["memory_learns", "streams"]
    assert said.count(f"seed 0: {at / 'memory_learns' / 'seed_0'}") == 1
    assert "memory learns: visits 10 to 19" in said and "memory fixed" in said
    assert list(results.load("streams", at)["entries"]) == list(MODEL)


def test_a_second_call_trains_and_deploys_nothing_again_and_a_part_has_no_result(finished):
    at, said = finished
    times = lambda: {path: path.stat().st_mtime_ns for path in at.rglob("streams/*.json")}
    before = times()
    again = run("streams", TINY, f"--runs={at}", "--what=controls", *map("--entry={}".format, MODEL), **SETTINGS)
    assert times() == before and len(before) == 3
    assert "seed 0: " not in again and "no result was written" in again
    shown = lambda text: [line for line in text.splitlines() if line.startswith("│ memory")]
    assert shown(again) == shown(said) and len(shown(said)) == 2


def test_a_trained_model_is_deployed_again_with_other_settings(finished, tmp_path):
    at = tmp_path / "streams"
    shutil.copytree(finished[0], at)
    launches = lambda: (at / "memory_learns" / "seed_0" / "launches.jsonl").read_text()
    before = launches()
    said = run("streams", TINY, f"--runs={at}", f"--entry={MODEL[0]}", **SETTINGS | {"deployment.streams": 2})
    assert launches() == before and "20 visits of 2 fresh streams" in said
    kept = json.loads((at / "memory_learns" / "seed_0" / "streams" / "memory_learns.json").read_text())
    assert kept["counts"]["tokens"] == [2 * LENGTH] * 20 and kept["settings"]["deployment"]["streams"] == 2


def test_a_result_names_the_commits_of_trainings_and_of_deployments(finished, tmp_path):
    at = tmp_path / "streams"
    shutil.copytree(finished[0], at)
    file = at / "memory_learns" / "seed_0" / "streams" / "memory_fixed.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps(kept | {"made_by": kept["made_by"] | {"commit": "another"}}))
    (launch,) = (at / "memory_learns" / "seed_0" / "launches.jsonl").read_text().splitlines()
    made = stream_runs.made_by(at, ENTRIES, MODEL, [0], "streams")
    assert made["commits"] == sorted({json.loads(launch)["commit"], "another"})


def test_entries_and_settings_that_do_not_exist_are_refused(tmp_path):
    assert "memory learns" in refused("streams", TINY, f"--runs={tmp_path}", "--entry=memory", **SETTINGS)
    said = refused("streams", TINY, "--what=controls", f"--runs={tmp_path}", **SETTINGS | {"joined": (3,)})
    assert "each number in joined must divide run.batch=4, got joined=(3,)" in said
    assert not written(tmp_path) and not list(tmp_path.iterdir())


def gathering(deployed):
    """The mains take counts from `deployed`, and no directory says who made them."""
    made = {"made_by": lambda *args: gather.made_by([]), "deployed": deployed}
    return mock.patch.multiple(stream_runs, **made)


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


def test_a_change_makes_one_result(finished, counts, tmp_path):
    # Given an entry that was trained before: it is deployed in changing streams, and not trained again
    at, _ = finished
    lines = lambda: (at / "memory_learns" / "seed_0" / "launches.jsonl").read_text()
    before = lines()
    said = run("streams_change", TINY, f"--runs={at}", "--entry=memory learns", **SETTINGS)
    assert lines() == before and "no result was written" in said
    (kept,) = at.rglob("streams_change/*.json")
    assert kept.stem == "memory_learns"

    # When all entries are gathered, here with the counts of that one, then they make a result and a figure
    with gathering(always(at)):
        run("streams_change", TINY, "--what=controls", f"--runs={tmp_path}", **SETTINGS)
    result = results.load("streams_change_controls", tmp_path)
    assert list(result["entries"]) == list(CHANGED)
    found = result["entries"]["memory learns"]
    asked, right = (np.array(result["data"]["by_binding"]["memory learns"][name]) for name in ("asked", "right"))
    patterns = SIZE * 2  # a quarter of six, rounded
    assert found["mean"]["wrong_answers_per_pattern"] == pytest.approx((asked - right).sum() / patterns)
    assert found["curves"][0]["first_visit"] == [0, 5, 10, 15]
    unknown = [share is None for share in found["curves"][0]["retrieval_accuracy_changed"]]
    assert unknown == [True, True, False, False]
    assert (tmp_path / "streams_change_controls" / "figure.png").stat().st_size > 10_000
    said = refused("streams_change", TINY, f"--runs={tmp_path}", **SETTINGS | {"deployment.change.visit": 19})
    assert "deployment.change.visit must be between" in said


def test_memories_are_asked_about_their_errors_and_what_retired(finished, tmp_path):
    # Given a model that was trained before, when half of the patterns retire at visit 20 of 40
    shutil.copytree(finished[0] / "memory_learns", tmp_path / "memory_learns")
    settings = SETTINGS | {"deployment.retire.visit": 20, "deployment.retire.visits": 40, "deployment.streams": 8}
    said = run("streams_memory", TINY, f"--runs={tmp_path}", **settings)
    result = results.load("streams_memory", tmp_path)
    # Then memories are asked every five visits, about those patterns, too, when they have retired
    found = result["entries"]["memory learns"]
    assert "memory learns" in said and found["curves"][0]["visit"] == list(range(0, 40, 5))
    assert len(result["data"]["calibration"]["expected"]) == 10
    free = found["curves"][0]["free_share"]
    assert free[0] == 1 and 0 < min(free) < 1
    assert (tmp_path / "streams_memory" / "figure.png").stat().st_size > 10_000
    said = refused("streams_memory", TINY, f"--runs={tmp_path}", **SETTINGS | {"deployment.retire.visit": 19})
    assert "deployment.retire.visit must be between 20 and 20 below" in said


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


def always(at):
    """`stream_runs.deployed` with the counts of "memory learns" in the place of all others'."""
    deployed = stream_runs.deployed

    def read(config, entries, chosen, seed, _, *more):
        found = deployed(config, entries, ["memory learns"], seed, at, *more)
        return dict.fromkeys(chosen, found["memory learns"])

    return read


def test_ablations_make_one_result(finished, tmp_path):
    with gathering(always(finished[0])):
        said = run("streams_change", TINY, "--what=ablations", f"--runs={tmp_path}", **SETTINGS)
    result = results.load("streams_ablations", tmp_path)
    assert result["name"] == "streams_ablations" and list(result["entries"]) == list(ABLATIONS)
    assert result["data"]["groups"] == {group: list(entries) for group, entries in GROUPS.items()}
    assert all(label in said for label in ABLATIONS)
    assert result["entries"]["keep all"]["deployed"] == {"posterior_cram.semantic.keep": 1.0}
    assert (tmp_path / "streams_ablations" / "figure.png").stat().st_size > 10_000


def test_an_ablation_changes_the_model_and_in_deployment_no_shape_of_it():
    config = streams_config.get_config("tiny")
    unchanged = stream_runs.build(config)[0].model
    shapes = lambda model: jax.eval_shape(lambda: model.init(jax.random.key(0)))
    for label, entry in ABLATIONS.items():
        own = stream_runs.settings(config, entry, 0)
        deployed = stream_runs.deployed_learner(own, entry)
        trained = stream_runs.build(own)[0]
        assert shapes(deployed.model) == shapes(trained.model), label
        changed = deployed.model != unchanged or own.data.lifetimes != config.data.lifetimes
        assert changed == (label not in MODEL), label


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


def test_a_model_of_short_visits_reads_long_ones(finished):
    at, _ = finished
    lines = lambda: (at / "memory_learns" / "seed_0" / "launches.jsonl").read_text()
    before, (label, entry) = lines(), next(iter(LONGER.items()))
    shorter = {"run.length": 64, "data.srcd.length": 64, "posterior_cram.episodic.memory": 64, "deployment.visits": 10}
    with mock.patch.dict(LONGER, {label: entry._replace(deployed=entry.deployed | shorter)}):
        said = run("streams", TINY, "--what=long", f"--entry={label}", f"--runs={at}", **SETTINGS)
    assert lines() == before and "10 visits of 3 fresh streams" in said and "no result was written" in said
    (kept,) = at.rglob("*2048*.json")
    assert json.loads(kept.read_text())["counts"]["tokens"] == [64 * SIZE] * 10
