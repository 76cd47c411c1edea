"""How tests compile: much and quickly, for code that computes little."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

# Code that is optimised less is ready in a fifth of the time. jax 0.12 has no other emitters to choose, and refuses
# flags that it does not know.
XLA_FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",  # two processes of tests have two cores: a fifth less to compile
        *(["--xla_cpu_use_fusion_emitters=false"] if version("jax").startswith("0.10.") else []),
    ]
)


def environment(cache: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment variables of a process that compiles so, and keeps what it compiled in a folder.

    Args:
      given: the environment that it has.
    """
    return {
        "JAX_PLATFORMS": given.get("JAX_PLATFORMS", "cpu"),
        "OPENBLAS_NUM_THREADS": given.get("OPENBLAS_NUM_THREADS", "1"),  # as for experiments, see experiments/lib
        # Programs that a test launches several times compile once. What compiles in less than
        # a tenth of a second is compiled again: to write and read it would take as long.
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",  # a seventh of the time of a trace
        "XLA_FLAGS": f"{given.get('XLA_FLAGS', '')} {XLA_FLAGS}".strip(),
    }
