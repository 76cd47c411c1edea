"""Entries of results are made from finished runs, and only from runs with one setting and one commit."""

import json

import numpy as np
import pytest
from lib import gather, results

from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import to_config


def run(seed, accuracy, length=256, commit="a1"):
    config = {"seed": seed, "data": {"table_seed": seed, "length": length}, "run": to_config(RunConfig()).to_dict()}
    return {"seed": seed, "accuracy": accuracy, "cpu": "x", "trained_by": [commit], "trained_on": ["cpu"]}, config


LINES = [{"step": 0}, {"step": 50, "train/total_flops": 2.0}]


def entry(*runs, lines=LINES):
    summaries, configs = zip(*runs, strict=True)
    return gather.entry(list(summaries), list(configs), [lines] * len(runs))


def test_mean_and_deviation_of_a_sample():
    out = entry(run(0, 0.9), run(1, 1.0), run(2, 0.8))
    assert out["mean"]["accuracy"] == pytest.approx(0.9) and out["sd"]["accuracy"] == pytest.approx(0.1)
    assert set(out["mean"]) == {"accuracy", "training_teraflops"} and out["missing"] == {}
    assert [one["seed"] for one in out["runs"]] == [0, 1, 2]
    assert out["runs"][0]["commit"] == "a1" and out["runs"][0]["machine"] == "cpu" and "cpu" not in out["runs"][0]


def test_one_run_has_no_deviation():
    out = entry(run(0, 0.9))
    assert out["mean"]["accuracy"] == 0.9 and out["sd"] == {} == out["missing"]


def test_a_number_that_some_runs_lack_has_no_mean_and_is_counted():
    out = gather.statistics([{"seed": 0, "transition": 50}, {"seed": 1, "transition": None}, {"seed": 2}])
    assert out == {"mean": {}, "sd": {}, "missing": {"transition": 2}}


def test_what_does_not_add_up_is_refused():
    same, other, newer = run(0, 0.9), run(1, 0.9, length=128), run(2, 0.9, commit="b2")
    with pytest.raises(ValueError, match=r"different seeds, got \[0, 0\]"):
        entry(same, same)
    with pytest.raises(ValueError, match="seeds 0 and 1 have different settings: data.length"):
        entry(same, other)
    with pytest.raises(ValueError, match=r"trained by different code.*'a1'.*'b2'"):
        entry(same, newer)


def test_settings_that_differ_are_named_by_their_dotted_names():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": [5]}
    assert gather.difference(old, new) == {"a.c": 4, "d": None, "e": [5]}


def test_directories_of_finished_runs_become_an_entry_that_follows_the_schema(tmp_path):
    for seed in (0, 1):
        summary, config = run(seed, 0.9 + seed / 100)
        (folder := tmp_path / f"seed_{seed}").mkdir()
        for name, value in (("summary", summary), ("config", config | {"model": "cram", "files": ["/home/x"]})):
            (folder / f"{name}.json").write_text(json.dumps(value))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    found, config = gather.of_directories([tmp_path / "seed_0", tmp_path / "seed_1"])
    assert found["mean"]["accuracy"] == pytest.approx(0.905) and "files" not in config
    made = gather.made_here(["measured on the sofa"])
    result = gather.result("x", "How much?", "python x.py", made, config=config, entries={"cram": found})
    results.check(result)
    (tmp_path / "seed_1" / "summary.json").unlink()
    with pytest.raises(ValueError, match="seed_1 holds no summary.json"):
        gather.of_directories([tmp_path / "seed_0", tmp_path / "seed_1"])


def test_curves_are_columns_of_what_figures_are_drawn_from():
    lines = [{"step": 0, "held_out/accuracy": np.nan, "train/loss": 1.0}, {"step": 5, "held_out/accuracy": 0.1234567}]
    columns = gather.curves(lines)
    assert set(columns) == {"step", "held_out/accuracy"} and columns["step"] == [0, 5]
    np.testing.assert_array_equal(columns["held_out/accuracy"], [np.nan, 0.12346])


def probed(step, mean_q):
    bins = [0.0] * 3 + [2.0]
    mean = {"probe/quality_bins_layer_1": bins, "probe/quality_query_recurring_layer_1": mean_q}
    return {"step": step, "train/total_flops": 2.0, **mean}


def test_quality_is_that_of_the_busiest_layer_at_three_moments():
    # Given a run of eleven lines whose attention fell at step 4, though it was logged at 3 and 6 only
    lines = [probed(3 * i, 0.1 * i) for i in range(11)]
    found = gather.quality(lines, {"busiest_layer": 1, "transition_step": 4})
    assert found == {"layer": 1, "step": [3, 3, 30], "bins": [[0, 0, 0, 2]] * 3, "recurring": [0.1, 0.1, 1.0]}
    assert gather.quality(lines, {"busiest_layer": 1, "transition_step": None})["step"] == [3, 15, 30]  # half-way
    # Then a layer that was not probed, or a model without layers that attend, has none
    assert gather.quality(lines, {"busiest_layer": 0, "transition_step": 4}) == {}
    assert gather.quality([{"step": 0}], {"steps": 9}) == {}
    assert gather.curves(lines, 1)["probe/quality_query_recurring_busiest"] == pytest.approx(0.1 * np.arange(11))


def test_an_entry_has_quality_only_where_there_is_some():
    (summary, config), lines = run(0, 0.9), [probed(0, np.nan), probed(5, 0.5)]
    seen = entry((summary | {"busiest_layer": 1, "transition_step": None}, config), lines=lines)
    assert seen["quality"][0]["recurring"] == [0.5, None, 0.5] and seen["runs"][0]["accuracy"] == 0.9
    unseen = entry((summary, config), lines=lines)
    assert "quality" not in unseen and unseen["curves"] == [{"step": [0, 5], "train/total_flops": [2.0, 2.0]}]


def test_training_costs_what_each_stretch_of_steps_did():
    # Given 10 steps of 4 sequences of 8 events, then 10 of 2 of 32, logged every 5, that cost less and less
    config = {
        "run": to_config(RunConfig(steps=20, length=32, batch=2, curriculum=((10, 8, 4),), log_every=5)).to_dict()
    }
    lines = [{"step": 0}] + [{"step": 5 * i, "train/total_flops": 100.0 / i} for i in (1, 2, 3, 4)]
    operations = 5 * (32 * (100 + 50) + 64 * (100 / 3 + 25))
    assert gather.training_teraflops(config, lines) == pytest.approx(operations / 1e12)


def test_patterns_are_those_of_the_training_batches():
    asked, chose = [[4.0, 4.0]] * 12, [[4.0, 4.0]] * 3 + [[0.0, 4.0]] * 4 + [[0.0, 0.0]] * 5
    lines = [{"step": 0}] + [
        {"step": 10 * i + 10, "train/asked_by_pattern": a, "train/asked_by_pattern_episodic": c}
        for i, (a, c) in enumerate(zip(asked, chose, strict=True))
    ]
    assert gather.patterns(lines)["settled"] == [40, 80]
    assert gather.patterns([{"step": 0}, {"step": 5}]) == {}
