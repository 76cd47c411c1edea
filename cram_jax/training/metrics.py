"""Logs of a run: `metrics.jsonl` and TensorBoard events, and means of metrics over batches."""

import json
import os
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

CLOCK = ("step_ms", "seconds", "peak_memory_mb")  # fields that differ if the same command runs twice


def strict(value):
    """Returns the value with None for each number that is not finite, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def means(sums: list[dict]) -> dict[str, float | list[float]]:
    """Returns total sum / total count of each metric over batches, in float64; NaN if the count is 0."""
    out = {}
    for name in sums[0] if sums else ():
        total = np.sum([np.asarray(s[name][0], np.float64) for s in sums], axis=0)
        count = np.sum([np.asarray(s[name][1], np.float64) for s in sums], axis=0)
        mean = total / count if np.all(count > 0) else np.full_like(total, np.nan)
        out[name] = mean.tolist()
    return out


class Records:
    """The logged lines of a run, on disk and in memory. It keeps the lines that the directory already holds.

    Args:
      directory: directory of the run.
      step: step that the run resumes from. Lines of later steps are deleted, because they will be written again.
    """

    def __init__(self, directory: Path, step: int):
        self.path = Path(directory) / "metrics.jsonl"
        self.lines = [line for line in read(self.path) if line["step"] <= step]
        rewritten = self.path.with_suffix(".tmp")
        rewritten.write_text("".join(json.dumps(strict(line)) + "\n" for line in self.lines))
        rewritten.replace(self.path)
        self.file = self.path.open("a")
        # Two writers in one second would share a file name, so the process is part of it.
        self.board = SummaryWriter(
            str(directory), filename_suffix=f".{os.getpid()}.{time.time_ns()}", purge_step=step + 1
        )

    def write(self, line: dict) -> None:
        """Appends a line, and gives its numbers to TensorBoard."""
        self.lines.append(line)
        self.file.write(json.dumps(strict(line)) + "\n")
        self.file.flush()
        for name, value in line.items():
            if isinstance(value, float) and np.isfinite(value):
                self.board.add_scalar(name, value, line["step"])

    def launch(self, versions: dict) -> None:
        """Appends to `launches.jsonl` which code and machine train the steps from here on."""
        step = self.lines[-1]["step"] if self.lines else 0
        with self.path.with_name("launches.jsonl").open("a") as file:
            file.write(json.dumps({"from_step": step, **versions}) + "\n")

    @property
    def seconds(self) -> float:
        """Training time so far in seconds, over all processes of the run."""
        return self.lines[-1]["seconds"] if self.lines else 0.0

    def close(self) -> None:
        """Writes what is buffered and closes both files."""
        self.file.close()
        self.board.close()


def read(path: Path) -> list[dict]:
    """Returns the lines of a `metrics.jsonl`, with NaN for null, up to a line that a killed process left unfinished."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append({name: np.nan if value is None else value for name, value in json.loads(text).items()})
        except json.JSONDecodeError:
            break
    return lines


def clock(seconds: float) -> str:
    """Returns a time in seconds as text, minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
