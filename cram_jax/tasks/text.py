"""A corpus of bytes from real files: memory-mapped, split by file, sampled as a pure function of (seed, index)."""

import dataclasses
import functools
import glob
import hashlib
import os
import stat
import sysconfig
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

SPLITS = {"train": 0, "held_out": 1}
LEFT_OUT = {"__pycache__", "site-packages"}  # folders that are skipped below a pattern's root


@dataclasses.dataclass(frozen=True, eq=False)
class Files:
    """The files of one split, in a random order that depends on their names only. So any stretch is a fair sample.

    Attributes:
      paths: path of each file.
      sizes: size of each file, in bytes.
    """

    paths: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Number of bytes of all files."""
        return sum(self.sizes)


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Attributes: train, files for training; held_out, files for evaluation only."""

    train: Files
    held_out: Files

    @functools.cached_property
    def fingerprint(self) -> str:
        """Counts, bytes, and a digest of all paths and contents. A run can be resumed only on the same files."""
        sha = hashlib.sha256()
        for split in ("train", "held_out"):
            sha.update(repr(getattr(self, split)).encode())
            for data_N in self.contents(split):
                sha.update(data_N)
        return f"{len(self.train.paths)}+{len(self.held_out.paths)} files, {self.bytes} bytes, {sha.hexdigest()[:16]}"

    @property
    def bytes(self) -> int:
        """Number of bytes of both splits."""
        return self.train.bytes + self.held_out.bytes

    def contents(self, split: str) -> Iterator[UInt8[np.ndarray, "N"]]:
        """Yields the bytes of each file of a split. One file is mapped at a time, to spare file descriptors."""
        for path in getattr(self, split).paths:
            yield _map(path)

    def windows(self, split: str, seed: int, index: int, length: int, size: int) -> UInt8[np.ndarray, "B T"]:
        """Returns `size` random windows of length + 1 bytes: a pure function of the arguments and the files.

        All windows of the split are equally likely.

        Args:
          split: "train" or "held_out". They use different random numbers.

        Raises:
          ValueError: if no file of the split is long enough, or a file has changed since the corpus was opened.
        """
        files = getattr(self, split)
        ends = np.cumsum(np.maximum(np.array(files.sizes) - length, 0))
        if not ends[-1]:
            longest = int(np.argmax(files.sizes))
            raise ValueError(
                f"no file of the {split} split holds a window of {length} + 1 bytes; the longest, "
                f"{files.paths[longest]}, has {files.sizes[longest]}: give longer files, or a smaller run.length"
            )
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, SPLITS[split], index])))
        window_BxT = np.empty((size, length + 1), np.uint8)
        for row, place in enumerate(random.integers(ends[-1], size=size)):
            file = int(np.searchsorted(ends, place, side="right"))
            data_N = _map(files.paths[file])
            if len(data_N) != files.sizes[file]:
                raise ValueError(
                    f"{files.paths[file]} has {len(data_N)} bytes and had {files.sizes[file]} when the run began; "
                    "train on files that do not change"
                )
            stop = files.sizes[file] - int(ends[file] - place) + 1
            window_BxT[row] = data_N[stop - length - 1 : stop]
        return window_BxT


def _map(path: str) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.empty(0, np.uint8)
    except OSError as error:
        raise ValueError(_unreadable(path, error)) from error


@functools.lru_cache(maxsize=8)
def open_corpus(patterns: tuple[str, ...], held_out_share: float = 0.1) -> Corpus:
    """Finds the files that the patterns match, and splits them in two. It does not read them into memory.

    Args:
      patterns: files, folders (all files below them) and globs (`**` for any depth). As in a shell, names that begin
        with a dot do not match. Folders in LEFT_OUT below a pattern's root are skipped.
      held_out_share: share of the files to hold out: those with the smallest hash of their name. The name is relative
        to the pattern's root, so the order of patterns and the place of the folder do not matter.

    Raises:
      ValueError: if a pattern matches nothing, a file cannot be read, all files are empty, or a split would be empty.
    """
    if not 0 < held_out_share < 1:
        raise ValueError(f"held_out_share must lie between 0 and 1, got {held_out_share}")
    names = {}  # by real path, so a file that two patterns match counts once
    for pattern in patterns:
        for path, name in _matches(pattern):
            names.setdefault(os.path.realpath(path), (name, path))
    found = [(hashlib.sha256(name.encode(errors="surrogateescape")).digest(), path) for name, path in names.values()]
    sized = [(path, _size(path)) for _, path in sorted(found)]
    full = [(path, size) for path, size in sized if size]
    if not full:
        raise ValueError(f"all {len(sized)} files of {_list(patterns)} are empty; give files with text")
    if len(full) < 2:
        raise ValueError(
            f"{full[0][0]} is the only file with text in {_list(patterns)}, so one split would be empty; "
            "the split into training and held-out text is by file: give at least two, for instance its two halves"
        )
    held_out = min(max(1, round(held_out_share * len(full))), len(full) - 1)
    split = lambda files: Files(tuple(path for path, _ in files), tuple(size for _, size in files))
    return Corpus(split(full[held_out:]), split(full[:held_out]))


def python_sources(at_least: int = 20_000_000) -> tuple[str, ...]:
    """Returns patterns of Python source files: text that exists on every machine.

    It is the standard library. If that has fewer bytes than `at_least`, because a distribution leaves its tests out,
    the installed packages are added.
    """
    stdlib, packages = (os.path.join(sysconfig.get_paths()[name], "**", "*.py") for name in ("stdlib", "purelib"))
    size = sum(os.path.getsize(path) for path, _ in _matches(stdlib))
    return (stdlib,) if size >= at_least else (stdlib, packages)


def _matches(pattern: str) -> list[tuple[str, str]]:
    """(path, path relative to the pattern's root) of each file that a pattern matches."""
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        root, rest = path, os.path.join("**", "*")
    elif os.path.lexists(path):
        root, rest = os.path.dirname(path), glob.escape(os.path.basename(path))
    else:
        parts = path.split(os.sep)
        fixed = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
        root, rest = os.sep.join(parts[:fixed]) or (os.sep if os.path.isabs(path) else ""), os.path.join(*parts[fixed:])
    names = glob.glob(rest, root_dir=root or None, recursive=True)
    inside = lambda name: not LEFT_OUT.intersection(name.split(os.sep)[:-1])
    found = [(os.path.join(root, name), name) for name in names if inside(name)]
    found = [(path, name) for path, name in found if not os.path.isdir(path)]
    if not found and os.path.isdir(path):
        try:
            os.listdir(path)
        except OSError as error:
            raise ValueError(_unreadable(path, error)) from error
        raise ValueError(f"the folder {pattern} holds no files (hidden ones do not count); give a folder with files")
    if not found:
        raise ValueError(f"no file matches {pattern}; check the path, and quote globs to keep them from the shell")
    return found


def _size(path: str) -> int:
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # opening a pipe would block
            raise ValueError(f"{path} is not a regular file; give patterns that do not match it")
        with open(path, "rb"):
            return about.st_size
    except OSError as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: str, error: OSError) -> str:
    return f"{path} cannot be read ({error.strerror}); make it readable, or give patterns that do not match it"


def _list(patterns: tuple[str, ...]) -> str:
    return ", ".join(patterns)
