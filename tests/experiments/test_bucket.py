"""A run in a bucket: its files are there, it goes on from there, and a bucket that cannot be had is one line.

The bucket is held by a server on this machine, which speaks as Google's storage does.
"""

import json
import socket
import sys

import commands
import jax.numpy as jnp
import pytest
from etils import epath

from cram_jax.training import files
from cram_jax.training.checkpoints import Checkpoints, to_host

pytest.importorskip("gcp_storage_emulator")

SMALL = {
    "model": "gated_linear",
    "depth": 1,
    "run.steps": 20,
    "run.log_every": 10,
    "run.checkpoint_every": 10,
    "run.held_out_tokens": 2048,
    "run.final_tokens": 2048,
    "price.start": 10,
    "price.ramp": 4,
}


@pytest.fixture(scope="module")
def bucket():
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = create_server("localhost", port, in_memory=True, default_bucket="bucket")
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{port}")  # orbax writes arrays through it
        patch.setenv("GCE_METADATA_ROOT", "localhost:1")  # nobody is asked who we are
        patch.setenv("NO_GCE_CHECK", "true")
        yield "gs://bucket"
    server.stop()


def test_a_run_is_written_there_and_goes_on_from_there(bucket):
    workdir = f"{bucket}/mqar"
    out = commands.run("mqar", "--config=experiments/configs/mqar.py:small", f"--workdir={workdir}", **SMALL)
    assert "values asked for that are named right" in out
    folder = epath.Path(workdir)
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "launches.jsonl", "metrics.jsonl", "parameters.txt", "summary.json", "checkpoints"} <= names
    assert any(name.startswith("events.") for name in names)
    lines = files.read(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 10, 20]

    # The same command finds it finished, with --extend it goes on from step 20
    commands.run(
        "mqar", "--config=experiments/configs/mqar.py:small", f"--workdir={workdir}", "--extend",
        **SMALL | {"run.steps": 30},
    )  # fmt: skip
    assert [line["step"] for line in files.read(folder / "metrics.jsonl")] == [0, 10, 20, 30]
    launches = files.read(folder / "launches.jsonl")
    assert [line["from_step"] for line in launches] == [0, 20]
    assert json.loads((folder / "summary.json").read_text())["steps"] == 30


def test_a_damaged_save_there_is_set_aside_and_nothing_is_lost(bucket):
    folder = epath.Path(f"{bucket}/damaged_run/checkpoints")
    saves, state = Checkpoints(folder), lambda step: {"a": jnp.arange(64.0) + step}
    for step in (1, 2):
        saves.save(step, state(step))
    assert saves.close()
    largest = max(files.under(folder / "2" / "state"), key=lambda path: path.stat().length)
    largest.write_bytes(largest.read_bytes()[:-1] + b"?")

    again = Checkpoints(folder)
    step, restored = again.restore(state(0))
    assert step == 1 and to_host(restored)["['a']"].tolist() == to_host(state(1))["['a']"].tolist()
    again.save(2, state(20))
    assert again.close()
    aside = folder.with_name("damaged") / "checkpoint_2.0" / largest.relative_to(folder / "2")
    assert aside.read_bytes()[-1:] == b"?"
    assert Checkpoints(folder).restore(state(0))[0] == 2
    again.keep(folder.with_name("kept"))
    assert {path.name for path in folder.with_name("kept").iterdir()} == {"2"}


def test_what_cannot_be_had_is_one_line(bucket, monkeypatch):
    assert "cannot be written (Bucket does not exist: none)" in commands.refused("mqar", "--workdir=gs://none/run")
    with pytest.raises(ValueError, match=r"s3://x/y cannot be written: .* in a bucket, gs://BUCKET/FOLDER"):
        files.folder("s3://x/y")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setattr(files.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package gcsfs: pip install 'cram_jax\[gs\]'"):
        files.folder("gs://x/y")
