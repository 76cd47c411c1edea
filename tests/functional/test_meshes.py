"""Layers, kernels and the memory of streams on meshes of eight virtual devices, with axes of both kinds."""

from pathlib import Path

import eight
import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("name", ["cram", "posterior cram", "attention", "mamba2", "palimpsa", "seqboat"])
def test_a_layer_is_the_same_on_eight_devices(name):
    assert eight.run(HERE / "layers_on_meshes.py", name) == "the same on eight devices\n"


def test_eight_devices_leave_the_state_of_one():
    assert eight.run(HERE / "eight_devices.py") == "eight devices: one state\n"


@pytest.mark.parametrize("script", ["kernels_on_meshes.py", "kernels_in_parts.py"])
def test_kernels_are_the_same_on_eight_devices(script):
    assert eight.run(HERE / script) == "the same on eight devices\n"
