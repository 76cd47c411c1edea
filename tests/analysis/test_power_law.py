"""Tests that the fit finds each curve in data made from it, and prefers it to the other curves."""

import numpy as np
import pytest

from cram_jax.analysis import power_law

K = np.geomspace(1, 5000, 30)
TRUTH = {
    "power_law": (np.log(0.9), 0.43),
    "exponential": (np.log(0.8), np.log(120.0)),
    "logistic": (np.log(4.0), np.log(300.0)),
}


def test_the_exponent_is_found_with_an_interval_that_means_something():
    random = np.random.default_rng(0)
    counts = np.full(K.shape, 400)
    covered = 0
    for _ in range(40):
        p = random.binomial(counts, power_law.curve("power_law", K, TRUTH["power_law"])) / counts
        found = power_law.fit(K, p, counts)
        assert abs(found.exponent - 0.43) < 0.05 and found.goodness > 0.95
        low, high = found.interval
        covered += low <= 0.43 <= high
    assert covered >= 32  # 95% of 40 are 38; the shares' spread differs from point to point, which it does not know


@pytest.mark.parametrize("name", TRUTH)
def test_a_curve_is_told_from_the_others(name):
    found = power_law.fit(K, power_law.curve(name, K, TRUTH[name]))
    goodness = {"power_law": found.goodness, **found.alternatives}
    assert goodness[name] > 0.9999
    assert all(value < goodness[name] - 0.003 for other, value in goodness.items() if other != name)


def test_a_point_counts_by_its_queries():
    p = power_law.curve("power_law", K, TRUTH["power_law"])
    wrong = p.copy()
    wrong[::3] = 1.0
    counts = np.where(wrong == p, 1e6, 1e-3)
    assert abs(power_law.fit(K, wrong, counts).exponent - 0.43) < 1e-3


@pytest.mark.parametrize(
    ("k", "p", "message"),
    [
        ([1, 2, 3], [0.5, 0.4, 0.3], "at least 4 points, got 3"),
        ([1, 2, 3, 4], [0.5, 0.4, 0.3, 1.3], "probabilities between 0 and 1"),
        ([1, 2, 3, 4], [0.5, 0.4, 0.3], "must have one length"),
    ],
)
def test_bad_input_is_named(k, p, message):
    with pytest.raises(ValueError, match=message):
        power_law.fit(k, p)
