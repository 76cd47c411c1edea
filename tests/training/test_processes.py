"""Several real processes train as one, on one machine: they stop together, and go on as another number of them."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import eight
import numpy as np
import pytest
from training_in_processes import LEARNER
from training_on_meshes import RUN

from cram_jax.training import loop, processes
from cram_jax.training.checkpoints import to_host

PATHS = (eight.ROOT, eight.ROOT / "tests", eight.ROOT / "tests" / "training", eight.ROOT / "experiments")
SCRIPT = Path(__file__).with_name("training_in_processes.py")
KILL, TERM = "9", "15"


def start(workdirs: list[Path], mesh: str, devices: int, *signal: str) -> list[subprocess.Popen]:
    """Starts a process of a training for each of these folders, or one that knows of no others."""
    of = len(workdirs)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = eight.environment(devices) | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    command = lambda i: [str(workdirs[i]), mesh, f"{i}/{of}@localhost:{port}" if of > 1 else "", *signal]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return [subprocess.Popen([sys.executable, str(SCRIPT), *command(i)], **pipes) for i in range(of)]


def ended(started: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """(exit status, output, errors) of each; none is left running."""
    try:
        said = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


def test_four_processes_lose_one_two_go_on_and_one_ends_with_the_result_of_a_run_that_never_stopped(tmp_path):
    # Given four processes, one of which is killed at step 15
    run = tmp_path / "run"
    four = start([run] * 4, "data:2,fsdp:2", 1, KILL, "15", "1")
    four[1].wait(timeout=240)
    began = time.monotonic()
    for left in (0, 2, 3):
        four[left].wait(timeout=60)
    assert time.monotonic() - began < 60
    # Then the others say so, and end
    found = ended(four)
    (first, _, said), (killed, *_) = found[:2]
    assert (first, killed) == (1, -9), found
    assert "error: another process of this training has ended or cannot be reached" in said
    assert "they go on from the last checkpoint" in said
    for status, _, said in found[2:]:  # JAX ends some before they can speak
        assert status in (1, -6) and (
            "another process of this training has ended" in said or "another task died" in said
        )

    # When two go on from the save of step 10, and one of them gets SIGTERM, both stop at one step
    two = ended(start([run] * 2, "data:1,fsdp:2", 1, TERM, "12", "1"))
    assert [status for status, *_ in two] == [75, 75], two
    (stopped,) = {re.search(r"stopped by SIGTERM to one of the processes at step (\d+);", said)[1] for *_, said in two}
    assert 12 < int(stopped) < 20
    assert "going on from step 10" in two[0][1]

    # And one process with two devices, each with a part of the parameters, ends with what one device ends with
    ((status, out, errors),) = ended(start([run], "data:1,fsdp:2", 2))
    assert status == 0 and f"going on from step {stopped}" in out, errors
    state, _ = loop.train(LEARNER, dataclasses.replace(RUN, mesh="data:1"), 0, tmp_path / "whole", patterns=8)
    parts, whole = np.load(run / "last.npz"), to_host(state)
    assert set(parts) == set(whole)
    for name in whole:
        rtol = 1e-4 if "consolidation" in name else 1e-5
        limit = rtol * max(1, np.abs(whole[name]).max(initial=0))
        np.testing.assert_allclose(parts[name], whole[name], rtol=rtol, atol=limit, err_msg=name)


def test_processes_without_a_folder_in_common_are_told_so(tmp_path):
    found = ended(start([tmp_path / "a", tmp_path / "b"], "data:2", 1))
    assert {status for status, *_ in found} == {1}, found
    text = "is not the same folder for all 2 processes: not for those of numbers [1]; name one that they share"
    assert any(text in said for *_, said in found), found


@pytest.mark.parametrize("said", ["1", "2/2@here:1", "0/0@here:1", "0/2@here", "0/2", "-1/2@here:1"])
def test_a_wrong_process_is_named(said):
    with pytest.raises(ValueError, match=f"--process must be i/n@HOST:PORT .* got '{said}'"):
        processes.begin(said)


@pytest.mark.parametrize(
    ("environment", "several"),
    [({}, False), ({"SLURM_STEP_NUM_TASKS": "1"}, False), ({"SLURM_STEP_NUM_TASKS": "4"}, True)]
    + [({"OMPI_COMM_WORLD_SIZE": "2"}, True), ({"SLURM_NTASKS": "4"}, False)],  # of a job, outside of srun
)
def test_a_process_alone_waits_for_no_other(monkeypatch, environment, several):
    for name in processes.SEVERAL:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    joined = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *how, **more: joined.append(how))
    processes.begin()
    assert joined == [(None, None, None)] * several


def test_processes_with_other_settings_are_told_so(monkeypatch):
    processes.check_alike("seed 0", "settings")
    monkeypatch.setattr(processes, "gathered", lambda number: np.stack([number, number, number + 1]))
    with pytest.raises(ValueError, match=r"processes \[2\] were started with settings other than those of process 0"):
        processes.check_alike("seed 0", "settings")
