"""Runs a script of tests in a process of its own that has eight virtual devices."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(devices: int = 8) -> dict[str, str]:
    """Returns the environment of a process with so many virtual devices."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
    }


def run(script: Path, *args: str) -> str:
    """Returns what `python SCRIPT ARGS` prints. Raises AssertionError with its errors if it fails."""
    command = [sys.executable, str(script), *args]
    ended = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout
