"""Which devices train, and what each of them holds."""

import os
from pathlib import Path
from types import SimpleNamespace

import eight
import pytest

from cram_jax.training import sharding
from cram_jax.training.loop import RunConfig

MESHES = {
    "cram": "data:2,tensor:2,sequence:2",
    "streams": "data:2,fsdp:2,tensor:2",
    "attention": "data:1,fsdp:8",
    "mamba2": "data:1,sequence:8",
    "palimpsa": "data:1,fsdp:2,tensor:2,sequence:2",
}  # of each model one; TEST_ALL_MESHES=1 tests each on all
OTHERS = "data:8", "data:2,fsdp:4", "data:1,tensor:8"
ALL = [(name, mesh) for name in MESHES for mesh in sorted({*MESHES.values(), *OTHERS})]


@pytest.mark.parametrize(("name", "mesh"), ALL if os.environ.get("TEST_ALL_MESHES") else MESHES.items())
def test_a_training_on_eight_devices_is_that_on_one(name, mesh):
    assert eight.run(Path(__file__).with_name("training_on_meshes.py"), name, mesh) == "the same on eight devices\n"


HERE = [SimpleNamespace(device_kind="TPU v5 lite", id=i) for i in range(8)]


@pytest.mark.parametrize(
    ("text", "number", "batches", "used", "idle"),
    [
        ("data:-1", 8, (16,), 8, ""),
        ("data:-1", 8, (2, 16), 2, "6 of 8 devices are idle"),
        ("data:-1", 8, (12,), 6, "2 of 8 devices are idle"),
        ("data:-1", 8, (7,), 7, "1 of 8 devices are idle"),
        ("data:-1", 1, (7,), 1, ""),
        ("data:4", 8, (16,), 4, "4 of 8 devices are idle"),
        ("data:8", 8, (16, 32), 8, ""),
        ("data:2,fsdp:4", 8, (16,), 8, ""),
        ("data:-1,fsdp:4", 8, (16,), 8, ""),
        ("data:-1,fsdp:4", 8, (4,), 4, "4 of 8 devices are idle"),
        ("data:-1,tensor:4", 8, (2,), 8, ""),
        ("data:1,fsdp:2,tensor:2,sequence:2", 8, (2,), 8, ""),
        ("data:1,sequence:8", 8, (1,), 8, ""),
        ("data:1,sequence:4", 8, (1,), 4, "4 of 8 devices are idle"),
    ],
)
def test_as_many_devices_train_as_asked_for_or_as_divide_all_batches(caplog, text, number, batches, used, idle):
    assert sharding.chosen(text, batches, HERE[:number]).ravel().tolist() == HERE[:used]
    assert idle in caplog.text and bool(idle) == bool(caplog.text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:16", "run.mesh=data:16 needs 16 devices, but there are 8: TPU v5 lite"),
        ("data:8", "batches of 4 and 16 sequences do not divide among the 8 devices of run.mesh=data:8"),
        ("data:4,fsdp:4", "run.mesh=data:4,fsdp:4 needs 16 devices, but there are 8: TPU v5 lite"),
        (
            "data:-1,fsdp:8",
            "batches of 4 and 16 sequences do not divide among the 8 devices of run.mesh=data:-1,fsdp:8",
        ),
        ("data", "run.mesh must be data:N with a number N of devices, or data:-1 for all, .* got 'data'"),
        ("data:2,fsdp:-1", "got 'data:2,fsdp:-1'"),
        ("data:2,tensor:8", "run.mesh=data:2,tensor:8 needs 16 devices, but there are 8: TPU v5 lite"),
        (
            "data:8,sequence:1",
            "batches of 4 and 16 sequences do not divide among the 8 devices of run.mesh=data:8,sequence:1",
        ),
        (
            "data:1,sequence:8",
            "sequences of 20 tokens do not divide among the 8 devices of the axis sequence in run.mesh=data:1,seq",
        ),
        ("data:2,tensor:2,fsdp:2", "in this order, got 'data:2,tensor:2,fsdp:2'"),
        ("data:2,heads:2", "got 'data:2,heads:2'"),
        ("data:2,tensor:0", "got 'data:2,tensor:0'"),
        ("data:0", "got 'data:0'"),
        ("fsdp:2", "got 'fsdp:2'"),
        ("", "got ''"),
    ],
)
def test_a_mesh_that_cannot_be_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        sharding.chosen(text, (4, 16), HERE, (16, 20))


def test_a_curriculum_counts_too():
    assert RunConfig(batch=4, curriculum=((10, 8, 32), (10, 16, 16))).batches == (4, 16, 32)
    with pytest.raises(ValueError, match="got 'data:-2'"):
        RunConfig(mesh="data:-2")


def test_a_process_without_a_device_is_named(monkeypatch):
    of_two = [SimpleNamespace(device_kind="TPU v5 lite", id=i, process_index=i // 4) for i in range(8)]
    monkeypatch.setattr(sharding.jax, "devices", lambda: of_two)
    monkeypatch.setattr(sharding.jax, "process_count", lambda: 2)
    message = r"batches of 4 sequences leaves processes \[1\] of 2 without a device; start fewer"
    with pytest.raises(ValueError, match=message):
        sharding.layout.__wrapped__("data:-1", (4,))
