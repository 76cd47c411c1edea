"""The change of patterns: one training in two directories, and what is said of its recovery."""

import json

import change
import numpy as np
import pytest
from commands import run
from configs import change as change_config
from lib import results
from srcd_cases import SMALLEST

from cram_jax.training.files import read

SETTINGS = SMALLEST | {
    "change.at": 20, "change.batches": 2, "run.steps": 40, "run.log_every": 10, "run.checkpoint_every": 20,
    "optimizer.warmup": 1, "optimizer.learning_rate": 0.01
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where it ran, its result, what it printed)."""
    at = tmp_path_factory.mktemp("change")
    said = run("change", "--config=experiments/configs/change.py:tiny", f"--workdir={at}", **SETTINGS)
    return at, results.load(at.name, at.parent), said


def test_training_goes_on_where_it_was_in_a_changed_world(finished):
    at, out, said = finished
    before, after = (read(at / name / "metrics.jsonl") for name in ("before", "after"))
    assert [line["step"] for line in before] == [0, 10, 20] and [line["step"] for line in after] == [20, 30, 40]
    # The same parameters: what hardly depends on the changed answers is measured alike on both sides of the change
    start, end, again = (line["held_out/dynamics_mse"] for line in (before[0], before[-1], after[0]))
    assert abs(again - end) < 0.01 * end < 0.1 * abs(start - end)
    assert before[-1]["train/price"] <= after[1]["train/price"] + 20
    assert "held_out/retrieval_accuracy_changed" in after[0] and "held_out/retrieval_accuracy_changed" not in before[0]
    settings = [json.loads((at / name / "config.json").read_text()) for name in ("before", "after")]
    assert [s["data"]["changed"] for s in settings] == [0, 3] and [s["run"]["steps"] for s in settings] == [20, 40]
    assert settings[0]["optimizer"] == settings[1]["optimizer"] and settings[0]["price"] == settings[1]["price"]
    (run,), (curve,) = out["entries"]["seed 0"]["runs"], out["entries"]["seed 0"]["curves"]
    assert run["at"] == 20 and run["consolidate_batches"] == 2
    assert {"before_consolidate_attention_tokens", "after_consolidate_attention_tokens"} <= run.keys()
    assert curve["step"] == [0, 10, 20, 20, 30, 40] and curve["changed"] == [0, 0, 0, 1, 1, 1]
    assert curve["held_out/retrieval_accuracy_changed"][:3] == [None] * 3
    assert (at / "figure.png").stat().st_size > 5000 and "3 of 30 patterns change at step 20" in said


def test_recovery_is_for_good_only_where_it_stays():
    line = lambda step, accuracy, attention: {
        "step": step, "held_out/retrieval_accuracy_changed": accuracy, "held_out/attention_tokens": attention
    }  # fmt: skip
    before = [line(step, 1, 1.0 if step == 0 else 0.02) for step in range(6)]
    accuracies, attentions = (0, 0.5, 0.99, 0.9, 0.995, 1), (0.02, 0.03, 0.05, 0.021, 0.03, 0.021)
    after = [line(5 + 10 * i, *both) for i, both in enumerate(zip(accuracies, attentions, strict=True))]
    found = change.recovery(before, after)
    np.testing.assert_allclose(found["attention_tokens_before"], 0.02)
    assert (found["accuracy_changed_lowest"], found["attention_tokens_highest"]) == (0, 0.05)
    assert (found["steps_to_99"], found["steps_to_99_for_good"]) == (20, 40)
    assert found["steps_to_usual_attention_for_good"] == 50


def test_the_config_goes_on_as_long_again():
    config = change_config.get_config("tiny")
    assert config.run.steps == config.optimizer.steps == 2 * config.change.at
