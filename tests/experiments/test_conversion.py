"""The conversion experiment: both ways begin as the same function, train, and are compared seed by seed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from configs import conversion as conversion_config
from lib import results
from mqar_cases import SMALLEST, environment

from cram_jax.tasks.mqar import MQARConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.metrics import read
from cram_jax.training.settings import from_config

ROOT = Path(__file__).parents[2]
FEW = [flag for flag in SMALLEST if "pairs" not in flag and "model" not in flag]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where it ran, its result, what it printed, launch)."""
    at = tmp_path_factory.mktemp("conversion")
    command = [
        sys.executable, "experiments/conversion.py", *FEW, "--config.metamamba2.D=32", "--config.metamamba2.heads=2",
        "--config.metamamba2.groups=2", "--config.metamamba2.rank=2", "--config.data.pairs=1",
        "--config.tune.pairs=2", "--config.tune.length=8",
        "--config.tune.steps=100", f"--runs={at}/runs", f"--results={at}/out", "--rates=1e-2", "--seeds=2",
    ]  # fmt: skip
    launch = lambda: subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    done = launch()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return at, results.load("out", at), done.stdout, launch


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_both_phases_can_be_run(variant):
    config = conversion_config.get_config(variant)
    config.run.steps = config.tune.steps
    assert from_config(RunConfig(), config.run).steps == config.tune.steps
    assert from_config(MQARConfig(), config.data).pairs < config.tune.pairs
    assert (config.mamba2.D, config.mamba2.groups) == (config.metamamba2.D, config.metamamba2.groups)


def test_a_training_that_did_not_learn_goes_no_further(tmp_path):
    command = [sys.executable, "experiments/conversion.py", *FEW, "--config.data.pairs=2", "--config.tune.pairs=2"]
    command += [
        "--config.tune.length=8",
        "--config.run.steps=20",
        "--config.run.log_every=20",
        "--config.run.checkpoint_every=20",
    ]
    command += ["--config.tune.steps=20", f"--runs={tmp_path}/runs", f"--results={tmp_path}/out", "--seeds=1"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "the first phase reached" in done.stderr and "tune.least=0.95" in done.stderr


def test_both_ways_begin_where_the_training_ended_and_learn(finished):
    at, result, _, _ = finished
    for seed in range(2):
        runs = {way: result["entries"][way]["runs"][seed] for way in ("as it is", "metaplastic")}
        starts = [run["accuracy_start"] for run in runs.values()]
        # Trained on one pair, asked for two: neither as if untrained nor as if all were known, and the same for both
        assert starts[0] == starts[1] and 0.3 < starts[0] < 0.9
        assert all(run["accuracy"] > starts[0] + 0.05 for run in runs.values())
        np.testing.assert_allclose(
            result["data"]["gain"][seed], runs["metaplastic"]["accuracy"] - runs["as it is"]["accuracy"], atol=1e-12
        )
    for way in ("as_it_is", "metaplastic"):
        lines = read(at / "runs" / way / "rate_0.01_seed_1" / "metrics.jsonl")
        assert [line["step"] for line in lines] == [0, 100]
    entries = result["entries"]
    assert entries["metaplastic"]["settings"].items() >= {"model": "metamamba2", "data.pairs": 2}.items()
    assert entries["trained"]["settings"] == {} and [run["steps"] for run in entries["trained"]["runs"]] == [100] * 2
    assert (at / "out" / "figure.png").stat().st_size > 5000


def test_finished_runs_are_kept(finished):
    at, _, said, launch = finished
    files = sorted((at / "runs").rglob("summary.json"))
    before = [file.stat().st_mtime_ns for file in files]
    again = launch()
    assert again.returncode == 0 and [file.stat().st_mtime_ns for file in files] == before
    assert "metaplastic above as it is" in said and "metaplastic above as it is" in again.stdout
