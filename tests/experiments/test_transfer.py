"""The transfer experiment: what goes over from the source, what is frozen, what is counted, and what is said of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from configs import srcd as srcd_config
from configs import transfer as transfer_config
from lib import results
from mqar_cases import environment

from cram_jax.tasks.irregular_generated import write_generated
from cram_jax.training.metrics import read

ROOT = Path(__file__).parents[2]
SMALLEST = {
    "run.steps": 20, "run.log_every": 20, "run.checkpoint_every": 20, "run.length": 32, "run.batch": 4,
    "run.held_out_tokens": 128, "run.final_tokens": 100_000, "depth": 1, "price.start": 5, "price.plateau": 1.0,
    "targets.records.generated.series": 100, "targets.records.generated.events": 40,
}  # fmt: skip
CALLED = "generated files of the PhysioNet 2012 format"


def command(at: Path, *more: str) -> subprocess.CompletedProcess:
    flags = [f"--config.{name}={value}" for name, value in SMALLEST.items()]
    flags += [f"--runs={at}/runs", f"--results={at}/out", "--seeds=1", *more]
    return subprocess.run(
        [sys.executable, "experiments/transfer.py", *flags],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(where it ran, its result, what it printed): CRAM on generated records."""
    at = tmp_path_factory.mktemp("transfer")
    done = command(at, "--target=records", "--model=cram")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return at, results.load("out", at), done.stdout


SETTINGS = """
import json, sys
import numpy as np
from configs import transfer as transfer_config
import transfer
from cram_jax.training import learner as learning
from cram_jax.training.checkpoints import Checkpoints
from pathlib import Path

runs = Path(sys.argv[1])
config = transfer_config.get_config()
config.update_from_flattened_dict(json.loads(sys.argv[2]))
called, paths = transfer.files_of("records", config, None, runs)
source = transfer.srcd.build(transfer.source_settings(config, "cram", 0))[0]
at = lambda folder, learner, patterns: Checkpoints(runs / folder / "checkpoints").restore(
    learning.init(learner, 0, patterns))[1]
states = {"source": at("source/cram_seed_0", source, source.task.data.patterns)}
for way in transfer.WAYS:
    settings = transfer.target_settings(config, "records", "cram", way, 0, paths)
    folder = f"records/cram_{way.replace(' ', '_')}_seed_0"
    states[way] = at(folder, transfer.build(settings, paths)[0], 0)
same = {way: [name for name, part in state.params.model._asdict().items()
              if all(map(np.array_equal, *(map(transfer.jax.tree.leaves, (part, getattr(old, name))))))]
        for old in [states["source"].params.model] for way, state in states.items()}
print(json.dumps({"same": same, "released": {way: bool(np.all(state.consolidation.released))
                                             for way, state in states.items()}}))
"""


def test_what_is_frozen_is_the_sources_and_all_else_is_trained(finished):
    at, result, _ = finished
    # Given the last states of the source and of all ways
    env = environment() | {"PYTHONPATH": f"{ROOT}/experiments:{ROOT}"}
    argv = [sys.executable, "-c", SETTINGS, str(at / "runs"), json.dumps(SMALLEST)]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    # Then the same parts are the source's bit for bit
    everything = set(found["same"]["source"])
    assert {way: set(parts) for way, parts in found["same"].items()} == {
        "source": everything, "from scratch": set(), "frozen": {"semantic", "router"}, "head alone": everything,
    }  # fmt: skip
    assert all(found["released"].values())


