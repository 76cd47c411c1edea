"""One of several processes that train together; test_processes.py starts them.

python tests/training/training_in_processes.py WORKDIR MESH PROCESS [SIGNAL STEP NUMBER]

SIGNAL reaches the process of this NUMBER before that step. A process alone leaves its last state in WORKDIR/last.npz.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
from lib import launch
from training_on_meshes import RUN, TABLE, TRAININGS

from cram_jax.models.stack import Stack
from cram_jax.training import loop, processes
from cram_jax.training.checkpoints import to_host
from cram_jax.training.controller import PriceConfig
from cram_jax.training.step import Learner

# The layer that compiles soonest; a layer that consolidates for TEST_ALL_MESHES=1
LAYER = TRAININGS["cram" if os.environ.get("TEST_ALL_MESHES") else "attention"][1]
LEARNER = Learner(TABLE, Stack((LAYER,), 1), price=PriceConfig(start=4, ramp=4, plateau=10.0))


def signalled(number: int, at: int, process: int):
    """`loop.given`, which sends this process a signal before step `at` if it has that number."""
    given = loop.given

    def and_signal(learner, run, seed, step):
        if step == at and jax.process_index() == process:
            os.kill(os.getpid(), number)
        if at < step:
            time.sleep(0.2)  # until all know of it, steps go on
        return given(learner, run, seed, step)

    return and_signal


def main(workdir: str, mesh: str, process: str, *signal: str) -> None:
    processes.begin(process)
    if signal:
        loop.given = signalled(*map(int, signal))
    run = dataclasses.replace(RUN, mesh=mesh)
    state, lines = loop.train(LEARNER, run, 0, Path(workdir), patterns=8)
    assert [line["step"] for line in lines] == [0, 10, 20]
    print("devices", run.layout().name, jax.device_count(), "of", jax.process_count(), "processes")
    if not processes.several():
        np.savez(Path(workdir) / "last.npz", **to_host(state))


if __name__ == "__main__":
    launch.quiet()
    with launch.explained():
        main(*sys.argv[1:])
