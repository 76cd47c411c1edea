"""What a training step needs on devices that are not here: their compilers run on any machine."""

import dataclasses
import math
import re
import time
from typing import NamedTuple

import jax

from cram_jax.kernels.backends import compiling_for
from cram_jax.kernels.meshes import BATCH_AXES
from cram_jax.training import costs, loop, sharding
from cram_jax.training import step as training
from cram_jax.training.chips import CHIPS, Chip
from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner

KERNEL = re.compile(r'custom_call_target="(?:tpu_custom_call|mosaic_gpu)')  # how XLA calls the kernels of TPU and GPU


class TooLarge(ValueError):
    """The compiler found no way to fit a step into the memory of a chip."""


class Plan(NamedTuple):
    """What one chip does in a training step.

    Attributes:
      chip: what it is.
      chips: how many train.
      parameters: numbers of the model.
      rows, tokens: sequences of a batch on one chip, and tokens of the whole batch.
      state, batch, working: bytes of the training's state, of its part of the batch, and of all that is between.
      costs: what it computes, moves and sends, but for what our kernels do inside.
      kernels: calls of our kernels in the program's text, where a loop stands once.
      seconds, processor_seconds: that it took to lower and compile, by the clock and of all processors together.
    """

    chip: Chip
    chips: int
    parameters: int
    rows: int
    tokens: int
    state: int
    batch: int
    working: int
    costs: costs.Costs
    kernels: int
    seconds: float
    processor_seconds: float

    @property
    def memory(self) -> int:
        """Bytes that a chip needs."""
        return self.state + self.batch + self.working

    @property
    def fits(self) -> bool:
        """Whether a chip's memory holds them."""
        return self.memory <= self.chip.memory

    @property
    def sends(self) -> int:
        """Bytes that a chip sends. An all-reduce of n bytes among many chips sends 2n from each, others n."""
        return sum(size * (2 if kind == "all-reduce" else 1) for kind, size in self.costs.sent.items())

    @property
    def times(self) -> dict[str, float]:
        """Least seconds of a step for what is computed, read and written, and sent, each by itself."""
        return {
            "computed": self.costs.flops / self.chip.flops,
            "read and written": self.costs.bytes / self.chip.bandwidth,
            "sent": self.sends / self.chip.links,
        }


def plan(learner: Learner, run: RunConfig, here: list) -> Plan:
    """Compiles the last training step for devices that need not be here, and returns what each of them does.

    Raises:
      ValueError: if `run.mesh` cannot be had of these devices, or they are of an unknown kind.
      TooLarge: if the compiler says so.
    """
    if here[0].device_kind not in CHIPS:
        raise ValueError(f"nothing is known of a {here[0].device_kind}; known are {', '.join(CHIPS)}")
    used = sharding.chosen(run.mesh, run.batches, here, run.lengths)
    layout, (length, rows) = sharding.over(used), run.shape(run.steps - 1)  # after the curriculum
    with compiling_for(here[0]):
        state = jax.eval_shape(lambda: training.init(learner, 0, 0, loop.streams(learner, run)))
        state, given = layout.shapes(learner.model, state, _given(learner, run, used.size), rows)
        start, used_before = time.perf_counter(), time.process_time()
        lowered = layout.step(learner, state).lower(state, *given)
    try:
        program = compiled(lowered)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLarge(f"a chip cannot hold its part of a batch of {rows} sequences: {_first_line(error)}") from error
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - used_before
    needed, text = program.memory_analysis(), program.as_text()
    groups = math.prod(used.shape[: len(BATCH_AXES)])  # devices of a group have the same sequences
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(given)) // groups
    return Plan(
        chip=CHIPS[here[0].device_kind],
        chips=used.size,
        parameters=sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        rows=rows // groups,
        tokens=rows * length,
        state=needed.argument_size_in_bytes - batch,
        batch=batch,
        working=needed.temp_size_in_bytes + needed.output_size_in_bytes - needed.alias_size_in_bytes,
        costs=costs.costs(text),
        kernels=len(KERNEL.findall(text)),
        seconds=seconds,
        processor_seconds=processor_seconds,
    )


def _given(learner: Learner, run: RunConfig, few: int):
    """What the last step is given, as shapes. A few sequences are made, not the batch: it may not fit this machine."""
    length, rows = run.shape(run.steps - 1)
    small = dataclasses.replace(run, batch=few, length=length, curriculum=())
    grown = lambda leaf: (rows, *leaf.shape[1:]) if leaf.ndim and leaf.shape[0] == few else leaf.shape
    given = loop.given(learner, small, 0, 0)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(grown(leaf), leaf.dtype), given)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]


def compiled(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program, and keeps it nowhere: what is for a chip cannot be read from a cache without one."""
    kept_from = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, kept_from)
    jax.config.update(kept_from, math.inf)
    try:
        return lowered.compile()
    finally:
        jax.config.update(kept_from, before)
