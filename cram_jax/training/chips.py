"""Chips that programs are compiled for without having them: what their makers state, and how to name groups of them."""

import os
import re
from typing import NamedTuple

from jax.experimental import topologies


class Chip(NamedTuple):
    """memory: bytes of its memory.
    flops: operations a second in bfloat16, at most.
    bandwidth: bytes a second from its memory, at most.
    links: bytes a second to other chips, all links together, one way.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float


# What Google states for each, https://cloud.google.com/tpu/docs/v5e and so on, and NVIDIA in its data sheet of the H100
CHIPS = {
    "TPU v4": Chip(32e9, 275e12, 1.2e12, 300e9),
    "TPU v5 lite": Chip(16e9, 197e12, 0.82e12, 200e9),
    "TPU v5": Chip(95e9, 459e12, 2.765e12, 600e9),
    "TPU v6 lite": Chip(32e9, 918e12, 1.64e12, 400e9),
    "NVIDIA H100 80GB HBM3": Chip(80e9, 989e12, 3.35e12, 450e9),
}
# Asks no machine for its chips, shares the compiler with other processes, and prints no warnings
QUIETLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
}
# What XLA's compiler for GPUs must know of one, since it can ask none
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  core_count: 132 threads_per_warp: 32 fpus_per_core: 128
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  clock_rate_ghz: 1.98 l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def devices(topology: str) -> list:
    """Returns the chips of a topology, for which programs compile.

    Args:
      topology: "h100:N" for N GPUs of one machine, or TPUs in their compiler's words, such as "v5e:4x4".

    Raises:
      ValueError: if the compiler is not installed, or does not know the topology.
    """
    gpus = re.fullmatch(r"h100:([1-9]\d*)", topology)
    try:
        if gpus:
            return topologies.get_topology_desc(
                platform="cuda", topology_name="", topology=f"1x1x{gpus[1]}", target_config=H100
            ).devices
        for name, value in QUIETLY.items():
            os.environ.setdefault(name, value)
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # what is raised depends on the version of the compiler
        needed = "jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12 (as in make aot-gpu)" if gpus else "libtpu"
        raise ValueError(
            f"no topology {topology!r} to compile for; name one such as v5e:4x4, v5p:4x4x4, v6e:16x16 or h100:8, and "
            f"install its compiler with pip install {needed} ({str(error).splitlines()[0]})"
        ) from error
