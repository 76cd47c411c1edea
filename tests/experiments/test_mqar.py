"""The MQAR experiment: models that carry alike are compared, and one is trained as a person would."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from configs import mqar as mqar_config
from lib import results
from mqar_cases import SMALLEST, environment

from cram_jax.analysis.accounting import state_bytes
from cram_jax.tasks.mqar_task import MQARTask
from cram_jax.training import experiment

ROOT = Path(__file__).parents[2]


def model(name: str, variant: str = "small", **settings):
    """The stack a config describes, and its run."""
    config = mqar_config.get_config(variant)
    config.model = name
    config[name].update(settings)
    learner, run = experiment.build(config, MQARTask())
    return learner.model, run


def test_states_are_as_large_as_the_config_says():
    carried = lambda name, **settings: state_bytes(model(name, **settings)[0].init_cache(1))
    numbers = 2 * 2 * 4 * 8  # layers, heads, keys, values
    for name in ("gated_linear", "mamba2", "gated_delta"):
        assert carried(name) == 4 * numbers
    # An importance doubles it, and half the keys make it equal again
    assert carried("palimpsa") == carried("metamamba2") == 8 * numbers
    assert carried("palimpsa", key_dim=2) == carried("metamamba2", state=2) == 4 * numbers
    # A transformer carries keys and values of 32 tokens, and where it stands
    assert carried("transformer") == 2 * (4 * 2 * 32 * 64 + 4)


@pytest.mark.parametrize("variant", mqar_config.VARIANTS)
def test_every_model_can_be_built(variant):
    for name in set(experiment.MODELS) & set(mqar_config.get_config(variant)):
        stack, run = model(name, variant)
        params = jax.eval_shape(stack.init, jax.random.key(0))
        x_BxTxD = jax.ShapeDtypeStruct((run.batch, run.length, stack.layer.D), "float32")
        y_BxTxD, _ = jax.eval_shape(lambda p, x, s=stack: s.apply(p, s.init_state(), x), params, x_BxTxD)
        assert y_BxTxD.shape == x_BxTxD.shape


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="unknown variant 'large'"):
        mqar_config.get_config("large")


def test_a_run_learns_to_recall_and_reports(tmp_path):
    # Given two pairs of eight words, which a small state holds
    command = [sys.executable, "experiments/mqar.py", *SMALLEST, f"--workdir={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:]
    out = json.loads((tmp_path / "summary.json").read_text())
    # Then it recalls, where guessing among the values of a sequence gives half
    assert out["accuracy"] > 0.9 and abs(out["validation_accuracy"] - out["accuracy"]) < 0.05
    assert out["state_bytes"] == 2 * 2 * 8 * 4 * 4 and "accuracy of values asked for" in done.stdout


def test_what_a_trained_palimpsa_holds_important_can_be_drawn(tmp_path):
    few = [flag for flag in SMALLEST if "mamba2" not in flag and "steps" not in flag and "every" not in flag]
    few += ["--config.model=palimpsa", "--config.palimpsa.D=32", "--config.palimpsa.heads=2", "--config.run.steps=20"]
    few += ["--config.run.log_every=20", "--config.run.checkpoint_every=20", f"--workdir={tmp_path}"]
    for command in (["experiments/mqar.py", *few], ["experiments/plasticity.py", f"--workdir={tmp_path}"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / "plasticity" / "figure.png").stat().st_size > 5000
    layers = results.load("plasticity", tmp_path)["data"]["layers"]
    assert [np.shape(layer["importance_TxHx3"]) for layer in layers] == [(8, 2, 3)] * 2
    empty = [sys.executable, "experiments/plasticity.py", f"--workdir={tmp_path}/none"]
    done = subprocess.run(empty, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "holds no finished run" in done.stderr
