"""Runs are added up only where they are runs of one thing."""

import collect
import numpy as np
import pytest


def run(seed, accuracy, length=256):
    config = {"seed": seed, "data": {"table_seed": seed, "length": length}}
    return {"seed": seed, "accuracy": accuracy, "cpu": "x"}, config


def test_mean_and_deviation_of_a_sample():
    summaries, configs = zip(run(0, 0.9), run(1, 1.0), run(2, 0.8), strict=True)
    out = collect.collect(list(summaries), list(configs))
    assert out["mean"] == {"accuracy": pytest.approx(0.9)} and out["sd"] == {"accuracy": pytest.approx(0.1)}
    np.testing.assert_array_equal([r["seed"] for r in out["runs"]], [0, 1, 2])


def test_what_does_not_add_up_is_refused():
    same, other = run(0, 0.9), run(1, 0.9, length=128)
    with pytest.raises(ValueError, match=r"different seeds, got \[0, 0\]"):
        collect.collect([same[0], same[0]], [same[1], same[1]])
    with pytest.raises(ValueError, match="seeds 0 and 1 have different settings"):
        collect.collect([same[0], other[0]], [same[1], other[1]])
