"""The TPU kernels on four chips: each runs them on its own sequences, and sends nothing to the others."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_cases import compiled, devices_of

from cram_jax import kernels

B, T, H, K = 8, 128, 2, 64


def attention(q, k, v):
    plan = kernels.make_plan(q[..., 0, 0] > 1, memory=T)
    return kernels.skip_attention(q, k, v, plan, backend="tpu")


def ssd(q, k, v):
    return kernels.ssd_scan(q, k, v, -jnp.abs(q[..., 0]), backend="tpu")[0]


def palimpsa(q, k, v):
    gates = jnp.abs(v), jnp.abs(q[..., 0]), jnp.ones(H), jnp.ones(H)
    return kernels.palimpsa_scan(q, k, v, *gates, backend="tpu")[0]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["automatic", "explicit"])
@pytest.mark.parametrize("f", [attention, ssd, palimpsa])
def test_four_chips_share_the_sequences(f, kind):
    mesh = Mesh(np.array(devices_of("v5e")), ("data",), axis_types=(kind,))
    x = jax.ShapeDtypeStruct((B, T, H, K), jnp.bfloat16, sharding=NamedSharding(mesh, P("data")))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        program = compiled(jax.grad(lambda *qkv: jnp.sum(f(*qkv).astype(jnp.float32) ** 2), (0, 1, 2)), x, x, x)
    text = program.as_text()
    assert "tpu_custom_call" in text
    assert not re.findall("all-gather|all-to-all|collective-permute", text)
    assert all(gradient.spec[0] == "data" for gradient in program.output_shardings)


@pytest.mark.parametrize(("f", "sends"), [(attention, "all-reduce"), (ssd, "all-gather"), (palimpsa, "all-gather")])
def test_four_chips_share_heads_and_tokens(f, sends):
    mesh = Mesh(np.array(devices_of("v5e")).reshape(2, 2), ("tensor", "sequence"), axis_types=(AxisType.Auto,) * 2)
    place = NamedSharding(mesh, P(None, "sequence", "tensor"))
    x = jax.ShapeDtypeStruct((B, 2 * T, H, K), jnp.float32, sharding=place)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        text = compiled(lambda *qkv: f(*qkv), x, x, x).as_text()
    assert "tpu_custom_call" in text and sends in text  # kept keys are added up, states are gathered
    sent = [[int(n) for n in shape.split(",")] for shape in re.findall(r"= f32\[([\d,]+)\]\S* all-gather\(", text)]
    assert not any(shape[:2] == [B, 2 * T] for shape in sent), "no device has all tokens"


def test_without_a_mesh_that_divides_a_batch_a_kernel_is_called_as_it_is():
    x = jnp.ones((6, 3))
    seen = lambda x: x * len(jax.sharding.get_abstract_mesh().manual_axes)
    names = {"none": (), "another": ("model",), "not whole": ("data",), "divides": ("fsdp",)}
    sizes = {"none": (), "another": (2,), "not whole": (4,), "divides": (3,)}
    for case, axes in names.items():
        mesh = AbstractMesh(sizes[case], axes, axis_types=(AxisType.Auto,) * len(axes))
        with jax.sharding.use_abstract_mesh(mesh):
            out = jax.make_jaxpr(lambda x: kernels.meshes.by_sequence(seen, x))(x)
        assert ("shard_map" in str(out)) == (case == "divides"), case
