"""Verified checkpoints: orbax saves the arrays, and a digest of ours shows whether they are read back unchanged.

If a save is damaged or incomplete, `restore` logs a warning and takes the newest older one that is intact.
"""

import hashlib
import json
import logging
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

log = logging.getLogger(__name__)


def to_host(tree) -> dict[str, np.ndarray]:
    """Returns each array of the tree in numpy, by its path. Typed random keys become their data."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = lambda leaf: np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return {jax.tree_util.keystr(path): array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def from_host(arrays: dict[str, np.ndarray], like):
    """Returns a tree like `like` that holds these arrays: the inverse of `to_host`."""

    def one(path, leaf):
        array = arrays[jax.tree_util.keystr(path)]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return jax.numpy.array(array, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, like)


def shapes(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the dtype and shape of each array. Two states belong to the same model if these are equal."""
    return {path: f"{array.dtype}{list(array.shape)}" for path, array in arrays.items()}


def digest(arrays: dict[str, np.ndarray]) -> str:
    """Returns the SHA-256 of the paths, dtypes, shapes and bytes of all arrays."""
    sha = hashlib.sha256()
    for path in sorted(arrays):
        array = arrays[path]
        sha.update(f"{path}{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _full(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: array for path, array in arrays.items() if array.size}  # orbax saves no empty arrays


class Checkpoints:
    """The saves of one run in `directory`. Only the newest `keep` of them stay."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = Path(directory).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state) -> None:
        """Saves in the background; `close` waits for it.

        First deletes all saves of this step and later ones, because orbax would refuse to save beside them. They are
        damaged ones that `restore` skipped.
        """
        passed_over = [s for s in self.manager.all_steps() if s >= step]
        if passed_over:
            self.manager.wait_until_finished()
        for other in passed_over:
            self.manager.delete(other)
        arrays = to_host(state)
        facts = {"digest": digest(arrays), "shapes": shapes(arrays)}
        self.manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(_full(arrays)), facts=ocp.args.JsonSave(facts))
        )

    def restore(self, like):
        """Returns (step, state) of the newest intact save, or None if there is none.

        Raises:
          ValueError: if the save is of another model. The message names the first array that differs.
        """
        wanted = to_host(like)
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                facts = self.manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
            except Exception as error:  # a half-written save makes orbax raise many kinds of errors
                log.warning("checkpoint %d cannot be read (%s); trying an older one", step, _line(error))
                continue
            self._check_model(step, facts["shapes"], shapes(wanted))
            try:
                restore = ocp.args.Composite(state=ocp.args.StandardRestore(_full(wanted)))
                arrays = wanted | self.manager.restore(step, args=restore).state
            except Exception as error:
                log.warning("checkpoint %d cannot be read (%s); trying an older one", step, _line(error))
                continue
            if digest(arrays) != facts["digest"]:
                log.warning("checkpoint %d is damaged (its digest does not match); trying an older one", step)
                continue
            return step, from_host(arrays, like)
        return None

    def _check_model(self, step: int, found: dict[str, str], wanted: dict[str, str]) -> None:
        for path in [*wanted, *found]:
            if found.get(path) != wanted.get(path):
                raise ValueError(
                    f"checkpoint {step} in {self.directory} is of another model: {path} is {found.get(path)} there "
                    f"and {wanted.get(path)} here; use the settings it was made with, or another --workdir"
                )

    def close(self) -> None:
        """Waits until all saves are written."""
        self.manager.wait_until_finished()
        self.manager.close()


def _line(error: Exception) -> str:
    return json.dumps(str(error).split("\n")[0][:200])
