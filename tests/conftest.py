"""Tests run on the CPU, unless JAX_PLATFORMS says otherwise; shapes of public signatures are checked at run time."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before jax is imported
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as for experiments, see experiments/lib
# Programs that a test launches several times compile once, and so does an operation on one shape in all files.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(__file__).parents[1] / ".pytest_cache" / "jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"  # a seventh of the time of a trace
# Tests compile much and compute little: code that is optimised less is ready in a fifth of the time. jax 0.12 has no
# other emitters to choose, and refuses flags that it does not know.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jax").startswith("0.10.") else []),
    ]
).strip()

import jax
import jaxtyping
import pytest

# Tracing makes millions of objects and few cycles: by default the collector takes a fifth of the time of a test.
gc.set_threshold(200_000, 50, 100)

jaxtyping.install_import_hook("cram_jax", "beartype.beartype")


@pytest.fixture(autouse=True, scope="module")
def forgets_what_it_compiled():
    """The next file shares little of it, and all of it together takes gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


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
