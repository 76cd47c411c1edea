"""Compiles the GPU kernels for sm_90 with the real compiler and without a GPU: `make aot-gpu`.

Fails where a kernel does not compile, spills registers, or has its matrix products serialised (ptxas' C7512). It says
nothing about numbers, which are `test_gpu.py`'s business, nor about speed. jax with its CUDA 12 plugin has to be
installed, and a toolchain that does not miscompile causal attention: nvcc 12.9.86 or newer. Complaints that nvdisasm
is missing mean nothing.
"""

import os
import re
import tempfile
from pathlib import Path

HEADS = (64, 64), (128, 128), (64, 128), (128, 64)  # of keys, of values
KERNELS = 3  # forward, dQ, and dK with dV
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


def compile_all(K: int, V: int) -> None:
    """Forward and backward for 8 query heads and 4 key-value heads of these sizes over 4096 positions."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from cram_jax import kernels

    topology = topologies.get_topology_desc(platform="cuda", topology_name="", topology="1x1x1", target_config=H100)
    where = jax.sharding.SingleDeviceSharding(topology.devices[0])
    array = lambda shape, kind: jax.ShapeDtypeStruct(shape, kind, sharding=where)

    def loss(q, k, v, routed):
        plan = kernels.make_plan(routed, memory=1000)
        return jnp.sum(kernels.skip_attention_compact(q, k, v, plan, backend="gpu").astype(jnp.float32) ** 2)

    queries, keys, values = (array((2, 4096, heads, X), jnp.bfloat16) for heads, X in ((8, K), (4, K), (4, V)))
    jax.jit(jax.grad(loss, (0, 1, 2))).lower(queries, keys, values, array((2, 4096), jnp.bool_)).compile()


def main() -> None:
    dump = Path(tempfile.mkdtemp())
    os.environ |= {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1", "MOSAIC_GPU_DUMP_TO": str(dump)}
    bad = 0
    for K, V in HEADS:
        compile_all(K, V)
        found = sorted(dump.glob("*.ptxas"))
        if len(found) != KERNELS:
            raise SystemExit(
                f"the compiler left reports of {len(found)} kernels, not of {KERNELS}: nothing was checked"
            )
        for path in found:
            said = path.read_text()
            number = lambda pattern, said=said: int(re.search(pattern, said)[1])
            registers = number(r"Used (\d+) reg")
            spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
            serialised = "C7512" in said
            bad += bool(spilled) or serialised
            note = ", SERIALISED" if serialised else ""
            print(f"{path.stem}, heads {K} and {V}: {registers} registers, {spilled} bytes spilled{note}")
            path.unlink()
    if bad:
        raise SystemExit(f"{bad} kernels spill registers or have their matrix products serialised")


if __name__ == "__main__":
    main()
