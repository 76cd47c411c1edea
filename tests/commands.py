"""Runs experiments with command lines, in the process of the tests, so that nothing is imported or compiled twice."""

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
from lib import launch

ROOT = Path(__file__).parents[1]


def run(main: str, *flags: str, **settings) -> str:
    """Returns what `python experiments/MAIN.py FLAGS` prints.

    Args:
      settings: settings of --config, by dotted names; give them as **{"run.steps": 20}.

    Raises:
      SystemExit: if it ends in an error, with the message.
    """
    argv = [f"experiments/{main}.py", *flags, *(f"--config.{name}={value}" for name, value in settings.items())]
    out = io.StringIO()
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(launch, "quiet"),  # leaves logging as pytest has it
    ):
        runpy.run_path(argv[0], run_name="__main__")
    return out.getvalue()


def refused(main: str, *flags: str, **settings) -> str:
    """Returns the error message of such a command."""
    with pytest.raises(SystemExit) as ended:
        run(main, *flags, **settings)
    return ended.value.args[0]


def written(folder: Path) -> dict[Path, int]:
    """Returns when each summary below a folder was written, to show that finished runs are not trained again."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("summary.json"))}


def environment() -> dict[str, str]:
    """Returns the environment of a command in a process of its own."""
    return {**os.environ, "JAX_PLATFORMS": "cpu"}
