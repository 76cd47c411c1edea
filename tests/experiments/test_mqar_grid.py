"""The comparison chooses on validation data, never trains a finished run again, and shows every seed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from lib import results
from mqar_cases import SMALLEST, environment

ROOT = Path(__file__).parents[2]


def test_rates_are_chosen_on_validation_data_and_finished_runs_are_kept(tmp_path):
    # Given one model, two rates of which one is hopeless, and two seeds
    code = (
        "import mqar_grid, sys; mqar_grid.ENTRIES = {'mamba2': ('mamba2', {})};"
        "mqar_grid.experiment.launch(mqar_grid.main)"
    )
    more = [f"--runs={tmp_path}/runs", f"--results={tmp_path}/mqar", "--rates=1e-2,1e-6", "--seeds=2"]
    command = [sys.executable, "-c", code, *SMALLEST, *more]
    env = environment() | {"PYTHONPATH": f"{ROOT}/experiments"}
    launch = lambda: subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    done = launch()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found = results.load("mqar", tmp_path)["entries"]["mamba2"]
    # Then the one that learns is taken, and its seeds are what is reported
    chosen = found["chosen"]
    assert chosen["learning_rate"] == 1e-2 and set(chosen["validation_accuracy"]) == {"0.01", "1e-06"}
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    np.testing.assert_allclose(found["mean"]["accuracy"], np.mean([run["accuracy"] for run in found["runs"]]))
    assert found["settings"] == {}  # model and rate are those of the result's config
    assert (tmp_path / "mqar" / "figure.png").stat().st_size > 5000
    # And a second launch trains nothing
    summaries = sorted((tmp_path / "runs").rglob("summary.json"))
    before = [file.stat().st_mtime_ns for file in summaries]
    assert len(before) == 4 and launch().returncode == 0
    assert [file.stat().st_mtime_ns for file in summaries] == before


SIZES = """
import json, mqar, mqar_grid
from configs import mqar as config
from cram_jax.analysis import accounting
models = {label: mqar.build(mqar_grid.settings(config.get_config(), label))[0].model for label in mqar_grid.ENTRIES}
print(json.dumps({label: (accounting.state_bytes(m.init_cache(1)), m.layer.D, m.depth) for label, m in models.items()}))
"""


def test_what_is_called_equal_is_equal():
    env = environment() | {"PYTHONPATH": f"{ROOT}/experiments"}  # several mains do not go into one process
    done = subprocess.run([sys.executable, "-c", SIZES], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    sizes = json.loads(done.stdout.splitlines()[-1])
    state = {label: size[0] for label, size in sizes.items()}
    assert state["palimpsa"] == state["metamamba2"] == state["mamba2, twice the state"] == 2 * state["mamba2"]
    assert state["palimpsa, half the keys"] == state["mamba2"] == state["gated_linear"] == state["gated_delta"]
    assert {tuple(size[1:]) for size in sizes.values()} == {(64, 2)}
