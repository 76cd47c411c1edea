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

All of it may be in a bucket, gs://BUCKET/FOLDER. There a file is always written whole, and nothing is locked.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import time
import zlib
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import numpy as np
from etils import epath

log = logging.getLogger(__name__)

Folder = Path | epath.Path  # on this machine, or in a bucket; so are files


def folder(name: str | Folder) -> Folder:
    """Returns a folder on this machine, or in a bucket for "gs://BUCKET/FOLDER".

    Raises:
      ValueError: for another "://", or if what reads buckets is not installed.
    """
    scheme, found, _ = str(name).partition("://")
    if not found:
        return Path(name)
    if scheme != "gs":
        raise ValueError(f"{name} cannot be written: folders are on this machine or in a bucket, gs://BUCKET/FOLDER")
    if not util.find_spec("gcsfs"):
        raise ValueError(f"{name} needs the package gcsfs: pip install 'cram_jax[gs]'")
    return epath.Path(name)


def is_remote(path: Folder) -> bool:
    """Whether a path is in a bucket."""
    return not isinstance(path, Path)


def under(directory: Folder) -> Iterator[Folder]:
    """All files below a folder, in order."""
    for path in sorted(directory.iterdir()) if directory.exists() else ():
        if path.is_dir():
            yield from under(path)
        else:
            yield path


def copied(directory: Folder, to: Folder) -> None:
    """Copies all files below a folder into another one."""
    for path in under(directory):
        new = to / path.relative_to(directory)
        new.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, new.open("wb") as target:
            shutil.copyfileobj(source, target)


def moved(directory: Folder, to: Folder) -> None:
    """Gives a folder another place, where none has been."""
    if not is_remote(directory):
        directory.rename(to)
        return
    copied(directory, to)
    directory.rmtree()


@contextlib.contextmanager
def held(directory: Folder) -> Iterator[None]:
    """Inside, no other process can hold this directory. The kernel lets go when the process ends, however it ends.

    Raises:
      ValueError: if another process holds it. The message says which.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if is_remote(directory):
        log.info("%s cannot be locked: see to it that only one training writes there", directory)
        yield
        return
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


def write_whole(path: Folder, text: str) -> None:
    """Writes a file so that a reader finds the old text or the new one, even after a crash or on a full disk.

    Raises:
      OSError: if it cannot be written. It names the file.
    """
    if is_remote(path):
        path.write_text(text)
        return
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


def append(path: Folder, record: dict) -> None:
    """Adds a line to a file in one write. What a crash left there of another line does not spoil it.

    Raises:
      OSError: if it cannot be written whole. It names the file.
    """
    if is_remote(path):  # a bucket knows no appending
        before = path.read_text() if path.exists() else ""
        path.write_text(before + as_line(record))
        return
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


def read(path: Folder) -> list[dict]:
    """Returns the lines of a file, with NaN for null. Bad ones are left out, and the log names them."""
    lines, bad = parse(path)
    if bad:
        log.warning("%s: damaged at line %s; the others are used", path, ", ".join(map(str, bad)))
    return lines


def parse(path: Folder) -> tuple[list[dict], list[int]]:
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
