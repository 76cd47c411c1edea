"""Which devices train, and what each of them holds."""

from pathlib import Path
from types import SimpleNamespace

import eight
import pytest

from cram_jax.training import sharding
from cram_jax.training.loop import RunConfig


@pytest.mark.parametrize("name", ["cram", "streams", "attention", "mamba2", "palimpsa"])
def test_a_training_on_eight_devices_is_that_on_one(name):
    assert eight.run(Path(__file__).with_name("training_on_meshes.py"), name) == "the same on eight devices\n"


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
    ],
)
def test_as_many_devices_train_as_asked_for_or_as_divide_all_batches(caplog, text, number, batches, used, idle):
    assert sharding.chosen(text, batches, HERE[:number]) == HERE[:used]
    assert idle in caplog.text and bool(idle) == bool(caplog.text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data:16", "run.mesh=data:16 needs 16 devices, but there are 8: TPU v5 lite"),
        ("data:8", "batches of 4 and 16 sequences do not divide among the 8 devices of run.mesh=data:8"),
        ("data", "run.mesh must be data:N with a number N of devices, or data:-1 for all, got 'data'"),
        ("data:0", "got 'data:0'"),
        ("fsdp:2", "got 'fsdp:2'"),
        ("", "got ''"),
    ],
)
def test_a_mesh_that_cannot_be_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        sharding.chosen(text, (4, 16), HERE)


def test_a_curriculum_counts_too():
    assert RunConfig(batch=4, curriculum=((10, 8, 32), (10, 16, 16))).batches == (4, 16, 32)
    with pytest.raises(ValueError, match="got 'data:-2'"):
        RunConfig(mesh="data:-2")
