"""The GPU's benchmark, run on a CPU with XLA in place of the kernel: it finds the known errors of XLA."""

from types import SimpleNamespace

import gpu
import jax
import pytest
from lib import gather
from lib.figures import kernels

from cram_jax.kernels.backends import SKIP_ATTENTION


def test_parts_measure_and_the_figure_is_drawn(tmp_path, monkeypatch):
    for name in ("forward", "backward"):
        monkeypatch.setattr(SKIP_ATTENTION["gpu"], name, getattr(SKIP_ATTENTION["xla"], name))
    for name, value in (("HEADS", 2), ("DIM", 16), ("CALLS", 1)):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "dense", lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True))
    result = {"errors": gpu.errors(100), "times_128": gpu.times(1, 128, 1), "others_128": gpu.others(1, 128, 1)}
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


def test_it_refuses_where_there_is_no_gpu(tmp_path):
    with pytest.raises(ValueError, match="this measures an NVIDIA GPU, and JAX runs on 'cpu'"):
        gpu.main(SimpleNamespace(rounds=1, results=str(tmp_path)))
    assert not list(tmp_path.iterdir())
