"""What tests of the TPU kernels share: the interpreter and the chips' compiler, on a machine without a TPU."""

import os

# Before libtpu is loaded: ask no machine for its chips, and share the library with other processes.
os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import jax
import numpy as np
import pytest
from jax.experimental import topologies

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v4": "v4:2x2x1", "v7x": "tpu7x:2x2x1"}
ALL = bool(os.environ.get("TEST_ALL_TPUS"))  # also chips and sizes that add nothing new


def devices_of(chip: str) -> list:
    """Returns four virtual devices of a chip, for which programs compile. Skips the test if there is no compiler."""
    pytest.importorskip("libtpu", reason="the TPU's compiler")
    return topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices


def device_of(chip: str):
    """Returns one of them."""
    return devices_of(chip)[0]


def compiled(f, *given) -> jax.stages.Compiled:
    """Compiles f for the chip of its arguments. It is kept nowhere: what is for a chip cannot be read without one."""
    kept_from = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, kept_from)
    jax.config.update(kept_from, float("inf"))
    try:
        return jax.jit(f).lower(*given).compile()
    finally:
        jax.config.update(kept_from, before)


def alone(f):
    """Returns f, with nothing else running. The interpreter uses JAX itself, and would wait for ever for a busy CPU."""

    def call(*arguments):
        jax.block_until_ready(arguments)
        return jax.tree.map(np.asarray, jax.block_until_ready(f(*arguments)))

    return call


def norm(x) -> float:
    return np.linalg.norm(np.asarray(x, np.float64))
