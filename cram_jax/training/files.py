"""The files of a run: how each is written and checked, and what happens when it is damaged.

| file | written | checked | if damaged |
|---|---|---|---|
| `config.json` | once, whole | against the command | written again if `launches.jsonl` confirms the settings |
| `launches.jsonl` | a line at each start | a check sum in each line | bad lines are named, and left out |
| `metrics.jsonl` | a line at a time | a check sum in each line | the same; a copy is set aside first |
| `checkpoints/` | see `checkpoints.py` | a digest | set aside, and an older one is taken |
| `bad_steps/` | a copy of a checkpoint | as a checkpoint | only `replay.py` reads it |
| `parameters.txt`, `summary.json` | whole | never read by a run | written again |
| `events.*` | by TensorBoard | never read | |
| `lock` | by the process that trains | the kernel keeps a lock on it | |
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Inside, no other process can hold this directory. The kernel lets go when the process ends, however it ends.

    Raises:
      ValueError: if another process holds it. The message says which.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            raise ValueError(
                f"{directory} is in use by {holder}; wait until it has ended, or give another --workdir"
            ) from None
        except OSError as error:
            log.warning("%s cannot be locked (%s): see to it that only one process trains there", directory, error)
        else:
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {platform.node()}, since {time.ctime()}".encode(), 0)
        yield
    finally:
        os.close(file)


def write_whole(path: Path, text: str) -> None:
    """Writes a file so that a reader finds the old text or the new one, even after a crash or on a full disk.

    Raises:
      OSError: if it cannot be written. It names the file.
    """
    new = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with new.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        new.unlink(missing_ok=True)


def strict(value):
    """Returns the value with None for each number that is not finite, because JSON has no such numbers."""
    if isinstance(value, dict):
        return {name: strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def as_line(record: dict) -> str:
    """Returns a record as a line of JSON, with a check sum of the rest as its last field, `check`."""
    text = json.dumps(strict(record))
    return f'{text[:-1]}, "check": "{_sum(text)}"}}\n'


def append(path: Path, record: dict) -> None:
    """Adds a line to a file in one write. What a crash left there of another line does not spoil it.

    Raises:
      OSError: if it cannot be written whole. It names the file.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(file).st_size
        torn = size and os.pread(file, 1, size - 1) != b"\n"
        line = (b"\n" if torn else b"") + as_line(record).encode()
        if os.write(file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(file)


def read(path: Path) -> list[dict]:
    """Returns the lines of a file, with NaN for null. Bad ones are left out, and the log names them."""
    lines, bad = parse(path)
    if bad:
        log.warning("%s: damaged at line %s; the others are used", path, ", ".join(map(str, bad)))
    return lines


def parse(path: Path) -> tuple[list[dict], list[int]]:
    """Returns (good lines, numbers of the bad ones, from 1). Check sums count if any line has one."""
    if not path.exists():
        return [], []
    texts = path.read_bytes().decode(errors="replace").splitlines()
    good, bad, checks = [], [], any('"check": "' in text for text in texts)
    for number, text in enumerate(texts, 1):
        found = _checked(text, checks)
        if found is None:
            bad.append(number)
        else:
            good.append({name: _with_nan(value) for name, value in found.items()})
    return good, bad


def _with_nan(value):
    if isinstance(value, list):
        return [_with_nan(item) for item in value]
    return np.nan if value is None else value


def _checked(text: str, checks: bool) -> dict | None:
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        return None
    if not isinstance(record, dict):
        return None
    said = record.pop("check", None)
    return record if not checks or said == _sum(text.rpartition(', "check": "')[0] + "}") else None


def _sum(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"


def settings_digest(text: str) -> str:
    """Returns what a launch notes of the text of `config.json`, so that it can be told which settings a run had."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
