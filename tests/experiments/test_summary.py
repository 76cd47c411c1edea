"""Numbers of a run's summary, from logged lines with known answers."""

import numpy as np
import pytest
from lib import summary


def line(step, released, tokens, layers):
    return {
        "step": step,
        "train/released": released,
        "train/attention_tokens": tokens + 0.03,
        "held_out/attention_tokens": tokens,
        "held_out/attention_utilisation": sum(layers) / 2,
        **{f"held_out/attention_layer_{i}": share for i, share in enumerate(layers)},
    }


LINES = [
    line(0, 0, 1.0, (1.0, 1.0)),
    line(10, 0, 1.0, (1.0, 1.0)),
    line(20, 0.6, 0.40, (0.1, 0.4)),  # released after four of these ten steps
    line(30, 1, 0.20, (0.1, 0.2)),
    line(40, 1, 0.05, (0.0, 0.05)),
    line(50, 1, 0.05, (0.0, 0.05)),
]


def test_the_attention_curve_tells_design_from_learning():
    out = summary.attention_curve(LINES)
    assert out["attention_tokens_start"] == out["attention_tokens_peak"] == 1.0
    assert out["attention_utilisation_peak"] == 1.0
    assert out["router_released_step"] == 20
    assert out["attention_tokens_peak_after_release"] == 0.40
    np.testing.assert_allclose(out["attention_tokens_training_end"], 0.08)
    never = summary.attention_curve(LINES[:2])
    assert never["router_released_step"] is None and never["transition_step"] is None


def test_lines_that_are_lost_are_counted():
    assert summary.missing_lines(LINES, 50, 10) == []
    assert summary.missing_lines([*LINES[:2], LINES[4]], 50, 10) == [20, 30, 50]
    assert summary.missing_lines(LINES[3:], 60, 10) == [0, 10, 20, 60]
    began = {name: value for name, value in LINES[3].items() if not name.startswith("train/")}
    assert summary.missing_lines([began, *LINES[4:]], 60, 10) == [60]  # a run that began at step 30
    lost = [{name: value for name, value in LINES[-1].items() if not name.startswith("train/")}]
    assert np.isnan(summary.attention_curve(lost)["attention_tokens_training_end"])


def test_the_busiest_layer_is_the_one_that_goes_on_attending():
    # before the release all layers attend alike, and would make the first one the busiest
    assert summary.busiest_layer(LINES) == 1


@pytest.mark.parametrize(
    ("said", "found", "error"),
    [([0.9, 0.1], [0.9, 0.1], 0.0), ([0.9, 0.1], [0.5, 0.5], 0.4), ([0.8, 0.8], [1.0, 0.6], 0.0)],
)
def test_calibration_error_is_the_distance_of_means_in_bins(said, found, error):
    # Given two tokens, each in the bin of its q-hat
    bins = {name: np.zeros(20) for name in ("count", "familiarity", "quality")}
    for q_hat, q in zip(said, found, strict=True):
        place = int(q_hat * 20 + 1e-9)
        for name, value in (("count", 1), ("familiarity", q_hat), ("quality", q)):
            bins[name][place] += value
    probed = {f"reliability_query_{name}_layer_0": b.tolist() for name, b in bins.items()}
    np.testing.assert_allclose(summary.calibration_errors(probed, 0)["familiarity_calibration_error_query"], error)


def test_versions_name_hardware_software_and_code():
    assert {"device", "cpu", "python", "jax", "flax", "optax", "commit"} <= summary.versions().keys()


def test_a_comparison_shows_means_with_their_spread_under_headings():
    columns = (summary.Column("right", "accuracy"), summary.Column("bytes", "size", ",.0f"))
    found = {"mean": {"accuracy": 0.5, "size": 2000.0}, "sd": {"accuracy": 0.01}, "runs": [{}, {}], "settings": {}}
    alone = {
        "mean": {"accuracy": 1.0},
        "sd": {},
        "runs": [{}],
        "settings": {"optimizer.learning_rate": 2e-3},
        "diverged": 1,
    }
    assert summary.compared(columns, {"a": found | {"chosen": {"learning_rate": 0.1}}, "b": alone}) == [
        ("", "right", "bytes", "learning rate", "seeds"),
        ("a", "50.00% +- 1.00%", "2,000", "0.1", "2"),
        ("b", "100.00%", "-", "0.002", "1, 1 diverged"),
    ]  # fmt: skip
