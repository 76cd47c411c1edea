"""Only finished runs of one clean commit become committed results."""

import copy
import json

import promote as main
import pytest
from lib import gather, results
from lib.promote import Refused, promote

from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import to_config

ASKED = {"question": "How much?", "command": "python experiments/x.py --config.seed=SEED"}


@pytest.fixture
def runs(tmp_path):
    """A maker of finished run directories."""

    def make(seed, commits=("a1",), length=8, accuracy=0.5):
        config = {"seed": seed, "model": "cram", "data": {"table_seed": seed, "length": length}}
        config["run"] = to_config(RunConfig()).to_dict()
        versions = dict.fromkeys(gather.VERSIONS, "1")
        summary = {"seed": seed, "accuracy": accuracy, "trained_by": list(commits), "trained_on": ["cpu x1"]} | versions
        folder = tmp_path / f"runs/seed_{seed}_{len(list(tmp_path.rglob('config.json')))}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text('{"step": 0}\n{"step": 50, "train/total_flops": 2.0}\n')
        return folder

    return make


def test_finished_runs_become_a_result_with_what_made_it(runs, tmp_path):
    out = promote("x", [runs(0), runs(1)], **ASKED, notes=("Slow.",), folder=tmp_path / "results")
    assert results.load("x", tmp_path / "results") == out
    assert out["made_by"] | {"date": None} == {
        "commits": ["a1"],
        "date": None,
        "machines": ["cpu x1"],
        "versions": dict.fromkeys(gather.VERSIONS, "1"),
        "notes": ["Slow."],
    }
    assert len(out["made_by"]["date"]) == len("2026-11-27") and out["config"]["data"]["length"] == 8
    assert out["entries"]["cram"]["mean"]["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (lambda runs: [runs(0, commits=["a1+"])], r"uncommitted changes, a1\+"),
        (lambda runs: [runs(0, commits=["a1", "b2"])], "different commits, a1, b2"),
        (lambda runs: [runs(0), runs(1, commits=["b2"])], "trained by different code"),
        (lambda runs: [runs(0, commits=[])], "no commit is noted"),
        (lambda runs: [runs(0), runs(0)], r"different seeds, got \[0, 0\]"),
        (lambda runs: [runs(0), runs(1, length=9)], "different settings: data.length"),
        (lambda runs: [runs(0), runs(0).parent], r"not finished, no summary.json or result.json: \S+runs\. "),
        (lambda runs: [folder := runs(0), folder], "named twice"),
    ],
)
def test_what_is_no_evidence_is_refused_and_nothing_written(which, said, runs, tmp_path):
    with pytest.raises(Refused, match=said):
        promote("x", which(runs), **ASKED, folder=tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_run_that_lost_lines_is_refused(runs, tmp_path):
    folder = runs(0)
    summary = json.loads((folder / "summary.json").read_text()) | {"missing_lines": 3}
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(Refused, match="metrics.jsonl has lost lines in .*: train anew"):
        promote("x", [folder], **ASKED, folder=tmp_path / "results")


def test_a_new_result_of_runs_needs_its_question_and_command(runs, tmp_path):
    with pytest.raises(Refused, match="--question, and the --command"):
        promote("x", [runs(0)], question="How much?", folder=tmp_path)


def test_a_result_gives_way_to_newer_runs_of_its_own_question_only(runs, tmp_path):
    # Given a result, the same question asked again keeps its words
    promote("x", [runs(0)], **ASKED, folder=tmp_path)
    again = promote("x", [runs(0, commits=["b2"], accuracy=0.75), runs(1, commits=["b2"])], folder=tmp_path)
    assert again["question"] == ASKED["question"] and len(again["entries"]["cram"]["runs"]) == 2
    # When the question or the settings are others
    for other in (dict(question="Why?"), dict(workdirs=[runs(0, length=9)])):
        wanted = {"workdirs": [runs(0)], "folder": tmp_path} | other
        with pytest.raises(
            Refused, match=r"already a result that differs in (question|config\.data\.length)\. .*--replace"
        ):
            promote("x", **wanted)
        # Then it stays, unless it is to be replaced
        assert results.load("x", tmp_path) == again
        promote("x", **wanted, replace=True)
        again = promote("x", [runs(0)], **ASKED, folder=tmp_path, replace=True)


def finished(tmp_path, seed, **changes):
    """A result as a main leaves it."""
    run = {"seed": seed, "accuracy": 0.5, "commit": "a1"}
    entry = {"settings": {}, "runs": [run], **gather.statistics([run])}
    made = {"commits": ["a1"], "date": None, "machines": ["cpu"], "versions": {"jax": "1"}, "notes": []}
    config = {"seed": seed, "data": {"length": 8}}
    out = gather.result("left", "Why?", "python y.py", made, config=config, entries={f"seed {seed}": entry})
    folder = tmp_path / f"left_{seed}_{len(list(tmp_path.glob('left_*')))}"
    results.write(folder, copy.deepcopy(out) | changes)
    return folder


def test_results_of_mains_are_taken_over_and_those_of_several_seeds_become_one(tmp_path):
    out = promote("y", [finished(tmp_path, 0), finished(tmp_path, 1)], folder=tmp_path / "results")
    assert out["name"] == "y" and out["question"] == "Why?" and out["made_by"]["date"]
    assert list(out["entries"]) == ["seed 0", "seed 1"]
    assert out["config"]["seed"] == 0 and out["entries"]["seed 1"]["settings"] == {"seed": 1}


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (dict(seed=0), "the same entries: seed 0"),
        (dict(seed=1, config={"seed": 1, "data": {"length": 9}}), "different settings: data.length"),
        (dict(seed=1, question="How?"), r"different questions: 'Why\?' and 'How\?'"),
        (dict(seed=1, data={"fit": 1.0}), "different data"),
    ],
)
def test_results_that_do_not_add_up_are_refused(second, said, tmp_path):
    with pytest.raises(Refused, match=said):
        promote("y", [finished(tmp_path, 0), finished(tmp_path, **second)], folder=tmp_path / "results")


def test_runs_and_results_are_not_mixed(runs, tmp_path):
    with pytest.raises(Refused, match="some do not"):
        promote("y", [finished(tmp_path, 0), runs(0)], folder=tmp_path / "results")


def test_the_command_says_what_is_wrong_in_a_line(runs, capsys):
    with pytest.raises(SystemExit, match="error: made by a tree with uncommitted changes"):
        main.main(["x", str(runs(0, commits=["a1+"])), "--question=How much?", "--command=python x.py"])
