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


def compile_all(K: int, V: int) -> None:
    """Forward and backward for 8 query heads and 4 key-value heads of these sizes over 4096 positions."""
    import jax
    import jax.numpy as jnp

    from cram_jax import kernels
    from cram_jax.training import chips

    where = jax.sharding.SingleDeviceSharding(chips.devices("h100:1")[0])
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
