"""Times that can be compared, and the memory of compiled programs."""

import time
from collections.abc import Callable

import jax
import numpy as np


def timed(calls: dict[str, Callable], rounds: int = 9, per: int = 1) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: {"ms": median, "low": lower quartile, "high": upper quartile}.

    Every call is made once before, so that it is compiled. Then all are made in turn, `rounds` times: what slows the
    machine for a while slows all of them.

    Args:
      per: the times are divided by it. It says how many steps, tokens or programs one call runs.
    """
    times = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1000 * (time.perf_counter() - start) / per)
    quartiles = {name: np.percentile(values, [25, 50, 75]) for name, values in times.items()}
    return {name: {"ms": float(m), "low": float(a), "high": float(b)} for name, (a, m, b) in quartiles.items()}


def megabytes(program: jax.stages.Compiled) -> float:
    """What a compiled program needs beside its arguments and results."""
    return program.memory_analysis().temp_size_in_bytes / 1e6
