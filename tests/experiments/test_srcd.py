"""The SRCD experiment as a person runs it: killed, started again, and what it leaves."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import srcd
from commands import ROOT, environment, refused, run
from configs import srcd as srcd_config
from lib import gather, results, runs
from ml_collections import ConfigDict
from srcd_cases import SMALLEST

from cram_jax.training.files import read
from cram_jax.training.metrics import CLOCK

SETTINGS = SMALLEST | {
    "run.steps": 200, "run.log_every": 10, "run.checkpoint_every": 20, "run.curriculum": "((30,16,8),)"
}  # fmt: skip
TINY = "--config=experiments/configs/srcd.py:tiny"
CLOCKS = {*CLOCK, "step_ms_start", "step_ms_end", "train_seconds", "peak_memory_mb"}


def command(workdir) -> list[str]:
    flags = [TINY, f"--workdir={workdir}", *(f"--config.{name}={value}" for name, value in SETTINGS.items())]
    return [sys.executable, "experiments/srcd.py", *flags]


def unclocked(line: dict) -> dict:
    return {name: value for name, value in line.items() if name not in CLOCKS}


def last_digest(workdir) -> str:
    """Of every array of the last checkpoint, bytes and all."""
    folder = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name) if p.name.isdigit() else -1)
    assert folder.name == "200"
    return json.loads((folder / "facts" / "metadata").read_text())["digest"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run("srcd", TINY, f"--workdir={workdir}", **SETTINGS)


def test_a_killed_run_ends_like_one_never_interrupted(whole, tmp_path, caplog):
    # Given a process killed with SIGKILL in mid-training, once a checkpoint after the router's release is complete
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with subprocess.Popen(command(tmp_path), cwd=ROOT, env=environment(), **streams) as process:
        deadline = time.time() + 300
        while not list(tmp_path.glob("checkpoints/1?0/commit_success.txt")) and time.time() < deadline:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert read(tmp_path / "metrics.jsonl")[-1]["train/price"] > 0
    assert not (tmp_path / "summary.json").exists()

    # When the same command is started again, then it goes on, and ends with the same numbers to the last bit
    with caplog.at_level("INFO"):
        run("srcd", TINY, f"--workdir={tmp_path}", **SETTINGS)
    assert "going on from step 1" in caplog.text
    lines, wanted = (read(d / "metrics.jsonl") for d in (tmp_path, whole[0]))
    assert [line["step"] for line in lines] == list(range(0, 201, 10))
    np.testing.assert_equal([unclocked(a) for a in lines], [unclocked(b) for b in wanted])
    summaries = [json.loads((d / "summary.json").read_text()) for d in (tmp_path, whole[0])]
    np.testing.assert_equal(unclocked(summaries[0]), unclocked(summaries[1]))
    assert last_digest(tmp_path) == last_digest(whole[0])
    launches = read(tmp_path / "launches.jsonl")
    assert launches[0]["from_step"] == 0 < launches[1]["from_step"] and len(launches) == 2
    assert summaries[0]["trained_by"] == [launches[0]["commit"]]

    # When all its lines are lost afterwards, then the summary says so, and the last line is of the same state
    for name in ("metrics.jsonl", "summary.json"):
        (tmp_path / name).unlink()
    run("srcd", TINY, f"--workdir={tmp_path}", **SETTINGS)
    again = json.loads((tmp_path / "summary.json").read_text())
    assert again["missing_lines"] == 20 and again["steps"] == 200
    same = ("retrieval_accuracy", "attention_tokens_end", "trained_by")
    assert [again[name] for name in same] == [summaries[0][name] for name in same]


def test_a_run_begins_with_the_parameters_of_another(whole, tmp_path, caplog):
    # Given the settings of the finished run, and another seed
    config = runs.change(srcd_config.get_config("tiny"), SETTINGS | {"seed": 1, "run.curriculum": ((30, 16, 8),)})
    learner, _ = srcd.build(config)
    given = {"warm_start": str(whole[0]), "extend": False}
    args = SimpleNamespace(config=config, workdir=tmp_path / "new", **given)
    patterns = learner.task.data.patterns
    # When a run starts warm, once and again
    for _ in range(2):
        with caplog.at_level("INFO"):
            runs.start(args, learner, patterns)
    # Then its first checkpoint has these parameters, and nothing else of the finished run
    (step, new), (_, old) = (runs.last_state(learner, 1, Path(d), patterns) for d in (args.workdir, whole[0]))
    jax.tree.map(np.testing.assert_array_equal, new.params, old.params)
    assert step == new.step == 0 and not np.any(new.exposures_P) and new.price.price == 0 < old.price.price
    assert caplog.text.count("begins with the parameters of step 200") == 1
    assert [(line["warm_start"], line["warm_start_step"]) for line in read(args.workdir / "launches.jsonl")] == [
        (str(whole[0]), 200)
    ]
    # And it is said where there is nothing to begin with, or the run there began otherwise
    with pytest.raises(ValueError, match="--warm_start=nowhere holds no checkpoints; name the directory of a run"):
        runs.start(SimpleNamespace(**vars(args) | {"warm_start": "nowhere"}), learner, patterns)
    copy = shutil.copytree(whole[0], tmp_path / "copy")
    same = json.loads((copy / "config.json").read_text())
    with pytest.raises(ValueError, match="copy holds a run that did not begin with --warm_start=.*new; leave it out"):
        other = {"workdir": copy, "warm_start": str(args.workdir), "config": ConfigDict(same)}
        runs.start(SimpleNamespace(**vars(args) | other), learner, patterns)


def test_a_step_that_was_not_skipped_cannot_be_repeated(whole):
    said = refused("srcd", TINY, f"--workdir={whole[0]}", "--replay=3", **SETTINGS)
    assert "bad_steps holds nothing of step 3; steps that can be repeated: []" in said


def test_a_run_leaves_what_it_promises(whole):
    workdir, out = whole
    summary = json.loads((workdir / "summary.json").read_text(), parse_constant=pytest.fail)
    promised = (
        "retrieval_accuracy retrieval_accuracy_recurring retrieval_accuracy_new attention_tokens_start "
        "attention_tokens_peak attention_tokens_end attention_utilisation_start attention_utilisation_peak "
        "attention_utilisation_end realised_new_share dynamics_mse dynamics_mse_excess transition_step step_ms_start "
        "step_ms_end train_seconds seed device jax parameters state_bytes"
    )
    assert set(promised.split()) <= summary.keys()
    assert summary["attention_tokens_start"] == 1.0  # every token attends before the release
    assert (workdir / "figures" / "figure.png").stat().st_size > 10_000
    assert list(workdir.glob("events.out.tfevents*"))
    assert "which only attention can answer" in out


def test_a_finished_run_can_become_a_result(whole):
    workdir, _ = whole
    found, config = gather.of_directories([workdir])
    run = json.loads((workdir / "summary.json").read_text())
    made = gather.made_by([run])
    results.check(gather.result("x", "How?", "python x.py", made, config=config, entries={"cram": found}))
    assert found["mean"]["retrieval_accuracy"] == run["retrieval_accuracy"]
    assert found["curves"][0]["step"] == list(range(0, 201, 10)) and {"exposures", "patterns"} <= found.keys()
    assert made["commits"] == run["trained_by"] and made["machines"][0].startswith("cpu x")


def test_another_models_directory_is_refused(whole):
    said = refused("srcd", TINY, f"--workdir={whole[0]}", **SETTINGS | {"cram.D": 8})
    assert "holds a run with config.cram.D=16, this one has 8" in said and "Traceback" not in said


@pytest.mark.parametrize("variant", srcd_config.VARIANTS)
def test_every_model_can_be_built(variant):
    config = srcd_config.get_config(variant)
    solved = {"posterior_cram", "never_written"}
    assert set(runs.models(config)) == {"cram", "transformer", "mamba2", "seqboat", "jamba", "circular"} | solved
    for name in runs.models(config):
        config.model, config.depth = name, 1
        learner, _ = srcd.build(config)
        assert learner.model.depth == (8 if name == "jamba" else 1)


def test_a_schedule_may_be_longer_than_a_run():
    config = srcd_config.get_config("small")
    config.optimizer.steps = 5000
    assert config.run.steps == 2400
    config = srcd_config.get_config("small")
    config.run.steps = 9000
    assert config.optimizer.steps == 9000 and config.price.ramp == 3000
