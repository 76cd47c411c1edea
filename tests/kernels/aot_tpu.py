"""Static schedules of the TPU kernels by tile, from the TPU's own compiler, without a TPU: `make aot-tpu`.

For each chip and head dimension, each candidate is compiled and the instruction bundles counted of the step that does
one tile of rows and one block of keys (its prologue and epilogue are in the count: an upper bound). Memory traffic and
stalls are not in it, so it ranks tiles by work and is no time. `kernels/skip_attention/tpu.py` says how the tiles that
are shipped follow. Writes runs/kernels_tpu_tiles.
"""

import os
import re
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before libtpu is loaded: ask no machine for its chips, and share the library with other processes.
os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1", JAX_PLATFORMS="cpu")

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from cram_jax import kernels
from cram_jax.kernels.skip_attention import tpu
from cram_jax.kernels.skip_attention.tpu import Tiles

ROOT = Path(__file__).parents[2]
QUESTION = "Which tiles of the TPU kernel need the fewest instructions?"
CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
CANDIDATES = [Tiles(128, 512), Tiles(256, 512), Tiles(256, 1024), Tiles(512, 512)]
KERNELS = ("forward", "dq", "dkv")
TOTAL = re.compile(r"total scheduled bundles:\s*(\d+)")


def compiled_for(device, K: int, tiles: Tiles) -> None:
    """Compiles all three kernels for 4096 positions of 4 heads in bfloat16; its compiler leaves schedules behind."""
    place = jax.sharding.SingleDeviceSharding(device)
    like = lambda *sizes, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(sizes, dtype, sharding=place)
    B, T, H = 1, 4096, 4
    plan = kernels.SkipPlan(*(like(*sizes, dtype=jnp.int32) for sizes in [(B, T)] * 4 + [(B,)] * 2))

    def both(plan, q, k, v, do):
        o, lse = tpu.forward(q, k, v, plan, 1.0, tiles=tiles)
        return o, tpu.backward(q, k, v, plan, 1.0, o, lse, do, tiles=tiles)

    jax.jit(both).lower(plan, *[like(B, T, H, K)] * 4).compile()


def bundles(dump: Path) -> dict[str, int]:
    """By kernel, of what was compiled last; the folder is emptied."""
    found = {}
    for kernel in KERNELS:
        (file,) = dump.glob(f"*{kernel}_kernel*schedule-analysis_final_bundles.txt")
        found[kernel] = int(TOTAL.search(file.read_text())[1])
    for file in dump.iterdir():
        file.unlink()
    return found


def write(chips: dict) -> None:
    """The result below runs/."""
    sys.path.append(str(ROOT / "experiments"))
    from lib import gather, results

    made = gather.made_here(["Counted by the TPU compiler without a TPU."])
    made["versions"]["libtpu"] = version("libtpu")
    result = gather.result("kernels_tpu_tiles", QUESTION, "make aot-tpu", made, data=chips)
    results.write(ROOT / "runs" / "kernels_tpu_tiles", result)


def main() -> None:
    dump, chips = Path(tempfile.mkdtemp()), {}
    os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true"
    for chip, topology in CHIPS.items():
        device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
        for K in (64, 128, 256):
            shipped = tpu.best_tiles(device.device_kind, K)
            rows = []
            for tiles in CANDIDATES:
                # As best_tiles does: at small head dimensions the softmax is taken of a whole block at once
                tiles = tiles._replace(part=shipped.part if K >= 128 else tiles.keys)
                row = {**tiles._asdict(), "shipped": tiles == shipped}
                try:
                    compiled_for(device, K, tiles)
                    found = bundles(dump)
                    per = {f"{name}_per_1024_pairs": 1024 * n / (tiles.rows * tiles.keys) for name, n in found.items()}
                    row |= {"bundles": found, **per}
                except Exception as error:  # whatever the compiler says of what does not fit
                    row |= {"refused": str(error).split("\n")[0][:200]}
                rows.append(row)
                print(chip, K, row, flush=True)
            chips[f"{chip}, head dimension {K}"] = sorted(rows, key=lambda row: (row["rows"], row["keys"]))
    write(chips)
    shutil.rmtree(dump)


if __name__ == "__main__":
    main()
