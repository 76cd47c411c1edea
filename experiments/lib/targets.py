"""The tasks that experiments/transfer.py transfers to, and their files: published, or generated in the same format."""

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
# Published files as their archives name them, and what the data is called
PUBLISHED = {
    "records": (("set-a", "Outcomes-a.txt"), "PhysioNet 2012"),
    "motion": (("ConfLongDemo_JSI.txt",), "Person Activity"),
}


class Target(NamedTuple):
    """Attributes: its name in the settings; what it is called in a result; the paths that its reader takes."""

    name: str
    called: str
    paths: tuple[str, ...] = ()


def found(name: str, config: ConfigDict, data: Path | None, runs: Path) -> Target:
    """The target with its files: those in `data`, or generated ones below `runs` where no folder is given.

    Raises:
      ValueError: for published files that are not there.
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
    """Paths of generated files in `folder`, which are written if it is not there: all of them, or none."""
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
    """The target's task, from a run's settings."""
    if target.name == "copy":
        return CopyTask(from_config(CopyConfig(), config.data))
    return IrregularTask(config.data.format, target.paths, config.data.validation_share, config.data.held_out_share)
