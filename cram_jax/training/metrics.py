"""Logs of a run: `metrics.jsonl` and TensorBoard events, and means of metrics over batches."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from cram_jax.training import files, processes
from cram_jax.training.files import Folder

log = logging.getLogger(__name__)
SILENCE = 15.0  # seconds without a word, after which a person would wonder
CLOCK = ("step_ms", "seconds", "peak_memory_mb")  # fields that differ if the same command runs twice


def means(sums: list[dict]) -> dict[str, float | list[float]]:
    """Returns total sum / total count of each metric over batches, in float64; NaN if the count is 0."""
    out = {}
    for name in sums[0] if sums else ():
        total = np.sum([np.asarray(s[name][0], np.float64) for s in sums], axis=0)
        count = np.sum([np.asarray(s[name][1], np.float64) for s in sums], axis=0)
        mean = total / count if np.all(count > 0) else np.full_like(total, np.nan)
        out[name] = mean.tolist()
    return out


def plain(sums: list[dict]) -> list[dict]:
    """Returns metrics as lists of numbers, as JSON has them; `means` takes them as well."""
    return [{name: [np.asarray(x, np.float64).tolist() for x in pair] for name, pair in one.items()} for one in sums]


class Records:
    """The logged lines of a run, on disk. It keeps the lines that the directory already holds.

    `last` is the last line, None before the first. `began` is the step at which the run began: 0, unless its first
    launch says that it began from another state. Of several processes the first one writes, and tells the others what
    was there.

    Args:
      directory: directory of the run.
      step: step that the run resumes from. Lines of later steps are deleted, because they will be written again.
    """

    def __init__(self, directory: Folder, step: int):
        self.path = files.folder(directory) / "metrics.jsonl"
        self.board, self.events = None, self.path.parent
        self.last = processes.from_first(lambda: self._begin(step))
        self.began = processes.from_first(self._began)

    def _begin(self, step: int) -> dict | None:
        lines, bad = files.parse(self.path)
        if bad:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            aside.write_bytes(self.path.read_bytes())
            log.warning("%s: damaged at line %s; a copy is in %s", self.path, ", ".join(map(str, bad)), aside.name)
        lines = [line for line in lines if line["step"] <= step]
        files.write_whole(self.path, "".join(map(files.as_line, lines)))
        if files.is_remote(self.path):
            self.events = Path(tempfile.mkdtemp())  # where they are written before they are copied
        # Two writers in one second would share a file name, so the process is part of it.
        self.board = SummaryWriter(
            str(self.events), filename_suffix=f".{os.getpid()}.{time.time_ns()}", purge_step=step + 1
        )
        return lines[-1] if lines else None

    def write(self, line: dict) -> None:
        """Adds a line, and gives its numbers to TensorBoard."""
        if self.board is not None:
            self._write(line)
        self.last = line

    def _write(self, line: dict) -> None:
        files.append(self.path, line)
        for name, value in line.items():
            if isinstance(value, float) and np.isfinite(value):
                self.board.add_scalar(name, value, line["step"])
        if files.is_remote(self.path):
            self.board.flush()
            files.copied(self.events, self.path.parent)

    def launch(self, versions: dict) -> None:
        """Adds to `launches.jsonl` which code and machine train the steps from here on, and with which settings."""
        if self.board is None:
            return
        step = self.last["step"] if self.last else 0
        config, launches = (self.path.with_name(name) for name in ("config.json", "launches.jsonl"))
        settings = {"settings": files.settings_digest(config.read_text())} if config.exists() else {}
        files.append(launches, {"from_step": step, **versions, **settings})

    def _began(self) -> int:
        launches = files.read(self.path.with_name("launches.jsonl"))
        return next((line["from_step"] for line in launches if line.get("begins")), 0)

    @property
    def seconds(self) -> float:
        """Training time so far in seconds, over all processes of the run."""
        return self.last["seconds"] if self.last else 0.0

    def close(self) -> None:
        """Writes what TensorBoard has buffered."""
        if self.board is not None:
            self.board.close()
            if files.is_remote(self.path):
                files.copied(self.events, self.path.parent)
                shutil.rmtree(self.events)


def watched(number: int, what: str) -> Iterator[int]:
    """Counts the batches from 0, and logs every `SILENCE` seconds how many are done and how long the others take."""
    start = said = time.perf_counter()
    for index in range(number):
        yield index
        now, done = time.perf_counter(), index + 1
        if now - said > SILENCE:
            said = now
            log.info("%s: %d of %d batches, %s left", what, done, number, clock((now - start) / done * (number - done)))


def clock(seconds: float) -> str:
    """Returns a time in seconds as text, minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
