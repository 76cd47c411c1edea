"""A comparison trains each of its runs once, in parts or whole, and says what came of every seed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from configs import comparisons
from lib import results
from mqar_cases import environment

from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import experiment
from cram_jax.training.settings import from_config

ROOT = Path(__file__).parents[2]
# Two seeds of the smallest training there is
CODE = """
import compare
from configs import comparisons, srcd
small = {"model": "transformer", "run.steps": 20, "run.log_every": 10, "run.checkpoint_every": 20, "run.length": 32,
         "run.batch": 4, "run.held_out_tokens": 256, "run.final_tokens": 512, "price.start": 5, "price.plateau": 1.0}
asked = comparisons.Comparison("Does it recur?", "tiny", range(2), {"a transformer": small})
comparisons.COMPARISONS["recurrence"] = asked
compare.experiment.launch(compare.main)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where it ran, its result, launch with more flags)."""
    at = tmp_path_factory.mktemp("compare")

    def launch(*more):
        command = [sys.executable, "-c", CODE, "--name=recurrence", f"--runs={at}/runs", f"--results={at}/out", *more]
        env = environment() | {"PYTHONPATH": f"{ROOT}/experiments"}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=400)

    part = launch("--part=0/2")
    assert part.returncode == 0, part.stdout[-2000:] + part.stderr[-2000:]
    made = len(list(at.rglob("summary.json")))
    assert made == 1 and not (at / "out").exists()  # every other run, and no result yet
    done = launch()
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return at, results.load("out", at), launch


def test_every_entry_has_all_its_seeds(finished):
    at, result, _ = finished
    assert list(result["entries"]) == ["a transformer"]
    for found in result["entries"].values():
        assert [run["seed"] for run in found["runs"]] == [0, 1] and found["diverged"] == 0
        each = [run["retrieval_accuracy"] for run in found["runs"]]
        np.testing.assert_allclose(found["mean"]["retrieval_accuracy"], np.mean(each))
        np.testing.assert_allclose(found["sd"]["retrieval_accuracy"], np.std(each, ddof=1))
        assert [curve["step"] for curve in found["curves"]] == [[0, 10, 20]] * 2
        assert found["settings"]["model"] == "transformer" and "machine" in found["runs"][0]
        assert not [name for name in found["mean"] if "_layer_" in name]
    assert (
        result["question"] == "Does it recur?" and result["made_by"]["commits"] and result["data"]["variant"] == "tiny"
    )
    assert (at / "out" / "figure.png").stat().st_size > 5000


def test_finished_runs_are_kept(finished):
    at, _, launch = finished
    summaries = sorted(at.rglob("summary.json"))
    before = [file.stat().st_mtime_ns for file in summaries]
    assert len(before) == 2 and launch("--part=1/2").returncode == 0
    assert [file.stat().st_mtime_ns for file in summaries] == before


@pytest.mark.parametrize("name", comparisons.COMPARISONS)
def test_all_that_is_listed_can_be_built(name):
    comparison = comparisons.COMPARISONS[name]
    for label in comparison.entries:
        config = comparisons.settings(comparison, label, seed=1)
        data = from_config(SRCDConfig(), config.data)
        assert data.table_seed == 1, "another seed has other patterns"
        experiment.build(config, SRCDTask(data, config.dynamics_weight))
    with pytest.raises(KeyError, match="unknown setting 'cram.semantic.rang'"):
        comparisons.settings(comparison._replace(entries={"x": {"cram.semantic.rang": 1}}), "x", 0)
