"""Measures times of several calls in turn, and the memory of compiled programs."""

import time
from collections.abc import Callable

import jax
import numpy as np


def timed(calls: dict[str, Callable], rounds: int = 9, per: int = 1) -> dict[str, dict[str, float]]:
    """Returns the milliseconds of each call: {"ms": median, "low": lower quartile, "high": upper quartile}.

    Each call runs once first, to be compiled. Then all calls run in turn, `rounds` times. So if the machine is slow for
    a while, all calls are slowed.

    Args:
      per: number of steps, tokens or programs in one call. Times are divided by it.
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
    """Returns the working memory of a compiled program in megabytes, without arguments and results."""
    return program.memory_analysis().temp_size_in_bytes / 1e6
