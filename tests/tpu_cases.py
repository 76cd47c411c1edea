"""What tests of the TPU kernels share: the interpreter and the chips' compiler, on a machine without a TPU."""

import os

import jax
import numpy as np
import pytest

from cram_jax.training import chips, plan

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "v4": "v4:2x2x1", "v7x": "tpu7x:2x2x1"}
ALL = bool(os.environ.get("TEST_ALL_TPUS"))  # also chips and sizes that add nothing new


def devices_of(chip: str) -> list:
    """Returns four virtual devices of a chip, for which programs compile. Skips the test if there is no compiler."""
    pytest.importorskip("libtpu", reason="the TPU's compiler")
    return chips.devices(TOPOLOGIES[chip])


def device_of(chip: str):
    """Returns one of them."""
    return devices_of(chip)[0]


def compiled(f, *given) -> jax.stages.Compiled:
    """Compiles f for the chip of its arguments."""
    return plan.compiled(jax.jit(f).lower(*given))


def alone(f):
    """Returns f, with nothing else running. The interpreter uses JAX itself, and would wait for ever for a busy CPU."""

    def call(*arguments):
        jax.block_until_ready(arguments)
        return jax.tree.map(np.asarray, jax.block_until_ready(f(*arguments)))

    return call


def norm(x) -> float:
    return np.linalg.norm(np.asarray(x, np.float64))
