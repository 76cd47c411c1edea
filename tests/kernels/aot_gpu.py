"""Compiles the GPU kernels for sm_90 with the real compiler and without a GPU: `make aot-gpu`.

Fails where a kernel does not compile, spills registers, or has its matrix products serialised (ptxas' C7512). It says
nothing about numbers, which are `test_gpu.py`'s business, nor about speed. jax with its CUDA 12 plugin has to be
installed, and a toolchain that does not miscompile causal attention: nvcc 12.9.86 or newer.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

FACTS = ("registers", "bytes stack frame", "bytes spill stores", "bytes spill loads", "bytes smem")
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


def compile_all(head: int) -> None:
    """Forward and backward for 8 query heads and 4 key-value heads of this size over 4096 positions."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from cram_jax import kernels

    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=H100
    )
    where = jax.sharding.SingleDeviceSharding(topology.devices[0])
    array = lambda shape, kind: jax.ShapeDtypeStruct(shape, kind, sharding=where)

    def loss(q, k, v, routed):
        plan = kernels.make_plan(routed, memory=1000)
        return jnp.sum(kernels.skip_attention_compact(q, k, v, plan, backend="gpu").astype(jnp.float32) ** 2)

    queries, keys = array((2, 4096, 8, head), jnp.bfloat16), array((2, 4096, 4, head), jnp.bfloat16)
    jax.jit(jax.grad(loss, (0, 1, 2))).lower(queries, keys, keys, array((2, 4096), jnp.bool_)).compile()


def reports(text: str) -> list[tuple[str, dict[str, int]]]:
    """(kernel, facts) as the assembler prints them."""
    found = []
    for part in re.split(r"Compiling entry function '", text)[1:]:
        number = lambda fact, part=part: re.search(rf"(\d+) {fact}", part) or re.search(rf"[Uu]sed (\d+) {fact}", part)
        found.append((part.split("'")[0], {fact: int(number(fact)[1]) for fact in FACTS if number(fact)}))
    return found


def main() -> None:
    dump = Path(tempfile.mkdtemp())
    os.environ |= {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_TO": str(dump)}
    for head in (64, 128):
        compile_all(head)
    text = "\n".join(path.read_text(errors="replace") for path in sorted(dump.rglob("*")) if path.is_file())
    print(text)
    print(list(dump.rglob("*")))


if __name__ == "__main__":
    sys.exit(main())
