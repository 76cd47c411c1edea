"""Several processes that train as one: one on each host of a TPU pod, or on each of several machines with GPUs.

All of them run the same program, each on its own devices (`jax.distributed`). The first one alone writes files and
prints, but for checkpoints, which all write together into a folder that they share. A stop by SIGTERM reaches all of
them at the same step. Where one is gone, the others end: at once where a socket tells them, else after `SILENCE`
seconds, when JAX ends them ("another task died"). The first says so in one line, unless it is the one that is gone.
"""

import glob
import json
import os
import re
import sys
import zlib
from collections.abc import Callable
from importlib import util

import jax
import numpy as np
from jax.experimental import multihost_utils

from cram_jax.training.files import Folder

SILENCE = 30  # seconds without a sign of life, after which a process counts as gone
STARTING = 120  # seconds in which all processes must have started
SEVERAL = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # who starts processes says how many there are


def begin(said: str = "") -> None:
    """Joins the processes that train together, if there are several; before anything else is asked of JAX.

    Args:
      said: "i/n@HOST:PORT" for process i of n, from 0, where HOST is the machine of process 0. "" for what SLURM, Open
        MPI or a TPU VM say of it; then one process may be all.

    Raises:
      ValueError: for another text, or if not all processes come together.
    """
    found = re.fullmatch(r"(\d+)/([1-9]\d*)@([^@\s]+:\d+)", said)
    if said and (not found or int(found[1]) >= int(found[2])):
        raise ValueError(f"--process must be i/n@HOST:PORT with i from 0 to n - 1, got {said!r}")
    if not found and not _started_as_several():
        return
    number, count, where = (int(found[1]), int(found[2]), found[3]) if found else (None, None, None)
    try:
        jax.distributed.initialize(
            where, count, number, initialization_timeout=STARTING, heartbeat_timeout_seconds=SILENCE,
            shutdown_timeout_seconds=SILENCE,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        if not found and not _counted() and "coordinator_address" in str(error):
            return  # JAX finds no others: what looks like TPUs are none
        raise ValueError(
            f"the processes of this training did not come together ({str(error).splitlines()[0][:200]}); start each of "
            f"them within {STARTING} seconds, with the same n and HOST:PORT"
        ) from error


def _started_as_several() -> bool:
    """Whether this process was started as one of several, as far as its environment says."""
    if _counted():
        return True
    if "cpu" in os.environ.get("JAX_PLATFORMS", ""):
        return False
    # On a TPU VM JAX asks how many hosts there are. These are the places of TPUs, older and newer ones.
    return bool(util.find_spec("libtpu") and (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")))


def _counted() -> bool:
    """Whether who started this process says that it started several."""
    return any(int(os.environ.get(name) or 1) > 1 for name in SEVERAL)


def several() -> bool:
    """Whether several processes train together."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def first() -> bool:
    """Whether this is the process that writes and prints."""
    return not several() or jax.process_index() == 0


def from_first(make: Callable):
    """Returns what `make()` returns in the first process, in all of them. It must be what JSON can hold."""
    if not several():
        return make()
    text = json.dumps(make()).encode() if first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    sent = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(size, b" ")[:size], np.uint8))
    return json.loads(bytes(sent.astype(np.uint8)))


def gathered(number: np.ndarray) -> np.ndarray:
    """Returns an array of each process, with the processes in front."""
    return np.asarray(multihost_utils.process_allgather(number)) if several() else number[None]


def check_alike(text: str, what: str) -> None:
    """Checks that a text is the same in all processes.

    Args:
      what: what it says, for the message.

    Raises:
      ValueError: if it is not.
    """
    sums = gathered(np.asarray(zlib.crc32(text.encode()), np.uint32))
    if (sums != sums[0]).any():
        odd = np.flatnonzero(sums != sums[0]).tolist()
        raise ValueError(f"processes {odd} were started with {what} other than those of process 0; give all the same")


def meet() -> None:
    """Waits until all processes are here."""
    if several():
        multihost_utils.sync_global_devices("all are here")


def stop_at(step: int) -> bool:
    """Whether all processes end with this step, since one of them got SIGTERM. To be asked by all, at each step."""
    return several() and multihost_utils.reached_preemption_sync_point(step)


def check_shared(directory: Folder) -> None:
    """Checks that all processes see the same folder, in which the first has made a file.

    Raises:
      ValueError: if one of them does not.
    """
    if not several():
        return
    mark = directory / "processes.tmp"
    if first():
        mark.write_text("seen by all")
    meet()
    seen = gathered(np.asarray(mark.exists()))
    if first():
        mark.unlink()
    if not seen.all():
        raise ValueError(
            f"--workdir={directory} is not the same folder for all {seen.size} processes: not for those of numbers "
            f"{np.flatnonzero(~seen).tolist()}; name one that they share"
        )


def lost(error: BaseException | None) -> bool:
    """Whether an error says that another of several processes is gone."""
    said = ("Gloo", "coordination", "UNAVAILABLE", "DEADLINE_EXCEEDED", "heartbeat")
    return several() and any(word in str(error) for word in said)


LOST = (
    "another process of this training has ended or cannot be reached ({}); start all of them again, they go on from "
    "the last checkpoint"
)


def leave(status: int) -> None:
    """Ends one of several processes without waiting for the others, as it would at the usual end."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
