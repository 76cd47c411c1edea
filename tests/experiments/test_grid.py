"""Rates are chosen on what is not reported, diverged runs are never chosen, and what does not compare is refused."""

import json

import grid
import pytest
from ml_collections import ConfigDict

BASE = ConfigDict({"seed": 0, "depth": 2, "optimizer": {"learning_rate": 0.0}, "run": {"steps": 50}})
CHOSEN_BY = {0.1: (1.0, 1.0), 0.2: (3.0, 2.5), 0.3: (4.0, 0.0)}  # on validation data, by rate and seed


@pytest.fixture(autouse=True)
def of_one_commit(monkeypatch):
    monkeypatch.setattr(grid.summary, "versions", lambda: {"commit": "abc", "jax": "0"})


def trainer(commit="abc", diverges=()):
    """(a training that takes no time, the rates and seeds it was called with)."""
    calls = []

    def train(config, workdir):
        rate, seed = config.optimizer.learning_rate, config.seed
        calls.append((rate, seed))
        if (rate, seed) in diverges:
            raise FloatingPointError("not finite")
        out = {"seed": seed, "score": 10 * rate + seed, "validation": CHOSEN_BY[rate][seed], "trained_by": [commit]}
        (workdir / "summary.json").write_text(json.dumps(out))
        (workdir / "metrics.jsonl").write_text('{"step": 0}\n{"step": 50, "train/total_flops": 2.0}\n')
        return out

    return train, calls


def compare(train, at, base=BASE, **more):
    entries, trained = grid.compare(
        train, BASE, {"a model": base}, at, {"a model": list(CHOSEN_BY)}, 2, "validation", **more
    )
    assert all(run["seed"] in (0, 1) for run in trained)
    return entries["a model"]


def test_the_best_mean_on_validation_data_is_reported(tmp_path):
    train, calls = trainer()
    found = compare(train, tmp_path)
    scores = {"0.1": [1.0, 1.0], "0.2": [3.0, 2.5], "0.3": [4.0, 0.0]}  # one seed alone misleads
    assert found["chosen"] == {"learning_rate": 0.2, "at_edge": False, "validation": scores}
    assert found["mean"]["score"] == 2.5 and [run["score"] for run in found["runs"]] == [2.0, 3.0]
    assert found["settings"] == {"optimizer.learning_rate": 0.2} and len(found["curves"]) == 2
    assert calls == [(rate, seed) for rate in CHOSEN_BY for seed in (0, 1)]
    compare(train, tmp_path)
    assert len(calls) == 6  # all of them were there
    lower = compare(train, tmp_path, lower=True)["chosen"]
    assert lower["learning_rate"] == 0.1 and lower["at_edge"]


def test_a_rate_at_which_one_diverged_is_not_chosen_and_not_tried_again(tmp_path):
    train, calls = trainer(diverges=[(0.2, 1)])
    for _ in range(2):
        found = compare(train, tmp_path)
        assert found["chosen"]["learning_rate"] == 0.3 and found["chosen"]["at_edge"] and len(found["runs"]) == 2
        assert len(calls) == 6
    everywhere, _ = trainer(diverges=[(rate, 0) for rate in CHOSEN_BY])
    with pytest.raises(ValueError, match="a model diverged at all of the rates"):
        compare(everywhere, tmp_path / "other")


def test_runs_of_other_code_or_settings_are_refused(tmp_path):
    compare(trainer()[0], tmp_path)
    with pytest.raises(ValueError, match="holds a run with config.depth="):
        compare(trainer()[0], tmp_path, base=ConfigDict({**BASE, "depth": 3}))
    (tmp_path / "a_model" / "rate_0.3_seed_0" / "summary.json").unlink()
    with pytest.raises(ValueError, match="trained by different code"):  # while they were trained
        compare(trainer(commit="another")[0], tmp_path)
    with pytest.raises(ValueError, match="must be trained by one code"):  # before any is
        compare(trainer()[0], tmp_path)


def test_parts_count_from_0():
    assert grid.parted("0/1") == (0, 1) and grid.parted("1/2") == (1, 2)


@pytest.mark.parametrize("part", ["half", "2/2", "0/0", "-1/2", "1"])
def test_a_part_that_is_none_is_refused(part):
    with pytest.raises(
        ValueError, match=f"--part must be i/n with i from 0 to n - 1, such as 0/2 and 1/2, got '{part}'"
    ):
        grid.parted(part)


def test_code_that_changed_between_runs_is_noticed_before_any_is_trained(tmp_path, monkeypatch):
    def finished(name, commit):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"trained_by": [commit]}))
        return tmp_path / name

    a, b, left = finished("a", "abc"), finished("b", "abc"), tmp_path / "left"
    grid.check_code([a, b, left])
    monkeypatch.setattr(grid.summary, "versions", lambda: {"commit": "def"})
    grid.check_code([a, b])  # nothing left: they are only gathered
    with pytest.raises(ValueError, match=f"this is def, 1 runs are left, and done are, by commit, abc {a} {b}"):
        grid.check_code([a, b, left])
    with pytest.raises(ValueError, match="must be trained by one code"):
        grid.check_code([a, finished("c", "def")])


def test_settings_that_an_entry_lacks_are_not_said_to_differ():
    base = ConfigDict({"files": ("here",), "depth": 2, "tune": {"steps": 5}, "run": {"steps": 1, "batch": 2}})
    assert grid.changed(base, {"depth": 2, "run": {"steps": 3, "batch": 2}}) == {"run.steps": 3}
