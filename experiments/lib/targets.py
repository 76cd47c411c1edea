"""The target tasks of experiments/transfer.py, and their files: published ones, or generated ones of that format."""

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from cram_jax.tasks.copying import CopyConfig
from cram_jax.tasks.copying_task import CopyTask
from cram_jax.tasks.irregular_generated import PATHS, write_generated
from cram_jax.tasks.irregular_task import IrregularTask
from cram_jax.training.settings import from_config

SCORES = {"copy": "accuracy", "records": "area_under_curve", "motion": "accuracy"}
# (names of the published files, name of the data)
PUBLISHED = {
    "records": (("set-a", "Outcomes-a.txt"), "PhysioNet 2012"),
    "motion": (("ConfLongDemo_JSI.txt",), "Person Activity"),
}


class Target(NamedTuple):
    """Attributes: name, in the settings; called, its name in a result; paths, arguments of its reader."""

    name: str
    called: str
    paths: tuple[str, ...] = ()


def found(name: str, config: ConfigDict, data: Path | None, runs: Path) -> Target:
    """Returns the target with its files: those in `data`, or generated ones below `runs` if `data` is None.

    Raises:
      ValueError: if a published file is missing.
    """
    if name not in PUBLISHED:
        return Target(name, name)
    names, called = PUBLISHED[name]
    if data is None:
        about = config.targets[name]
        sizes = about.generated
        folder = runs / f"generated_{name}_{sizes.series}_of_{sizes.events}"  # other sizes are other files
        return Target(name, f"generated files of the {called} format", _generated(about, folder))
    paths = tuple(str(data / one) for one in names)
    missing = [path for path in paths if not Path(path).exists()]
    if missing:
        raise ValueError(
            f"--data={data} lacks {', '.join(missing)}; unpack {called} there, or choose others by --target"
        )
    return Target(name, called, paths)


def _generated(about: ConfigDict, folder: Path) -> tuple[str, ...]:
    """Paths of generated files in `folder`. If it is missing, it is written as a whole: all of the files, or none."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            write_generated(about.data.format, Path(made) / "files", about.generated.series, about.generated.events)
            try:
                os.rename(Path(made) / "files", folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    return tuple(str(folder / name) for name in PATHS[about.data.format])


def task(config: ConfigDict, target: Target) -> CopyTask | IrregularTask:
    """Returns the target's task, from a run's settings."""
    if target.name == "copy":
        return CopyTask(from_config(CopyConfig(), config.data))
    return IrregularTask(config.data.format, target.paths, config.data.validation_share, config.data.held_out_share)
