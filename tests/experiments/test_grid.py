"""Rates are chosen on data that is not reported, never where a run diverged, and other code or settings are refused."""

import json

import pytest
from lib import grid, runs
from ml_collections import ConfigDict

BASE = {"seed": 0, "depth": 2, "optimizer": {"learning_rate": 0.0}, "run": {"steps": 50}}
CHOSEN_BY = {0.1: (1.0, 1.0), 0.2: (3.0, 2.5), 0.3: (4.0, 0.0)}  # on validation data, by rate and seed
CHANGES = {"a model": {}}


@pytest.fixture(autouse=True)
def of_one_commit(monkeypatch):
    monkeypatch.setattr(grid, "versions", lambda: {"commit": "abc", "jax": "0"})


def trainer(commit="abc", diverges=()):
    """Returns (a fake training, the list of rates and seeds that it was called with)."""
    calls = []

    def train(config, workdir):
        rate, seed = config.optimizer.learning_rate, config.seed
        calls.append((rate, seed))
        if (rate, seed) in diverges:
            raise FloatingPointError("not finite")
        out = {"seed": seed, "score": 10 * rate + seed, "quality_layer_1": 1.0, "trained_by": [commit]}
        out |= {"validation": CHOSEN_BY.get(rate, (0.0, 0.0))[seed]}
        (workdir / "summary.json").write_text(json.dumps(out))
        (workdir / "metrics.jsonl").write_text('{"step": 0}\n{"step": 50, "train/total_flops": 2.0}\n')
        return out

    return train, calls


def plan(at, changes=CHANGES, rates=tuple(CHOSEN_BY), base=BASE):
    settings = lambda seed, changed: runs.change(ConfigDict({**base, "seed": seed}), changed)
    return grid.plan(changes, range(2), rates, at, settings)


def compare(train, at, changes=CHANGES, rates=tuple(CHOSEN_BY), base=BASE, **how):
    todo = plan(at, changes, rates, base)
    return grid.entries(todo, grid.train(train, todo), changes, chosen_by="validation", **how)


def test_runs_are_planned_seed_by_seed_each_in_its_own_directory(tmp_path):
    found = plan(tmp_path, {"a, b": {}, "own rate": {"optimizer.learning_rate": 0.5, "depth": 1}}, rates=(0.1, 0.2))
    assert [str(run.workdir.relative_to(tmp_path)) for run in found[:3]] == [
        "a__b/rate_0.1_seed_0", "a__b/rate_0.2_seed_0", "own_rate/seed_0",
    ]  # fmt: skip
    assert [run.seed for run in found] == [0, 0, 0, 1, 1, 1] and [run.rate for run in found[3:]] == [0.1, 0.2, None]
    assert found[4].config.to_dict() == {**BASE, "seed": 1, "optimizer": {"learning_rate": 0.2}}
    assert (found[5].config.depth, found[5].config.optimizer.learning_rate) == (1, 0.5)
    with pytest.raises(KeyError, match="unknown setting 'run.stepz': there are .'steps'."):
        plan(tmp_path, {"x": {"run.stepz": 1}})


def test_the_best_mean_on_validation_data_is_reported(tmp_path):
    train, calls = trainer()
    found = compare(train, tmp_path)["a model"]
    scores = {"0.1": [1.0, 1.0], "0.2": [3.0, 2.5], "0.3": [4.0, 0.0]}  # one seed alone misleads
    assert found["chosen"] == {"learning_rate": 0.2, "at_edge": False, "validation": scores}
    assert found["mean"]["score"] == 2.5 and [run["score"] for run in found["runs"]] == [2.0, 3.0]
    assert found["settings"] == {"optimizer.learning_rate": 0.2} and len(found["curves"]) == 2
    assert sorted(calls) == [(rate, seed) for rate in CHOSEN_BY for seed in (0, 1)]
    compare(train, tmp_path)
    assert len(calls) == 6  # all of them were there
    lower = compare(train, tmp_path, lower=True)["a model"]["chosen"]
    assert lower["learning_rate"] == 0.1 and lower["at_edge"]


def test_a_result_keeps_what_is_asked_for_of_each_run_and_means_of_all_but_single_layers(tmp_path):
    found = compare(trainer()[0], tmp_path, rates=(), kept=("seed", "score"))["a model"]
    assert found["runs"] == [{"seed": 0, "score": 0.0}, {"seed": 1, "score": 1.0}] and "chosen" not in found
    assert {"score", "validation"} <= found["mean"].keys() and "quality_layer_1" not in found["mean"]


def test_a_rate_at_which_one_diverged_is_not_chosen_and_not_tried_again(tmp_path):
    train, calls = trainer(diverges=[(0.2, 1)])
    for _ in range(2):
        found = compare(train, tmp_path)["a model"]
        assert found["chosen"]["learning_rate"] == 0.3 and found["chosen"]["at_edge"] and len(found["runs"]) == 2
        assert len(calls) == 6
    everywhere, _ = trainer(diverges=[(rate, 0) for rate in CHOSEN_BY])
    with pytest.raises(ValueError, match="a model diverged at all of the rates"):
        compare(everywhere, tmp_path / "other")


def test_without_a_choice_diverged_runs_are_counted(tmp_path):
    one, _ = trainer(diverges=[(0.0, 1)])
    found = compare(one, tmp_path, rates=())["a model"]
    assert found["diverged"] == 1 and [run["seed"] for run in found["runs"]] == [0]
    none, _ = trainer(diverges=[(0.0, 0), (0.0, 1)])
    assert compare(none, tmp_path / "other", rates=())["a model"] == {
        "settings": {}, "runs": [], "mean": {}, "sd": {}, "missing": {}, "diverged": 2,
    }  # fmt: skip


def test_runs_of_other_code_or_settings_are_refused(tmp_path):
    compare(trainer()[0], tmp_path)
    with pytest.raises(ValueError, match="holds a run with config.depth="):
        compare(trainer()[0], tmp_path, base={**BASE, "depth": 3})
    (tmp_path / "a_model" / "rate_0.3_seed_0" / "summary.json").unlink()
    with pytest.raises(ValueError, match="trained by different code"):  # while they were trained
        compare(trainer(commit="another")[0], tmp_path)
    with pytest.raises(ValueError, match="must be trained by one code"):  # before any is
        compare(trainer()[0], tmp_path)


def test_parts_count_from_0_and_take_every_run_once():
    assert list(range(5))[grid.part(grid.WHOLE)] == list(range(5))
    assert [list(range(5))[grid.part(part)] for part in ("0/2", "1/2")] == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize("part", ["half", "2/2", "0/0", "-1/2", "1"])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(
        ValueError, match=f"--part must be i/n with i from 0 to n - 1, such as 0/2 and 1/2, got '{part}'"
    ):
        grid.part(part)


def test_code_that_changed_between_runs_is_noticed_before_any_is_trained(tmp_path, monkeypatch):
    def finished(name, commit):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"trained_by": [commit]}))
        return tmp_path / name

    a, b, left = finished("a", "abc"), finished("b", "abc"), tmp_path / "left"
    grid.check_code([a, b, left])
    monkeypatch.setattr(grid, "versions", lambda: {"commit": "def"})
    grid.check_code([a, b])  # nothing left: they are only gathered
    with pytest.raises(ValueError, match=f"This is def. 1 runs are left. Finished, by commit: abc {a} {b}"):
        grid.check_code([a, b, left])
    with pytest.raises(ValueError, match="must be trained by one code"):
        grid.check_code([a, finished("c", "def")])
