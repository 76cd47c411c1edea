"""The registry: what "auto" takes, what is refused and why, and what is imported."""

import contextlib
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax import kernels
from cram_jax.kernels.backends import FAMILIES, SKIP_ATTENTION, SSD, Call
from cram_jax.kernels.skip_attention.reference import SHORT

LISTED = [(family, name) for family, backends in FAMILIES.items() for name in backends.names]
SCANS = ("ssd", "palimpsa")


@pytest.mark.parametrize(("family", "name"), LISTED)
def test_a_backend_has_what_its_family_asks_for(family, name):
    backend = FAMILIES[family][name]
    reason = backend.supported(Call("cpu", 10, 10, jnp.float32))
    assert reason is None or "interpreter" in reason
    for function in ("scan",) if family in SCANS else ("forward", "backward"):
        assert callable(getattr(backend, function))


def test_a_cpu_imports_no_accelerator_code():
    code = """
import sys, jax.numpy as jnp
from cram_jax import kernels
ones = jnp.ones((1, 200, 2, 4))
kernels.skip_attention(ones, ones, ones, kernels.make_plan(jnp.ones((1, 200), bool)))
kernels.ssd_scan(ones, ones, ones, -ones[..., 0])
kernels.palimpsa_scan(ones, ones, ones, ones, ones[..., 0], jnp.ones(2), jnp.ones(2))
ours = [name for name in sys.modules if name.startswith("cram_jax.") and ("tpu" in name or "gpu" in name)]
print(ours + [name for name in sys.modules if name.startswith("jax.experimental.pallas")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize(("platform", "name"), [("tpu", "tpu"), ("gpu", "xla"), ("cpu", "xla"), ("another", "xla")])
def test_auto_takes_what_was_verified_there(monkeypatch, platform, name):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert kernels.resolve("auto", 4096, 4096) == name
    # Few keys alone do not make many rows cheap to compute without skipping
    short = SHORT.get(platform, 100)
    assert kernels.resolve("auto", 4096, short) == name == kernels.resolve("auto", short, 4096)
    assert kernels.resolve("auto", short, short) == ("reference" if platform in SHORT else name)
    # ... and a branch for another platform asks for that one
    assert kernels.resolve("auto", 4096, 4096, platform="cpu") == "xla"
    # The scans have no GPU kernel, and no number of tokens for which token after token is faster
    for family in SCANS:
        for tokens in (1, 4096):
            assert FAMILIES[family].resolve("auto", Call(platform, tokens, tokens, jnp.bfloat16)) == name


@pytest.mark.parametrize("capability", ["9.0", "10.0", "8.0"])
def test_a_gpu_of_another_kind_has_no_kernel(monkeypatch, capability):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(compute_capability=capability)])
    hopper = capability == "9.0"
    assert kernels.resolve("auto", 4096, 4096, jnp.bfloat16) == ("gpu" if hopper else "xla")
    assert kernels.resolve("auto", 4096, 4096, jnp.float32) == "xla"
    with contextlib.nullcontext() if hopper else pytest.raises(kernels.NotSupported, match="is for Hopper GPUs"):
        assert kernels.resolve("gpu", 4096, 4096, jnp.bfloat16) == "gpu"


def test_auto_goes_on_where_accelerator_code_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "cram_jax.kernels.skip_attention.tpu", None)  # as if its import failed
    assert kernels.resolve("auto", 4096, 4096, platform="tpu") == "xla"
    with pytest.raises(kernels.NotSupported, match='backend "tpu" of skip_attention cannot be imported here'):
        kernels.resolve("tpu", 4096, 4096, platform="tpu")


def test_auto_takes_no_backend_that_does_not_ask_for_it(monkeypatch):
    call = Call("cpu", 1, 1, jnp.float32)
    assert not hasattr(SSD["reference"], "preferred") and SSD.resolve("auto", call) == "xla"
    monkeypatch.setattr(SSD["reference"], "preferred", lambda call: True, raising=False)
    assert SSD.resolve("auto", call) == "reference"


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about a machine without an accelerator")
def test_arrays_on_a_cpu_are_not_for_an_accelerator():
    x = jnp.ones((1, 5, 2, 4))
    for name in ("tpu", "gpu"):
        with pytest.raises(kernels.NotSupported, match=f"runs on a {name.upper()}, but the arrays are on a CPU"):
            kernels.skip_attention(x, x, x, kernels.make_plan(jnp.ones((1, 5), bool)), backend=name)
    with pytest.raises(kernels.NotSupported, match=r"runs on a TPU, but .*take \"auto\""):
        kernels.ssd_scan(x, x, x, -x[..., 0], backend="tpu")
    # Traced arrays may be compiled for another machine
    trace = lambda x: kernels.ssd_scan(x, x, x, -x[..., 0], backend="tpu")[0]
    assert jax.eval_shape(trace, x).shape == x.shape


@pytest.mark.parametrize("name", SKIP_ATTENTION.everywhere())
def test_auto_is_the_backend_it_stands_for(name):
    # Given lengths for which "auto" takes it on a CPU
    T = {"reference": 20, "xla": 200}.get(name)
    if T is None:
        pytest.skip("it runs by name only")
    assert kernels.resolve("auto", T, T, platform="cpu") == name
    x = jax.random.normal(jax.random.key(0), (1, T, 2, 4))
    plan = kernels.make_plan(jnp.asarray(np.random.default_rng(0).random((1, T)) < 0.5))
    text = lambda backend: jax.jit(lambda x: kernels.skip_attention(x, x, x, plan, backend=backend)).lower(x).as_text()
    assert text("auto") == text(name)
