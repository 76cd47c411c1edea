"""What a training needs on chips that are not here."""

import re
from importlib import util
from types import SimpleNamespace

import jax
import plan_run
import pytest
from commands import refused, run
from lib import results

from cram_jax.training import plan
from cram_jax.training.loop import RunConfig

CONFIG = "--config=experiments/configs/srcd.py:tiny"
SMALL = {"model": "mamba2", "depth": 1, "run.batch": 8, "run.curriculum": "()"}


@pytest.fixture(autouse=True)
def compiler():
    pytest.importorskip("libtpu", reason="the TPU's compiler")


def test_a_step_is_planned_for_chips_that_are_not_here(tmp_path):
    said = run("plan_run", CONFIG, "--topology=v5e:2x2", "--result=plans", f"--results={tmp_path}", **SMALL)
    row = {cells[1].strip(): cells[2].strip() for line in said.splitlines() if len(cells := line.split("│")) > 2}
    assert "4 TPU v5 lite of v5e:2x2" in said and row["chips that train"] == "4"
    size = lambda name: float(re.match(r"[\d,.]+", row[name])[0].replace(",", "")) * 1e6
    parameters = int(row["parameters of the model"].replace(",", ""))
    # Parameters and Adam's two means, in float32
    assert 12 * parameters < size("state of the training") + 5e4 < 13 * parameters + 2e5
    parts = sum(map(size, ("state of the training", "its part of the batch", "all between")))
    assert size("memory of a chip") == pytest.approx(parts, abs=2e5)
    # What is sent are the gradients, and a few sums
    assert 4 * parameters <= size_of_sent(row) + 5e4 < 6 * parameters + 2e5
    assert int(row["calls of our kernels"]) > 0

    # The same is in the result
    found = results.load("plans", tmp_path)
    made = found["data"]["v5e:2x2"]
    assert found["command"].startswith("python experiments/plan_run.py --config=")
    assert made["chips"] == 4 and made["rows"] == 2 and made["parameters"] == parameters
    assert made["sends"] == 2 * made["sent"]["all-reduce"] == pytest.approx(2 * size_of_sent(row), abs=2e5)
    assert made["least_seconds"]["computed"] == made["flops"] / made["chip"]["flops"] > 0


def size_of_sent(row: dict) -> float:
    kind, number, unit = row["results of sending"].split()
    assert (kind, unit) == ("all-reduce:", "MB")
    return float(number) * 1e6


def test_what_cannot_be_planned_is_named():
    assert "no topology 'v9:2x2' to compile for" in refused("plan_run", CONFIG, "--topology=v9:2x2", **SMALL)
    if not util.find_spec("jax_cuda12_plugin"):
        said = refused("plan_run", CONFIG, "--topology=h100:8", **SMALL)
        assert "no topology 'h100:8'" in said and "pip install jax-cuda12-plugin" in said
    said = refused("plan_run", CONFIG, "--topology=v5e:2x2", **SMALL | {"run.mesh": "data:3"})
    assert "batches of 8 sequences do not divide among the 3 devices of run.mesh=data:3" in said


def test_a_batch_that_no_chip_holds_is_named(monkeypatch):
    def compiled(lowered):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm.\nMore lines")

    monkeypatch.setattr(plan, "compiled", compiled)
    said = refused("plan_run", CONFIG, "--topology=v5e:2x2", **SMALL)
    assert "a chip cannot hold its part of a batch of 8 sequences: RESOURCE_EXHAUSTED" in said and "More" not in said


def test_a_search_ends_where_nothing_fits(monkeypatch):
    def planned(learner, run, here):
        if run.batch > 40:
            raise plan.TooLarge
        return SimpleNamespace(fits=run.batch <= 20)

    monkeypatch.setattr(plan, "plan", planned)
    for first, largest in ((5, 20), (25, 0), (50, 0)):
        assert plan_run.largest(None, RunConfig(batch=first), []) == largest


def test_each_chip_gets_as_many_sequences_and_a_part_of_the_parameters(monkeypatch):
    def planned(learner, run, here):
        asked.append((len(here), run.batch, run.mesh))
        raise ValueError("enough")

    asked = []
    monkeypatch.setattr(plan, "plan", planned)
    for topology in ("v5e:2x2", "v5e:2x4"):
        refused("plan_run", CONFIG, f"--topology={topology}", "--rows=3", **SMALL)
    assert asked == [(4, 12, "data:1,fsdp:4"), (8, 24, "data:1,fsdp:8")]