def test_a_transferred_router_decides_from_the_first_step_and_the_price_starts_anew(finished):
    at, _, _ = finished
    first = lambda way: read(at / "runs" / "records" / f"cram_{way}_seed_0" / "metrics.jsonl")[0]
    source = read(at / "runs" / "source" / "cram_seed_0" / "metrics.jsonl")[-1]
    assert first("from_scratch")["held_out/attention_tokens"] == 1
    assert first("frozen")["held_out/attention_tokens"] == first("head_alone")["held_out/attention_tokens"] < 1
    last = read(at / "runs" / "records" / "cram_frozen_seed_0" / "metrics.jsonl")[-1]
    assert last["step"] == 20 and 0 <= last["train/price"] <= 4 < source["train/price"]
    settings = json.loads((at / "runs" / "records" / "cram_frozen_seed_0" / "config.json").read_text())
    assert settings["optimizer"]["frozen"] == ["semantic", "router"] and settings["price"]["tolerance"] == 0.05
    assert str(at) not in json.dumps(settings), "what the files hold is a setting, where they are is not"


def test_the_result_names_generated_files_and_compares_with_training_from_scratch(finished):
    at, result, said = finished
    assert result["data"]["targets"] == {CALLED: "records"}
    assert f"{CALLED}: cram, head alone" in said and str(at) not in results.text(result)
    assert "Generated files" in result["made_by"]["notes"][0]
    labels = {way: f"{CALLED}: cram, {way}" for way in ("from scratch", "frozen", "head alone")}
    entries, reduction = result["entries"], result["data"]["reduction"]
    assert list(entries) == ["source: cram", *labels.values()] and labels["from scratch"] not in reduction
    base = entries[labels["from scratch"]]["mean"]["attention_tokens_end"]
    for way, label in labels.items():
        (run,), (curve,) = entries[label]["runs"], entries[label]["curves"]
        assert entries[label]["settings"] == {"target": "records", "model": "cram", "way": way}
        assert run["score"] == entries[label]["mean"]["score"] and 0 < run["score"] < 1
        assert 0 <= run["attention_tokens_end"] <= 1 and len(curve["step"]) == 2 and "commit" in run
        if way != "from scratch" and base:
            less = 1 - run["attention_tokens_end"] / base
            np.testing.assert_allclose([reduction[label]["mean"], *reduction[label]["by_seed"]], less)
    assert (at / "out" / "figure.png").stat().st_size > 5000
    # The last evaluation went through the 20 held-out records once
    summary = json.loads((at / "runs" / "records" / "cram_frozen_seed_0" / "summary.json").read_text())
    assert summary["held_out_tokens"] == 20 * 32


def test_finished_runs_are_kept(finished):
    at, _, _ = finished
    files = sorted((at / "runs").rglob("summary.json"))
    before = [file.stat().st_mtime_ns for file in files]
    again = command(at, "--target=records", "--model=cram")
    assert again.returncode == 0 and [file.stat().st_mtime_ns for file in files] == before and len(before) == 4


def test_published_files_are_read_where_they_are_and_missing_ones_are_named(tmp_path):
    done = command(tmp_path, f"--data={tmp_path}", "--target=motion")
    assert done.returncode != 0 and "lacks" in done.stderr and "ConfLongDemo_JSI.txt" in done.stderr
    assert "unpack Person Activity there" in done.stderr
    # Present, but with too few events for a sequence of 32: the folder was read before any run
    (path,) = write_generated("person_activity", tmp_path / "made", 5, 10)
    Path(path).rename(tmp_path / "ConfLongDemo_JSI.txt")
    done = command(tmp_path, f"--data={tmp_path}", "--target=motion")
    assert done.returncode != 0 and "no series of the held_out split has 32 events" in done.stderr
    done = command(tmp_path, "--target=music")
    assert done.returncode != 0 and "--target names ['music']; there are ['copy', 'motion', 'records']" in done.stderr


def test_the_source_is_srcds_own_and_the_price_in_the_ratio_of_losses():
    config, source = transfer_config.get_config(), srcd_config.get_config("tiny")
    assert {name: config[name] for name in source} == dict(source.items())
    per_nat = source.price.top / np.log(source.data.answers)
    for target, classes in (("copy", 64), ("records", 2), ("motion", 11)):
        assert abs(config.targets[target].price.top - per_nat * np.log(classes)) < 0.5
