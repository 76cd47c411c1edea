"""Eq 14's data are what the logged lines say, and seeds add up."""

import exposure
import numpy as np
from lib import gather, results

from cram_jax.training import learner as learning


def lines(chance):
    """A run of 20 steps whose bins of exposures hold 100 queries a step each; chance: to attend, by bin."""
    bins = learning.OCTAVE * learning.OCTAVES
    count = np.where(np.arange(bins) < 18, 100.0, 0.0)
    line = {"train/exposed": count.tolist(), "train/exposed_episodic": (count * chance).tolist()}
    return [{"step": 0}, {"step": 10, **line}, {"step": 20, **line}]


def test_counts_are_those_of_the_whole_run_at_the_bins_middles():
    chance = np.linspace(1, 0, learning.OCTAVE * learning.OCTAVES)
    found = gather.exposures(lines(chance))
    assert found["count"] == [2000.0] * 18
    np.testing.assert_allclose(found["episodic"], 2000 * chance[:18], atol=1e-3)
    # Bins of k + 1 from 1, 1.4 (none), 2, 2.8 (that is 3), 4 (and 5), 5.7 (6 and 7), 8 (to 11) ... on
    assert found["k"][0] == 0 and found["k"][2:4] == [1, 2]
    np.testing.assert_allclose(found["k"][4:7], np.sqrt([4 * 5, 6 * 7, 8 * 11]) - 1, atol=1e-3)
    assert gather.exposures([{"step": 0}, {"step": 10}]) == {}


def test_a_power_law_is_found_over_seeds(tmp_path, monkeypatch, capsys):
    k = np.geomspace(1, 2000, 20)
    seed = lambda gamma: {"k": k.tolist(), "count": [500.0] * 20, "episodic": (500 * (k + 1) ** -gamma).tolist()}
    source = {"data": {"variant": "tiny"}, "entries": {"cram": {"exposures": [seed(0.4), seed(0.5)]}}}
    load = results.load
    monkeypatch.setattr(exposure.results, "load", {"recurrence": source}.get)
    monkeypatch.setattr(exposure, "TARGET", tmp_path / "out")
    exposure.main("recurrence", "cram")
    result = load("out", tmp_path)
    assert result["made_by"]["from"] == ["recurrence"]
    found = result["data"]["cram (tiny)"]
    np.testing.assert_allclose(found["exponent_by_seed"], [0.4, 0.5], atol=1e-6)
    assert 0.4 < found["exponent"] < 0.5 and found["seeds"] == 2
    assert found["goodness"]["power_law"] > max(found["goodness"]["exponential"], found["goodness"]["logistic"])
    assert (tmp_path / "out" / "figure.png").stat().st_size > 5000 and "gamma 0.4" in capsys.readouterr().out


def test_exposures_at_which_all_attend_by_design_are_left_out_of_the_second_fit():
    k = np.geomspace(1, 2000, 20)
    free = np.where(k < 100, 1.0, (k / 100 + 1) ** -1.5)
    found = exposure.fitted([{"k": k.tolist(), "count": [500.0] * 20, "episodic": (500 * free).tolist()}])
    assert found["once_free"]["first_k"] == k[k >= 100][0] and found["once_free"]["bins"] == np.sum(k >= 100)
    assert found["once_free"]["goodness"]["power_law"] > 0.97 > found["goodness"]["power_law"] + 0.1
    early = {"k": k.tolist(), "count": [500.0] * 20, "episodic": [500.0] * 17 + [400.0, 300.0, 200.0]}
    assert exposure.fitted([early])["once_free"] is None


def test_patterns_that_fall_each_at_its_own_time_are_told_from_their_mean():
    one = {"settled": [700.0, 800.0, 900.0, None], "widths": [50.0, 100.0, None, 150.0], "width_of_mean": 400.0}
    found = exposure.transitions([one, one | {"width_of_mean": 600.0}])
    assert (found["width"], found["width_of_mean"], found["patterns"]) == (100, 500, 6)
    assert 700 <= found["settled"][0] < found["settled"][1] <= 900
    gone = one | {"width_of_mean": None}
    assert exposure.transitions([one, gone])["width_of_mean"] == 400
