"""Training on several devices: each of them holds some rows of a batch, and the memories of the streams in these rows.

Parameters and the optimizer's state are on every device, or each has a part of them (`models/fsdp.py`). Several devices
may share the same rows: each has its own heads and hidden units (axis `tensor`), or its own tokens (axis `sequence`).
What all sequences consolidate is on every device. Gradients and sums are added over the devices by the compiler, so a
training means the same on one device and on many. It is written as for one.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import re
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cram_jax.kernels.meshes import BATCH_AXES, SEQUENCE, TENSOR
from cram_jax.models import fsdp
from cram_jax.models.stack import Stack
from cram_jax.training import processes
from cram_jax.training.checkpoints import from_host, to_host
from cram_jax.training.step import Learner, TrainState, init, train_step

log = logging.getLogger(__name__)

DATA, _ = BATCH_AXES
AXES = (*BATCH_AXES, TENSOR, SEQUENCE)  # neighbours in the last ones send each other most


class Lengths(NamedTuple):
    """Numbers of devices along each of `AXES`."""

    data: int
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1


def wanted(text: str) -> Lengths:
    """Returns the lengths of the axes in a text such as "data:N,fsdp:M,tensor:K,sequence:L"; N is -1 for all devices.

    Raises:
      ValueError: for another text.
    """
    others = "".join(rf"(?:,{axis}:([1-9]\d*))?" for axis in AXES[1:])
    found = re.fullmatch(rf"{DATA}:(-1|[1-9]\d*){others}", text)
    if not found:
        raise ValueError(
            "run.mesh must be data:N with a number N of devices, or data:-1 for all, and may go on with ,fsdp:M for "
            "parameters in M parts, ,tensor:K for heads and hidden units in K parts, ,sequence:L for the tokens of a "
            f"sequence in L parts, in this order, got {text!r}"
        )
    return Lengths(*(int(length or 1) for length in found.groups()))


def chosen(text: str, batches: tuple[int, ...], here: list, lengths: tuple[int, ...] = ()) -> np.ndarray:
    """Returns the devices of a training, among those that are here, in an array of the axes `AXES`.

    Args:
      text: "data:N" for N devices, "data:N,fsdp:M" for N M, and so on; "data:-1" for as many as divide all batches.
      batches: numbers of sequences of all batches in the training.
      lengths: numbers of tokens of all sequences in the training.

    Raises:
      ValueError: if `text` is not such a text, or there are fewer devices, or a batch or a sequence does not divide
        among them.
    """
    divides = lambda rows: not any(batch % rows for batch in batches)
    data, parts, *others = wanted(text)
    each = parts * math.prod(others)
    if data == -1:
        data = max(filter(lambda one: divides(one * parts), range(1, len(here) // each + 1)), default=1)
    number, rows, sizes = data * each, data * parts, " and ".join(map(str, batches))
    if number > len(here):
        raise ValueError(f"run.mesh={text} needs {number} devices, but there are {len(here)}: {here[0].device_kind}")
    if not divides(rows):
        raise ValueError(f"batches of {sizes} sequences do not divide among the {rows} devices of run.mesh={text}")
    if odd := [length for length in lengths if length % others[-1]]:
        raise ValueError(
            f"sequences of {odd[0]} tokens do not divide among the {others[-1]} devices of the axis {SEQUENCE} in "
            f"run.mesh={text}"
        )
    if idle := len(here) - number:
        hint = "more divide larger batches" if wanted(text)[0] == -1 else "data:-1 takes as many as it can"
        said = "%d of %d devices are idle: run.mesh=%s, batches of %s sequences; %s"
        log.warning(said, idle, len(here), text, sizes, hint)
    return np.array(here[:number]).reshape(data, parts, *others)


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
        lengths = Lengths(1) if self.mesh is None else Lengths(**self.mesh.shape)
        return ",".join(f"{axis}:{n}" for axis, n in lengths._asdict().items() if n > 1 or axis == DATA)

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
        if self.mesh is None or self.mesh.shape[fsdp.AXIS] * self.mesh.shape[TENSOR] > 1:
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
        parts, tensor = self.mesh.shape[fsdp.AXIS], self.mesh.shape[TENSOR]

        def divided(path, leaf) -> NamedSharding:
            layers = int("model" in [getattr(key, "name", None) for key in path])  # the first axis is of layers
            spec = fsdp.spec(leaf.shape[layers:], parts, fsdp.name_of(path), tensor)
            return NamedSharding(self.mesh, P(*[None] * layers, *spec))

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
    """Returns the layout of a training on these devices, in an array of the axes `AXES`."""
    kinds, flat = (AxisType.Auto,) * len(AXES), devices.ravel().tolist()
    return Layout(jax.make_mesh(devices.shape, AXES, axis_types=kinds, devices=flat))


@functools.cache  # so that what is idle is said once
def layout(text: str, batches: tuple[int, ...], lengths: tuple[int, ...] = ()) -> Layout:
    """Returns the layout of a training on the devices of this machine; arguments and errors as in `chosen`."""
    devices = chosen(text, batches, jax.devices(), lengths)
    if without := set(range(jax.process_count())) - {device.process_index for device in devices.flat}:
        sizes = " and ".join(map(str, batches))
        raise ValueError(
            f"run.mesh={text} with batches of {sizes} sequences leaves processes {sorted(without)} of "
            f"{jax.process_count()} without a device; start fewer, or take batches that divide among all devices"
        )
    return over(devices) if devices.size > 1 else Layout(None)
