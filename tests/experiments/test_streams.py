"""The experiments on streams: trained, deployed in fresh streams with fixed parameters, gathered and drawn."""

import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from commands import refused, run, written
from configs import streams as streams_config
from configs.streams import CHANGED, LONGER, MODEL
from configs.streams_ablations import ABLATIONS, GROUPS
from lib import results, stream_runs
from stream_cases import ENTRIES, LENGTH, SETTINGS, SIZE, gathering

TINY = "--config=experiments/configs/streams.py:tiny"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where the model alone ran, what was printed)."""
    at = tmp_path_factory.mktemp("runs") / "streams"
    return at, run("streams", TINY, f"--runs={at}", **SETTINGS)


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


def test_a_change_makes_one_result(finished, tmp_path):
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
