"""Wall-clock times that can be compared: interleaved, warm, medians with their spread."""

import time
from collections.abc import Callable

import jax
import numpy as np


def timed(calls: dict[str, Callable], rounds: int = 9) -> dict[str, dict[str, float]]:
    """Milliseconds of each call: {"ms": median, "low": lower, "high": upper quartile}.

    Every call is made once before (compilation), then all in turn, `rounds` times: what slows the machine for a while
    slows all of them.
    """
    times = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1000 * (time.perf_counter() - start))
    quartiles = {name: np.percentile(values, [25, 50, 75]) for name, values in times.items()}
    return {name: {"ms": float(m), "low": float(a), "high": float(b)} for name, (a, m, b) in quartiles.items()}
