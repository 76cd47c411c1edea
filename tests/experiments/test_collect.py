"""Runs are added up only where they are runs of one thing."""

import collect
import numpy as np
import pytest


def run(seed, accuracy, length=256, commit="a1"):
    config = {"seed": seed, "data": {"table_seed": seed, "length": length}}
    return {"seed": seed, "accuracy": accuracy, "cpu": "x", "trained_by": [commit]}, config


def test_mean_and_deviation_of_a_sample():
    summaries, configs = zip(run(0, 0.9), run(1, 1.0), run(2, 0.8), strict=True)
    out = collect.collect(list(summaries), list(configs))
    assert out["mean"] == {"accuracy": pytest.approx(0.9)} and out["sd"] == {"accuracy": pytest.approx(0.1)}
    np.testing.assert_array_equal([r["seed"] for r in out["runs"]], [0, 1, 2])


def test_what_does_not_add_up_is_refused():
    same, other, newer = run(0, 0.9), run(1, 0.9, length=128), run(2, 0.9, commit="b2")
    with pytest.raises(ValueError, match=r"different seeds, got \[0, 0\]"):
        collect.collect([same[0], same[0]], [same[1], same[1]])
    with pytest.raises(ValueError, match="seeds 0 and 1 have different settings"):
        collect.collect([same[0], other[0]], [same[1], other[1]])
    with pytest.raises(ValueError, match=r"trained by different code.*'a1'.*'b2'"):
        collect.collect([same[0], newer[0]], [same[1], newer[1]])


def test_curves_are_columns_of_what_figures_are_drawn_from():
    lines = [{"step": 0, "held_out/accuracy": np.nan, "train/loss": 1.0}, {"step": 5, "held_out/accuracy": 0.1234567}]
    columns = collect.curves(lines)
    assert set(columns) == {"step", "held_out/accuracy"} and columns["step"] == [0, 5]
    np.testing.assert_array_equal(columns["held_out/accuracy"], [np.nan, 0.12346])
