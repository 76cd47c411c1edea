"""Trainings on eight devices are those on one: losses, parameters, memories. test_meshes.py runs this.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/training/training_on_meshes.py NAME MESH
"""

import dataclasses
import re
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.tasks.streams import StreamsConfig
from cram_jax.tasks.streams_task import StreamsTask
from cram_jax.training import loop, sharding
from cram_jax.training.controller import PriceConfig
from cram_jax.training.loop import RunConfig
from cram_jax.training.metrics import CLOCK
from cram_jax.training.step import Learner

T, B = 32, 16
TABLE = SRCDTask(SRCDConfig(patterns=8, answers=8, length=T))
STREAMS = StreamsTask(StreamsConfig(srcd=TABLE.data, universe=40, lifetimes=(3, 5)))
EVENTS = EpisodicConfig(heads=2, head_dim=8, memory=T)
SOLVED = PosteriorCRAMConfig(D=16, F=16, episodic=EVENTS, semantic=PosteriorConfig(blocks=4, features=8))
TRAININGS = {
    "cram": (TABLE, CRAMConfig(D=16, F=16, episodic=EVENTS)),
    "streams": (STREAMS, SOLVED),
    "attention": (TABLE, AttentionConfig(D=16, F=16)),
    "mamba2": (TABLE, Mamba2Config(D=16, heads=2, head_dim=8, state=8)),
    "palimpsa": (TABLE, PalimpsaConfig(D=16, heads=2, key_dim=8, value_dim=8)),
}
RUN = RunConfig(
    steps=20, length=T, batch=B, log_every=10, checkpoint_every=10, held_out_tokens=2 * B * T, probe_batches=0
)


def trained(learner: Learner, mesh: str, workdir: Path, steps: int = 20):
    """(state, lines) of a training."""
    return loop.train(learner, dataclasses.replace(RUN, mesh=mesh, steps=steps), 0, workdir, patterns=8)


def agree(learner: Learner, one, many) -> None:
    """Sums are ordered differently, and twenty steps let that grow, most in the memories: they are no means."""
    (want, lines), (got, again) = jax.device_get(one), jax.device_get(many)
    close = lambda rtol: lambda a, b: np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * max(1, np.abs(a).max()))
    jax.tree.map(close(1e-5), (want.params, want.price), (got.params, got.price))
    if learner.task is STREAMS:  # what is solved from the sums of its memory is less exact than they are
        ((a,), (b,)) = want.consolidation, got.consolidation
        jax.tree.map(close(1e-4), a._replace(memory=a.memory.sums), b._replace(memory=b.memory.sums))
        close(1e-2)(a.memory.up_SxFxD, b.memory.up_SxFxD)
    else:
        jax.tree.map(close(1e-4), want.consolidation, got.consolidation)
    assert [line["step"] for line in again] == [line["step"] for line in lines] == [0, 10, 20]
    for a, b in zip(lines, again, strict=True):
        for name in a.keys() - set(CLOCK):
            np.testing.assert_allclose(b[name], a[name], rtol=1e-5, atol=1e-5, err_msg=name)


