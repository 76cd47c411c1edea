"""Describes what a run ran on: hardware, versions and commit, and the memory that the process used."""

import os
import platform
import subprocess
from pathlib import Path

import jax


def versions() -> dict[str, str]:
    """Returns hardware, versions and commit, by name."""
    import flax
    import optax

    device = jax.devices()[0]
    return {
        "device": f"{device.device_kind} x{jax.device_count()}",
        "cpu": f"{_cpu()}, {_cores()} cores",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "commit": _commit(),
    }


def _commit() -> str | None:
    """Returns the commit of the running code, with a + if files differ from it; None outside a repository."""
    git = lambda *args: subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def peak_memory_mb() -> float:
    """Returns the peak memory of this process so far, in megabytes."""
    import resource

    divisor = 1024 if platform.system() == "Darwin" else 1  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / divisor / 1024
