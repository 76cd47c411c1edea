"""The GPU's benchmark: what it says of XLA in the kernel's place, on a CPU, is what is known of XLA."""

import json
import subprocess
import sys
from pathlib import Path

from lib import gather
from lib.figures import kernels
from mqar_cases import environment

ROOT = Path(__file__).parents[2]
SMALL = """
import json, jax, gpu
from cram_jax.kernels.backends import SKIP_ATTENTION
for name in ("forward", "backward"):
    setattr(SKIP_ATTENTION["gpu"], name, getattr(SKIP_ATTENTION["xla"], name))
gpu.HEADS, gpu.DIM, gpu.CALLS = 2, 16, 1
gpu.dense = lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)
print(json.dumps({"errors": gpu.errors(100), "times_128": gpu.times(1, 128, 1), "others_128": gpu.others(1, 128, 1)}))
"""


def run(*argv: str) -> subprocess.CompletedProcess:
    env = environment() | {"PYTHONPATH": f"{ROOT}/experiments:{ROOT}"}
    return subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_parts_measure_and_the_figure_is_drawn(tmp_path):
    done = run("-c", SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    for name, found in result["errors"].items():
        bfloat16 = name.startswith(("gpu", "xla_bfloat16"))
        assert found["repeats"] and (1e-4 < found["error"] < 1e-2 if bfloat16 else found["error"] < 1e-5), name
    for times in result["times_128"].values():
        assert times["dense"]["cheaper_than_dense"] == 1
        assert {"gpu_0", "gpu_16", "gpu_1000", "kernel_16", "kernel_1000"} < times.keys()
    assert set(result["others_128"]) == {"xla_16", "reference_16", "reference_1000"}
    out = gather.result("kernels_gpu", "What is gained?", "python experiments/gpu.py", gather.made_here(), data=result)
    kernels.gpu(out, tmp_path)
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_it_refuses_where_there_is_no_gpu():
    done = run("experiments/gpu.py")
    assert done.returncode and "this measures an NVIDIA GPU, and JAX runs on 'cpu'" in done.stderr
