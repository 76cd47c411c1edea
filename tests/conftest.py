"""Tests run on the CPU, with the shapes of public signatures checked at run time."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported

import jax
import jaxtyping
import pytest

jaxtyping.install_import_hook("cram_jax", "beartype.beartype")


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """What a user meets who wrote a wrong shape: the library's own error, not that of the run-time shape checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
