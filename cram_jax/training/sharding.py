"""Training on several devices: each of them holds some rows of a batch, and the memories of the streams in these rows.

Parameters and the optimizer's state are on every device, or each has a part of them (`models/fsdp.py`). What all
sequences consolidate is on every device. Gradients and sums are added over the devices by the compiler, so a training
means the same on one device and on many. It is written as for one.
"""

import contextlib
import dataclasses
import functools
import logging
import re
from functools import partial

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cram_jax.kernels.meshes import BATCH_AXES
from cram_jax.models import fsdp
from cram_jax.models.stack import Stack
from cram_jax.training import processes
from cram_jax.training.checkpoints import from_host, to_host
from cram_jax.training.step import Learner, TrainState, init, train_step

log = logging.getLogger(__name__)

DATA, _ = BATCH_AXES


def wanted(text: str) -> tuple[int, int]:
    """Returns the lengths of the axes `data` and `fsdp` in "data:N" or "data:N,fsdp:M"; N is -1 for all devices.

    Raises:
      ValueError: for another text.
    """
    found = re.fullmatch(rf"{DATA}:(-1|[1-9]\d*)(?:,{fsdp.AXIS}:([1-9]\d*))?", text)
    if not found:
        raise ValueError(
            "run.mesh must be data:N with a number N of devices, or data:-1 for all, and may go on with ,fsdp:M for "
            f"parameters in M parts, got {text!r}"
        )
    return int(found[1]), int(found[2] or 1)