def check_a_step(learner: Learner, state, mesh: str) -> None:
    """Devices hold what they should, and send each other sums, parameters, and of tokens as little as they need."""
    run = dataclasses.replace(RUN, mesh=mesh)
    lengths = sharding.wanted(mesh)
    state = run.layout().state(learner.model, state)
    given = loop.placed(learner, run, 0, 20)
    step = run.layout().step(learner, state).lower(state, *given).compile()

    # Each device has all parameters and what the optimizer keeps, or a part of the arrays whose sizes allow it
    state, _ = step(state, *given)
    used = set()  # shapes of parameters while they are used
    for whole in (state.params, *(kept for kept in state.opt_state if isinstance(kept, type(state.params)))):
        for path, leaf in jax.tree.leaves_with_path(whole):
            shape = leaf.shape[int("model" in str(path)) :]  # parameters of layers have their number in front
            own = [i for i in of_heads(path[-1].name) if shape[i] % lengths.tensor == 0 and lengths.tensor > 1]
            others = [n for i, n in enumerate(shape) if i not in own]
            divided = len(shape) > 1 and any(n % lengths.fsdp == 0 for n in others)
            share = leaf.addressable_shards[0].data.size / leaf.size
            assert share == 1 / ((lengths.fsdp if divided else 1) * (lengths.tensor if own else 1)), (
                path,
                leaf.sharding,
            )
            part = tuple(n // lengths.tensor if i in own else n for i, n in enumerate(shape))
            used |= {without_ones(part), without_ones(shape), without_ones((*leaf.shape[: -len(shape)], *part))}
    if learner.task is STREAMS:  # and the memories of its streams
        (held,) = state.consolidation
        for leaf in jax.tree.leaves(held.memory):
            rows = B // (lengths.data * lengths.fsdp)
            assert {shard.data.shape[1] for shard in leaf.addressable_shards} == {rows}, leaf.sharding
    else:  # what all sequences consolidate is the same everywhere
        for leaf in jax.tree.leaves(state.consolidation):
            first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
            assert first.shape == leaf.shape and all(np.array_equal(first, other) for other in others)

    assert "all-reduce(" in step.as_text()
    sent = re.findall(r".*= .*(?:all-gather|all-to-all|collective-permute|reduce-scatter)\(.*", step.as_text())
    sent = [line for line in sent if not is_expected(line, learner, lengths, used)]
    assert not sent, sent[:3]


def of_heads(name: str) -> list[int]:
    """Axes of heads and of hidden units in a parameter."""
    letters = name.rsplit("_", 1)[-1].split("x")
    return [0] if name in ("out_XxD", "out_norm_X") else [i for i, one in enumerate(letters) if one in ("H", "F")][:1]


def is_expected(line: str, learner: Learner, lengths: sharding.Lengths, used: set) -> bool:
    """Whether devices may send this, a line in the text of a program."""
    shape, kind = shape_of(line), re.search(r"= \(?(\w+)\[", line)[1]
    gathers = "all-gather(" in line
    # CPUs have top_k for arrays in one piece only, and it is used where streams have memories
    if learner.task is STREAMS and "top_k" in line:
        return True
    if lengths.fsdp * lengths.tensor > 1 and gathers and shape in used:
        return True
    rows = B // (lengths.data * lengths.fsdp)
    of_tokens = shape[:2] in ((rows, T), (rows, T // lengths.sequence))
    if lengths.tensor > 1 and gathers and not of_tokens and "transpose(" in line:  # of the gradient of `by_head`
        return True
    if lengths.sequence == 1:
        return False
    if kind in ("pred", "s32"):  # marks of tokens
        return True
    if "collective-permute(" in line:  # the last tokens of the device before
        return True
    states = "shard_map/all_gather" in line or "shard_map/reduce_scatter" in line
    keys = isinstance(learner.model.layers[0], AttentionConfig) and len(shape) >= 3 and T in shape
    return states or keys


def without_ones(shape) -> tuple[int, ...]:
    return tuple(n for n in shape if n > 1)


def shape_of(line: str) -> tuple[int, ...]:
    """The shape of an operation's result, in the text of a program, without axes of length 1."""
    return without_ones(int(n) for n in re.search(r"\[([\d,]*)\]", line)[1].split(",") if n)


def main(name: str, mesh: str) -> None:
    task, layer = TRAININGS[name]
    depth = 1 if task is STREAMS else 2  # the layer with a memory compiles longest
    learner = Learner(task, Stack((layer,), depth), price=PriceConfig(start=4, ramp=4, plateau=10.0))
    with tempfile.TemporaryDirectory() as folder:
        one, many = (Path(folder) / number for number in ("one", "many"))
        want = trained(learner, "data:1", one)
        half, _ = trained(learner, mesh, many, 10)
        lengths = sharding.wanted(mesh)
        number = 8 if lengths.fsdp * lengths.tensor > 1 else 1
        assert {leaf.sharding.num_devices for leaf in jax.tree.leaves(half)} == {number}
        # A training that is stopped goes on with another number of devices
        agree(learner, want, trained(learner, "data:1", many))
        check_a_step(learner, jax.device_get(half), mesh)
    print("the same on eight devices")


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    main(*sys.argv[1:])
