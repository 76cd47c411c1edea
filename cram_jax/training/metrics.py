"""What a run leaves to read: `metrics.jsonl`, TensorBoard events and a line of progress at each logged step."""

import json
import os
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

CLOCK = ("step_ms", "seconds", "peak_memory_mb")  # fields that differ between two runs of the same command


def strict(value):
    """The same with None for numbers that are not finite: JSON has none of those."""
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def means(sums: list[dict]) -> dict[str, float | list[float]]:
    """Means of (sum, count) pairs added up over batches, in float64; NaN where nothing was counted."""
    out = {}
    for name in sums[0] if sums else ():
        total = np.sum([np.asarray(s[name][0], np.float64) for s in sums], axis=0)
        count = np.sum([np.asarray(s[name][1], np.float64) for s in sums], axis=0)
        mean = total / count if np.all(count > 0) else np.full_like(total, np.nan)
        out[name] = mean.tolist()
    return out


class Records:
    """The run's lines, on disk and in memory; opened on a directory that holds some, it goes on from them.

    Args:
      directory: the run's.
      step: the step the run goes on from. Later lines are cut away: they will be written again.
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
        """Appends a line; its numbers also go to TensorBoard."""
        self.lines.append(line)
        self.file.write(json.dumps(strict(line)) + "\n")
        self.file.flush()
        for name, value in line.items():
            if isinstance(value, float) and np.isfinite(value):
                self.board.add_scalar(name, value, line["step"])

    def launch(self, versions: dict) -> None:
        """Appends to `launches.jsonl`: by which code, and where, the steps from here on are trained."""
        step = self.lines[-1]["step"] if self.lines else 0
        with self.path.with_name("launches.jsonl").open("a") as file:
            file.write(json.dumps({"from_step": step, **versions}) + "\n")

    @property
    def seconds(self) -> float:
        """Training time so far, all processes of the run added up."""
        return self.lines[-1]["seconds"] if self.lines else 0.0

    def close(self) -> None:
        """Flushes both."""
        self.file.close()
        self.board.close()


def read(path: Path) -> list[dict]:
    """The lines of a `metrics.jsonl`, NaN for null; an unfinished last line, left by a killed process, is not one."""
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
    """Seconds as minutes:seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
