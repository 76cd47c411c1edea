"""The MQAR experiment: models that carry alike are compared, and one is trained as a person would."""

import json
import sys

import jax
import mqar
import pytest
from configs import mqar as mqar_config

from cram_jax.training import experiment


def of_model(name: str, **sections):
    config = mqar_config.get_config("small")
    config.model = name
    for section, values in sections.items():
        config[section].update(values)
    return config


def test_states_are_as_large_as_the_config_says():
    carried = lambda name, **sections: mqar.state_bytes(mqar.build(of_model(name, **sections))[0])
    numbers = 2 * 4 * 16 * 16  # layers, heads, keys, values
    for name in ("gated_linear", "mamba2", "gated_delta"):
        assert carried(name) == 4 * numbers
    # An importance doubles it, and half the keys make it equal again
    assert carried("palimpsa") == carried("metamamba2") == 8 * numbers
    assert carried("palimpsa", palimpsa={"key_dim": 8}) == carried("metamamba2", metamamba2={"state": 8}) == 4 * numbers


def test_every_model_of_every_variant_can_be_built_and_takes_the_task():
    for variant in mqar_config.VARIANTS:
        config = mqar_config.get_config(variant)
        for name in experiment.MODELS:
            config.model = name
            learner, run = mqar.build(config)
            params = jax.eval_shape(learner.model.init, jax.random.key(0))
            tokens = jax.ShapeDtypeStruct((run.batch, run.length, learner.model.layer.D), "float32")
            y_BxTxD, _ = jax.eval_shape(
                lambda p, x, learner=learner: learner.model.apply(p, learner.model.init_state(), x), params, tokens
            )
            assert y_BxTxD.shape == tokens.shape
    with pytest.raises(ValueError, match="unknown variant 'large'"):
        mqar_config.get_config("large")


def test_a_run_learns_to_recall_and_reports(tmp_path, monkeypatch, capsys):
    # Given two pairs of eight words, which a small state holds
    config = of_model(
        "mamba2",
        mamba2={"D": 32, "heads": 2, "groups": 2},
        data={"vocabulary": 8, "pairs": 2},
        optimizer={"learning_rate": 1e-2, "warmup": 10},
        run={"steps": 100, "length": 8, "batch": 64, "log_every": 100, "checkpoint_every": 100},
    )
    config.run.held_out_tokens = config.run.final_tokens = 4096
    monkeypatch.setattr(mqar, "CONFIG", type("Flag", (), {"value": config}))
    monkeypatch.setattr(mqar, "WORKDIR", type("Flag", (), {"value": str(tmp_path)}))
    mqar.main(sys.argv[:1])
    out = json.loads((tmp_path / "summary.json").read_text())
    # Then it recalls, where guessing among the values of a sequence gives half
    assert out["accuracy"] > 0.9 and abs(out["validation_accuracy"] - out["accuracy"]) < 0.05
    assert out["state_bytes"] == 2 * 2 * 16 * 16 * 4
    assert "accuracy of values asked for" in capsys.readouterr().out
