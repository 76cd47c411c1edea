"""The transfer experiment: which parameters are transferred and frozen, what is counted, and what is reported."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import srcd
import transfer
from commands import refused, run, written
from configs import srcd as srcd_config
from configs import transfer as transfer_config
from lib import results, runs, targets
from srcd_cases import SMALLEST

from cram_jax.tasks.irregular_generated import write_generated
from cram_jax.training.files import read

SETTINGS = SMALLEST | {
    "run.steps": 20, "run.log_every": 20, "run.checkpoint_every": 20, "targets.records.generated.series": 100,
    "targets.records.generated.events": 40,
}  # fmt: skip
CALLED = "generated files of the PhysioNet 2012 format"
ONE = ("--seeds=1", "--target=records", "--model=cram")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where it ran, its result, what it printed): CRAM on generated records."""
    at = tmp_path_factory.mktemp("runs") / "transfer"
    said = run("transfer", f"--runs={at}", *ONE, **SETTINGS)
    return at, results.load(at.name, at.parent), said


def test_what_is_frozen_is_the_sources_and_all_else_is_trained(finished):
    at, _, _ = finished
    # Given the last states of the source and of all ways
    config = transfer_config.get_config()
    config.update_from_flattened_dict(SETTINGS)
    target = targets.found("records", config, None, at)
    source = srcd.build(transfer.source_settings(config, "cram", 0))[0]
    _, first = runs.last_state(source, 0, at / "source" / "cram_seed_0", source.task.data.patterns)
    states = {"source": first}
    for way in transfer.WAYS:
        learner, _ = transfer.build(transfer.target_settings(config, target, "cram", way, 0), target)
        folder = at / "records" / f"cram_{way.replace(' ', '_')}_seed_0"
        _, states[way] = runs.last_state(learner, 0, folder)
    # Then the same parts are the source's bit for bit
    (old,), same = first.params.model, lambda *trees: all(map(np.array_equal, *map(jax.tree.leaves, trees)))
    parts = {
        way: {name for name, part in state.params.model[0]._asdict().items() if same(part, getattr(old, name))}
        for way, state in states.items()
    }
    everything = set(old._fields)
    assert parts == {
        "source": everything, "from scratch": set(), "frozen": {"semantic", "router"}, "head alone": everything,
    }  # fmt: skip
    assert all(np.all(state.consolidation[0].released) for state in states.values())


@pytest.mark.parametrize("model", transfer.SELECTION)
def test_what_is_frozen_can_be_frozen(model):
    config, target = transfer_config.get_config(), targets.Target("copy", "copy")
    settings = {way: transfer.target_settings(config, target, model, way, 0) for way in transfer.WAYS}
    # A pattern that matches no parameter would be refused here
    built = {way: transfer.build(found, target)[0] for way, found in settings.items()}
    frozen = {way: learner.optimizer.frozen for way, learner in built.items()}
    assert frozen["from scratch"] == () and frozen["frozen"] == tuple(transfer.SELECTION[model])
    assert frozen["head alone"] and not set(frozen["head alone"]) & set(frozen["frozen"])


def test_a_transferred_router_decides_from_the_first_step_and_the_price_starts_anew(finished):
    at, _, _ = finished
    first = lambda way: read(at / "records" / f"cram_{way}_seed_0" / "metrics.jsonl")[0]
    source = read(at / "source" / "cram_seed_0" / "metrics.jsonl")[-1]
    assert first("from_scratch")["held_out/attention_tokens"] == 1
    assert first("frozen")["held_out/attention_tokens"] == first("head_alone")["held_out/attention_tokens"] < 1
    last = read(at / "records" / "cram_frozen_seed_0" / "metrics.jsonl")[-1]
    assert last["step"] == 20 and source["train/price"] > 0
    assert 0 <= last["train/price"] <= 4  # the target's own, from 0 on
    settings = json.loads((at / "records" / "cram_frozen_seed_0" / "config.json").read_text())
    assert settings["optimizer"]["frozen"] == list(transfer.SELECTION["cram"])
    assert settings["price"]["tolerance"] == 0.05
    assert str(at) not in json.dumps(settings), "what the files hold is a setting, where they are is not"


def test_the_result_names_generated_files_and_compares_with_training_from_scratch(finished):
    at, result, said = finished
    assert result["data"]["targets"] == {CALLED: "records"}
    assert "generated files of" in said and str(at) not in results.text(result)
    assert "Generated files" in result["made_by"]["notes"][0]
    labels = {way: f"{CALLED}: cram, {way}" for way in ("from scratch", "frozen", "head alone")}
    entries, reduction = result["entries"], result["data"]["reduction"]
    assert list(entries) == ["source: cram", *labels.values()] and labels["from scratch"] not in reduction
    base = entries[labels["from scratch"]]["mean"]["attention_tokens_end"]
    for way, label in labels.items():
        (run,), (curve,) = entries[label]["runs"], entries[label]["curves"]
        assert entries[label]["settings"] == {"target": "records", "model": "cram", "way": way}
        assert run["score"] == entries[label]["mean"]["score"] and 0 < run["score"] < 1
        assert 0 <= run["attention_tokens_end"] <= 1 and len(curve["step"]) == 2 and "commit" in run
        if way != "from scratch" and base:
            less = 1 - run["attention_tokens_end"] / base
            np.testing.assert_allclose([reduction[label]["mean"], *reduction[label]["by_seed"]], less)
    assert (at / "figure.png").stat().st_size > 5000
    # The last evaluation went through the 20 held-out records once
    summary = json.loads((at / "records" / "cram_frozen_seed_0" / "summary.json").read_text())
    assert summary["held_out_tokens"] == 20 * 32


def test_finished_runs_are_kept(finished):
    at, result, _ = finished
    before = written(at)
    run("transfer", f"--runs={at}", *ONE, **SETTINGS)
    assert written(at) == before and len(before) == 4 and results.load(at.name, at.parent) == result


def test_published_files_are_read_where_they_are_and_missing_ones_are_named(tmp_path):
    launch = lambda *flags: refused("transfer", f"--runs={tmp_path}/runs", *flags, **SETTINGS)
    said = launch(f"--data={tmp_path}", "--target=motion")
    assert "lacks" in said and "ConfLongDemo_JSI.txt" in said and "unpack Person Activity there" in said
    # Present, but with too few events for a sequence of 32: the folder was read before any run
    (path,) = write_generated("person_activity", tmp_path / "made", 5, 10)
    Path(path).rename(tmp_path / "ConfLongDemo_JSI.txt")
    assert "no series of the held_out split has 32 events" in launch(f"--data={tmp_path}", "--target=motion")
    assert "--target=music: value should be one of <copy|records|motion>" in launch("--target=music")
    assert not (tmp_path / "runs").exists()


def test_the_source_is_srcds_own_and_the_price_in_the_ratio_of_losses():
    config, source = transfer_config.get_config(), srcd_config.get_config("tiny")
    assert {name: config[name] for name in source} == dict(source.items())
    per_nat = source.price.top / np.log(source.data.answers)
    for target, classes in (("copy", 64), ("records", 2), ("motion", 11)):
        assert abs(config.targets[target].price.top - per_nat * np.log(classes)) < 0.5
