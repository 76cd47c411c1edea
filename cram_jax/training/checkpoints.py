"""Verified checkpoints: orbax saves the arrays, and a digest of ours shows whether they are read back unchanged.

- A save that is damaged or incomplete is named, and the newest older one that is intact is taken. Before its step is
  saved again, it is set aside in `damaged/`, beside the checkpoints.
- A save that cannot be read (no permission, an error of the disk) may be intact. So `restore` tries again, and then
  stops. Nothing is deleted.
- A save that fails is named, and the run goes on. Older checkpoints stay.
- A state that is divided among devices is saved and restored in parts: each process writes and reads those of its own
  devices. It can be restored on other devices, and by another number of processes.
"""

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from cram_jax.training import digests, files, processes
from cram_jax.training.files import Folder

log = logging.getLogger(__name__)

RETRIES = (0.2, 1.0, 3.0)  # seconds to wait before a checkpoint is read again


def arrays_of(tree) -> dict[str, jax.Array | np.ndarray]:
    """Returns each array of the tree by its path, where it is. Typed random keys become their data."""
    array = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
    return {jax.tree_util.keystr(path): array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def to_host(tree) -> dict[str, np.ndarray]:
    """Returns `arrays_of` the tree in numpy."""
    return {path: np.array(array) for path, array in arrays_of(tree).items()}


def is_key(leaf) -> bool:
    """Whether an array is of typed random keys."""
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def from_host(arrays: dict[str, np.ndarray | jax.Array], like):
    """Returns a tree like `like` that holds these arrays: the inverse of `to_host`. Those on devices stay there."""

    def one(path, leaf):
        array = arrays[jax.tree_util.keystr(path)]
        if is_key(leaf):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return array if isinstance(array, jax.Array) else jax.numpy.array(array, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, like)


def shapes(arrays: dict[str, np.ndarray | jax.Array]) -> dict[str, str]:
    """Returns the dtype and shape of each array. Two states belong to the same model if these are equal."""
    return {path: f"{array.dtype}{list(array.shape)}" for path, array in arrays.items()}


def _full(arrays: dict) -> dict:
    return {path: array for path, array in arrays.items() if array.size}  # orbax saves no empty arrays


class Damaged(Exception):
    """A save that is not what was written."""


class Checkpoints:
    """The saves of one run in `directory`. Only the newest `keep` of them stay."""

    def __init__(self, directory: Folder, keep: int = 2):
        self.directory = directory if files.is_remote(directory) else Path(directory).resolve()
        # One process saves in a thread of ours: where orbax runs one in the background, and it fails, the process hangs
        # at its end for minutes. Several processes must wait for each other in turn, which orbax sees to.
        by_orbax = processes.several()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=by_orbax)
        self.manager = ocp.CheckpointManager(self.directory, options=options)
        self.thread = ThreadPoolExecutor(1)
        self.under_way: tuple[int, Callable] | None = None  # number of the step, and what waits for its save
        self.beside = None

    def save(self, step: int, state, beside=None) -> None:
        """Saves in the background. `wait` says whether it worked; so does the next save, in the log.

        Saves of this step and later ones are damaged ones that `restore` passed over. They are set aside first.

        Args:
          beside: what else belongs to the state, as JSON has it. After `restore` it is in the attribute `beside`.

        Raises:
          FloatingPointError: if there is a NaN in the state. Such a state is never saved.
        """
        self.wait()
        arrays = arrays_of(state) if processes.several() else to_host(state)
        if bad := [path for path, array in arrays.items() if has_nan(array)]:
            raise FloatingPointError(f"the state of step {step} is not saved: {bad[0]} has NaN")
        facts = {"digest": digests.digest(arrays), "shapes": shapes(arrays), "beside": beside}
        facts |= {"check": check_sum(facts)}
        if processes.several():
            self._save(step, arrays, facts)
            self.under_way = step, self.manager.wait_until_finished
        else:
            self.under_way = step, self.thread.submit(self._save, step, arrays, facts).result

    def _save(self, step: int, arrays: dict, facts: dict) -> None:
        for other in [other for other in self.manager.all_steps() if other >= step]:
            self._set_aside(other)
        self.manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(_full(arrays)), facts=ocp.args.JsonSave(facts))
        )

    def _set_aside(self, step: int) -> None:
        if processes.first():
            aside = self.directory.with_name("damaged")
            aside.mkdir(exist_ok=True)
            there = aside.iterdir() if aside.exists() else ()  # in a bucket there are no empty folders
            number = sum(path.name.startswith(f"checkpoint_{step}.") for path in there)
            files.moved(self.directory / str(step), aside / f"checkpoint_{step}.{number}")
        processes.meet()
        self.manager.reload()

    def keep(self, folder: Folder) -> None:
        """Copies the newest save to a folder that has not been there, so that later saves do not delete it.

        A copy that fails is named in the log.
        """
        self.wait()
        if not processes.first():
            return
        newest, part = self.manager.latest_step(), folder.with_name(f"{folder.name}.part")
        try:
            part.mkdir(parents=True, exist_ok=True)
            if newest is not None:
                files.copied(self.directory / str(newest), part / str(newest))
            files.moved(part, folder)
        except OSError as error:
            log.warning("checkpoint %s could not be kept in %s (%s)", newest, folder, _line(error))

    def wait(self) -> bool:
        """Waits for the save under way, if there is one; returns False if it failed, and logs why."""
        if self.under_way is None:
            return True
        (step, saving), self.under_way = self.under_way, None
        try:
            saving()
        except Exception as error:  # orbax raises many kinds of errors
            log.error("checkpoint %d could not be saved (%s); older ones stay as they are", step, _line(error))
            return False
        return True

    def restore(self, like):
        """Returns (step, state) of the newest intact save, or None if there are no saves.

        What is divided among devices in `like` is so in the state.

        Raises:
          ValueError: if there are saves, but none is intact; or if the save is of another model: the message names the
            first array that differs.
          OSError: if the newest save that may be intact cannot be read, even after some seconds.
        """
        host = lambda array: array if is_divided(array) else np.array(array)
        wanted = {path: host(array) for path, array in arrays_of(like).items()}
        steps = sorted(self.manager.all_steps(), reverse=True)
        for step in steps:
            try:
                return step, from_host(self._read(step, wanted), like)
            except Damaged as error:
                log.warning("checkpoint %d is damaged (%s); trying an older one", step, error)
        if steps:
            raise ValueError(
                f"none of the checkpoints {steps[::-1]} in {self.directory} is intact; put back a copy of one, or "
                "begin anew in another --workdir"
            )
        return None

    def _read(self, step: int, wanted: dict) -> dict:
        """Returns the arrays of a save. Raises as `restore`, and Damaged."""
        for wait in (*RETRIES, None):
            try:
                if processes.first():
                    _touch(self.directory / str(step))
                return self._verified(step, wanted)
            except OSError as error:
                if wait is None:
                    raise OSError(
                        f"checkpoint {step} in {self.directory} cannot be read ({_line(error)}). It may be intact, so "
                        "nothing was changed; make it readable, or move it away to go on from an older one"
                    ) from error
                time.sleep(wait)
        raise AssertionError("not reached")

    def _verified(self, step: int, wanted: dict) -> dict:
        facts = self._restored(step, facts=ocp.args.JsonRestore()).facts
        if not isinstance(facts, dict) or facts.get("check") != check_sum(
            {n: v for n, v in facts.items() if n != "check"}
        ):
            raise Damaged("what it says about itself does not match its check sum")
        self._check_model(step, facts["shapes"], shapes(wanted))
        place = lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
        targets = {path: place(array) if is_divided(array) else array for path, array in _full(wanted).items()}
        arrays = wanted | self._restored(step, state=ocp.args.StandardRestore(targets)).state
        of_today = len(facts["digest"]) == 16
        if facts["digest"] != (digests.digest(arrays) if of_today else digests.sha256(arrays)):
            raise Damaged("its digest does not match")
        self.beside = facts.get("beside")
        return arrays

    def _restored(self, step: int, **what):
        """Restores a part of a save. Where one of several processes cannot, none can."""
        found, failed = None, None
        try:
            found = self._reader.restore(step, args=ocp.args.Composite(**what))
        except Exception as error:  # a damaged save makes orbax raise many kinds of errors
            if processes.lost(error):
                raise
            failed = self._why(step, error)
        kinds = processes.gathered(np.asarray(sum(isinstance(failed, kind) for kind in (Exception, OSError))))
        if failed is None and kinds.any():
            failed = (OSError if kinds.max() > 1 else Damaged)("another process of this training cannot read it")
        if failed is not None:
            raise failed
        return found

    @functools.cached_property
    def _reader(self) -> ocp.CheckpointManager:
        """What reads a save; of several processes each for itself, so that none waits for one that fails."""
        if not processes.several():
            return self.manager
        own = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})
        options = ocp.CheckpointManagerOptions(read_only=True, create=False, multiprocessing_options=alone)
        absl = logging.getLogger("absl")
        with contextlib.ExitStack() as after:  # orbax warns that what only reads will not write
            after.callback(absl.setLevel, absl.level)
            absl.setLevel(logging.ERROR)
            return ocp.CheckpointManager(self.directory, options=options)

    def _why(self, step: int, error: Exception) -> "Damaged | OSError":
        """What it means that a save cannot be restored."""
        try:
            _touch(self.directory / str(step))
        except OSError as unread:
            return unread
        return Damaged(_line(error))

    def _check_model(self, step: int, found: dict[str, str], wanted: dict[str, str]) -> None:
        for path in [*wanted, *found]:
            if found.get(path) != wanted.get(path):
                raise ValueError(
                    f"checkpoint {step} in {self.directory} is of another model: {path} is {found.get(path)} there "
                    f"and {wanted.get(path)} here; use the settings it was made with, or another --workdir"
                )

    def close(self) -> bool:
        """Waits until all is saved; returns False if the last save failed, and logs why."""
        saved = self.wait()
        self.thread.shutdown()
        self.manager.close()
        return saved


def is_divided(array) -> bool:
    """Whether an array is on several devices, in parts or whole."""
    return isinstance(array, jax.Array) and len(array.sharding.device_set) > 1


def has_nan(array: np.ndarray | jax.Array) -> bool:
    """Whether there is a NaN in an array."""
    return jax.numpy.issubdtype(array.dtype, np.inexact) and bool((array != array).any())


def check_sum(facts: dict) -> str:
    """Returns the SHA-256 of what a save says about itself."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _touch(folder: Folder) -> None:
    """Reads all files of a folder. Raises OSError if one cannot be read; one that is not there is no such error."""
    for path in files.under(folder):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            while file.read(2**20):
                pass


def _line(error: Exception) -> str:
    return json.dumps(str(error).split("\n")[0][:200])