def chosen(text: str, batches: tuple[int, ...], here: list) -> np.ndarray:
    """Returns the devices of a training, among those that are here, in an array of the axes `data` and `fsdp`.

    Args:
      text: "data:N" for N devices, "data:N,fsdp:M" for N M; "data:-1" for as many as divide all batches.
      batches: numbers of sequences of all batches in the training.

    Raises:
      ValueError: if `text` is not such a text, or there are fewer devices, or a batch does not divide among them.
    """
    divides = lambda number: not any(batch % number for batch in batches)
    data, parts = wanted(text)
    if data == -1:
        data = max(filter(lambda one: divides(one * parts), range(1, len(here) // parts + 1)), default=1)
    number, sizes = data * parts, " and ".join(map(str, batches))
    if number > len(here):
        raise ValueError(f"run.mesh={text} needs {number} devices, but there are {len(here)}: {here[0].device_kind}")
    if not divides(number):
        raise ValueError(f"batches of {sizes} sequences do not divide among the {number} devices of run.mesh={text}")
    if idle := len(here) - number:
        hint = "more divide larger batches" if wanted(text)[0] == -1 else "data:-1 takes as many as it can"
        said = "%d of %d devices are idle: run.mesh=%s, batches of %s sequences; %s"
        log.warning(said, idle, len(here), text, sizes, hint)
    return np.array(here[:number]).reshape(data, parts)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What each device holds.

    Attributes:
      mesh: the devices; None for one device, on which all stays where it is.
    """

    mesh: Mesh | None

    def told(self):
        """A context in which programs are told of the devices, so that each runs our kernels on its own sequences."""
        if self.mesh is None:
            return contextlib.nullcontext()
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

    @property
    def name(self) -> str:
        """Which devices train, as `run.mesh` has it."""
        data, parts = (1, 1) if self.mesh is None else self.mesh.shape.values()
        return f"{DATA}:{data}" + (f",{fsdp.AXIS}:{parts}" if parts > 1 else "")

    def rows(self, tree, rows: int):
        """Puts arrays on the devices: those with an axis of so many rows in front by their rows, others everywhere."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: _put(leaf, self._of_row(leaf, rows)), tree)

    def shapes(self, model: Stack, state: TrainState, given, rows: int):
        """Returns (state, given) as shapes that say where each array is, to compile for devices that are not here."""
        like = lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        given = jax.tree.map(lambda leaf: like(leaf, self._of_row(leaf, rows)), given)
        return jax.tree.map(like, state, self._of_state(model, state)), given

    def states(self, model: Stack, states: tuple) -> tuple:
        """Puts consolidation states on the devices: those of streams by their rows, others everywhere."""
        return states if self.mesh is None else _put(states, self._of_states(model, states))

    def state(self, model: Stack, state: TrainState) -> TrainState:
        """Puts the state of a training on the devices."""
        return state if self.mesh is None else _put(state, self._of_state(model, state))

    def init(self, learner: Learner, seed: int, patterns: int, streams: int | None) -> TrainState:
        """Returns a fresh state on the devices; arguments as in `step.init`. None of them holds more than its part."""
        if self.mesh is None:
            return init(learner, seed, patterns, streams)
        fresh = lambda: init.__wrapped__(learner, seed, patterns, streams)
        return jax.jit(fresh, out_shardings=self._of_state(learner.model, jax.eval_shape(fresh)))()

    def alone(self, state: TrainState) -> TrainState:
        """Puts the state of a training on one device of each process, where any program can use it.

        In parts it stays where it is, since one device may not hold all of them.
        """
        if self.mesh is None or self.mesh.shape[fsdp.AXIS] > 1:
            return state
        if processes.several():
            return from_host(to_host(self.everywhere(state)), state)
        return jax.device_put(state, self.mesh.devices.flat[0])

    def everywhere(self, tree):
        """Returns arrays that all processes can read, whole on each device."""
        return _put(tree, NamedSharding(self.mesh, P())) if processes.several() else tree

    def step(self, learner: Learner, state: TrainState):
        """Returns `train_step` for this learner: a function (state, batch, fresh rows) whose state stays in place."""
        if self.mesh is None:
            return partial(train_step, learner)
        places = self._of_state(learner.model, state), NamedSharding(self.mesh, P())

        def step(state, batch, fresh_B):
            with self.told():
                return train_step.__wrapped__(learner, state, batch, fresh_B)

        return jax.jit(step, donate_argnums=0, out_shardings=places)

    def _of_row(self, leaf, rows: int) -> NamedSharding:
        return NamedSharding(self.mesh, P(BATCH_AXES) if np.ndim(leaf) and np.shape(leaf)[0] == rows else P())

    def _of_state(self, model: Stack, state: TrainState) -> TrainState:
        parts = self.mesh.shape[fsdp.AXIS]

        def divided(path, leaf) -> NamedSharding:
            layers = int("model" in [getattr(key, "name", None) for key in path])  # the first axis is of layers
            return NamedSharding(self.mesh, P(*[None] * layers, *fsdp.spec(leaf.shape[layers:], parts)))

        learned = jax.tree.map_with_path(divided, (state.params, state.opt_state))
        everywhere = jax.tree.map(lambda _: NamedSharding(self.mesh, P()), state)
        return everywhere._replace(
            params=learned[0],
            opt_state=learned[1],
            consolidation=self._of_states(model, state.consolidation),
        )

    def _of_states(self, model: Stack, states: tuple) -> tuple:
        shared = jax.eval_shape(lambda: model.init_state(None))
        spec = lambda leaf, without: (
            P(None, BATCH_AXES) if leaf.ndim > without.ndim else P()
        )  # the first axis is of layers
        return jax.tree.map(lambda *leaves: NamedSharding(self.mesh, spec(*leaves)), states, shared)


def _put(tree, place):
    """Puts a tree of arrays, the same in all processes, on devices; `place` is a sharding, or a tree of them."""
    if not processes.several():
        return jax.device_put(tree, place)
    return _moved(place)(tree)


@functools.cache
def _moved(place):
    return jax.jit(lambda tree: tree, out_shardings=place)


def over(devices: np.ndarray) -> Layout:
    """Returns the layout of a training on these devices, in an array of the axes `data` and `fsdp`."""
    kinds, flat = (AxisType.Auto,) * 2, devices.ravel().tolist()
    return Layout(jax.make_mesh(devices.shape, BATCH_AXES, axis_types=kinds, devices=flat))


@functools.cache  # so that what is idle is said once
def layout(text: str, batches: tuple[int, ...]) -> Layout:
    """Returns the layout of a training on the devices of this machine; arguments and errors as in `chosen`."""
    devices = chosen(text, batches, jax.devices())
    return over(devices) if devices.size > 1 else Layout(None)
