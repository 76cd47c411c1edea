"""Tests run on the CPU, unless JAX_PLATFORMS says otherwise; shapes of public signatures are checked at run time."""

import gc
import os
from importlib import import_module
from pathlib import Path

import quick

# Before jax is imported
os.environ.update(quick.environment(Path(__file__).parents[1] / ".pytest_cache" / "jax", given=os.environ))

import jax
import jaxtyping
import pytest

# Tracing makes millions of objects and few cycles: by default the collector takes a fifth of the time of a test.
gc.set_threshold(200_000, 50, 100)

jaxtyping.install_import_hook("cram_jax", "beartype.beartype")


MEMORY = 3e9  # bytes of a process, above which what was compiled is forgotten


@pytest.fixture(autouse=True, scope="module")
def forgets_what_it_compiled():
    """All of it together takes gigabytes. The next file shares some: operations on small arrays, and how they lower."""
    yield
    if resident() > MEMORY:
        jax.clear_caches()
        gc.collect()


def resident() -> float:
    """Bytes of memory that this process holds now; infinite where the system does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else float("inf")


@pytest.fixture(scope="module")
def leaky():
    """Lets numbers that are not finite reach the attention kernels: so NaN shows what they look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("cram_jax.kernels.skip_attention"), "finite", lambda x: x)
        yield


@pytest.fixture
def x64():
    """Enables float64 for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def unchecked():
    """Turns run-time shape checks off, so that a wrong shape raises the library's own error, as for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
