"""The transition detector on curves whose transition is known."""

import numpy as np

from cram_jax.analysis.transition import by_pattern, last_crossing, rise_at_end, smooth, transition_step

STEPS = np.arange(0, 1000, 10)


def test_a_sharp_fall_is_found_where_it_is():
    attention = np.where(STEPS < 430, 1.0, 0.02)
    assert transition_step(STEPS, attention) == 430


def test_a_gradual_fall_is_found_at_the_geometric_mean():
    # exp(-step/200): peak 1, end exp(-4.95); the geometric mean is crossed at step 495
    assert abs(transition_step(STEPS, np.exp(-STEPS / 200)) - 495) <= 20


def test_no_fall_is_no_transition():
    assert transition_step(STEPS, np.full(len(STEPS), 0.4)) is None
    assert transition_step(STEPS, np.linspace(1.0, 0.6, len(STEPS))) is None


def test_a_single_outlier_moves_nothing():
    attention = np.where(STEPS < 430, 1.0, 0.02)
    attention[80] = 1.0
    assert transition_step(STEPS, attention) == 430
    assert smooth(attention)[80] == 0.02


def test_the_last_fall_counts_when_attention_returned():
    attention = np.where((STEPS < 200) | ((STEPS >= 500) & (STEPS < 700)), 1.0, 0.02)
    assert transition_step(STEPS, attention) == 700


def test_a_rise_at_the_end_is_measured():
    attention = np.full(100, 0.02)
    assert rise_at_end(attention) == 0
    attention[80:] = np.linspace(0.02, 0.03, 20)
    # the smoothed ends are medians of 3 points: about one step of 0.0005 inside
    np.testing.assert_allclose(rise_at_end(attention), 0.45, atol=0.04)


def test_a_rise_after_a_dip_is_one():
    attention = np.full(100, 0.03)
    attention[80:90], attention[90:] = 0.015, 0.028
    np.testing.assert_allclose(rise_at_end(attention), 0.028 / 0.015 - 1)
    assert rise_at_end(attention[::-1][:90]) == 0


def test_the_last_crossing_is_from_where_a_curve_stays_below():
    falls = np.where(STEPS < 430, 1.0, 0.02)
    assert last_crossing(STEPS, falls, 0.5) == 430
    assert last_crossing(STEPS, falls[::-1] / 3, 0.5) == 0
    assert np.isnan(last_crossing(STEPS, falls[::-1], 0.5))


def test_patterns_that_fall_together_are_told_from_those_that_fall_one_by_one():
    asked = np.full((len(STEPS), 20), 50.0)
    slope = lambda at, width: np.clip(0.5 - (STEPS - at) / width, 0, 1)
    together = by_pattern(STEPS, asked, asked * np.stack([slope(500, 300)] * 20, axis=1))
    one_by_one = by_pattern(STEPS, asked, asked * np.stack([slope(300 + 20 * i, 40) for i in range(20)], axis=1))
    assert np.std(together["settled"]) == 0 and abs(np.mean(together["settled"]) - 500) <= 10
    # Two crossings, each to a logged step of 10
    np.testing.assert_allclose(together["width_of_mean"], np.median(together["widths"]), atol=20)
    np.testing.assert_allclose(one_by_one["settled"], 300 + 20 * np.arange(20), atol=20)
    assert one_by_one["width_of_mean"] > 5 * np.median(one_by_one["widths"])
