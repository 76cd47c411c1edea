"""Checkpoints that are verified: orbax saves the arrays, our digest tells whether what comes back is what was saved.

A damaged or half-written save is passed over for the newest one that verifies, and said so.
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
    """Every array of the tree by its path, in numpy; typed random keys as their data."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = lambda leaf: np.array(jax.random.key_data(leaf) if is_key(leaf) else leaf)
    return {jax.tree_util.keystr(path): array(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def from_host(arrays: dict[str, np.ndarray], like):
    """`to_host` undone, with the types of `like`."""

    def one(path, leaf):
        array = arrays[jax.tree_util.keystr(path)]
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
        return jax.numpy.array(array, leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, like)


def shapes(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Every array's dtype and shape: what makes two states those of the same model."""
    return {path: f"{array.dtype}{list(array.shape)}" for path, array in arrays.items()}


def digest(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256 over every array's path, dtype, shape and bytes."""
    sha = hashlib.sha256()
    for path in sorted(arrays):
        array = arrays[path]
        sha.update(f"{path}{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _full(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: array for path, array in arrays.items() if array.size}  # orbax saves no empty arrays


class Checkpoints:
    """The saves of one run, in `directory`, newest `keep` of them."""

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = Path(directory).resolve()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self.manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state) -> None:
        """Saves in the background; `close` waits for it. Saves of this step and later ones make room.

        There are such only where `restore` passed over them as damaged; beside them orbax would refuse this one.
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
        """(step, state) of the newest save that verifies, or None where there is none.

        Raises:
          ValueError: where the save is one of another model, naming the first array that differs.
        """
        wanted = to_host(like)
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                facts = self.manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())).facts
            except Exception as error:  # whatever a half-written save makes orbax raise
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
        """Waits for saves that are under way."""
        self.manager.wait_until_finished()
        self.manager.close()


def _line(error: Exception) -> str:
    return json.dumps(str(error).split("\n")[0][:200])
