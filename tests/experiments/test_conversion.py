"""The conversion experiment: both ways begin as the same function, train, and are compared seed by seed."""

import mqar
import numpy as np
import pytest
from commands import refused, run, written
from configs import conversion as conversion_config
from lib import results
from mqar_cases import SMALLEST

from cram_jax.tasks.mqar import MQARConfig
from cram_jax.training.files import read
from cram_jax.training.loop import RunConfig
from cram_jax.training.settings import from_config

FEW = {
    **SMALLEST, "metamamba2.D": 32, "metamamba2.heads": 2, "metamamba2.groups": 2, "metamamba2.rank": 2,
    "data.pairs": 1, "tune.pairs": 2, "tune.length": 8, "tune.steps": 100, "tune.rates": "(1e-2,)",
}  # fmt: skip


def launch(at, *more, **settings) -> str:
    return run("conversion", f"--runs={at}", *more, **FEW | settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where it ran, its result, what it printed), of two seeds; the first trained as a part of its own."""
    at = tmp_path_factory.mktemp("runs") / "conversion"
    assert "gathers all parts" in launch(at, "--seeds=2", "--part=0/2")
    assert len(written(at)) == 3 and not (at / "result.json").exists()
    said = launch(at, "--seeds=2")
    return at, results.load(at.name, at.parent), said


@pytest.mark.parametrize("variant", ["small", "paper"])
def test_both_phases_can_be_run(variant):
    config = conversion_config.get_config(variant)
    config.run.steps = config.tune.steps
    assert from_config(RunConfig(), config.run).steps == config.tune.steps
    assert from_config(MQARConfig(), config.data).pairs < config.tune.pairs
    assert (config.mamba2.D, config.mamba2.groups) == (config.metamamba2.D, config.metamamba2.groups)


def test_a_training_that_did_not_learn_goes_no_further(tmp_path, monkeypatch):
    trained = []

    def train(config, workdir):
        trained.append(config.data.pairs)
        return {"seed": config.seed, "accuracy": (0.99, 0.4)[config.seed], "trained_by": ["a"]}

    monkeypatch.setattr(mqar, "train", train)
    said = refused("conversion", f"--runs={tmp_path}", "--seeds=2", **FEW)
    assert "the training on 1 pairs reached [0.99, 0.4]" in said and "tune.least=0.95" in said and trained == [1, 1]


def test_both_ways_begin_where_the_training_ended_and_learn(finished):
    at, result, said = finished
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
        lines = read(at / way / "rate_0.01_seed_1" / "metrics.jsonl")
        assert [line["step"] for line in lines] == [0, 100]
    entries = result["entries"]
    assert entries["metaplastic"]["settings"].items() >= {"model": "metamamba2", "data.pairs": 2}.items()
    assert entries["trained"]["settings"] == {} and [run["steps"] for run in entries["trained"]["runs"]] == [100] * 2
    assert (at / "figure.png").stat().st_size > 5000 and "metaplastic minus as it is" in said


def test_finished_runs_are_kept(finished):
    at, result, _ = finished
    before = written(at)
    assert "metaplastic minus as it is" in launch(at, "--seeds=2") and written(at) == before and len(before) == 6
    assert results.load(at.name, at.parent) == result
