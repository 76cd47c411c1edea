"""Public kernels compute on a mesh with explicit axes, and in `shard_map`, what they compute on one device.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/functional/kernels_on_meshes.py
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from cram_jax import kernels
from cram_jax.kernels import PalimpsaState

B, T, H, G, K, V = 8, 12, 4, 2, 3, 5
BATCH, HEADS = "batch", "heads"


def draw(*shape, positive: bool = False):
    x = np.random.default_rng(sum(shape)).normal(size=shape)
    return jnp.asarray(np.log1p(np.exp(x)) if positive else x)


def arguments() -> dict:
    """(function of arrays, arrays, how each is divided) by name. The last axis that is divided is that of heads."""
    q, k, v = draw(B, T, G, K), draw(B, T, G, K), draw(B, T, H, V)
    marks, segments = draw(B, T) > 0, jnp.broadcast_to(jnp.arange(T) // 5 % 2, (B, T))
    log_decay, state = -draw(B, T, H, positive=True), draw(B, H, V, K)
    beta, dt, rate, prior = (draw(*s, positive=True) for s in ((B, T, H, V), (B, T, H), (H,), (H,)))
    batch = P(BATCH)
    attend = lambda q, k, v, marks, segments: kernels.skip_attention(
        q, k, v, kernels.make_plan(marks, kept_BxT=~marks, memory=3, segment_BxT=segments)
    )
    ssd = lambda q, k, v, d, s, state: kernels.ssd_scan(q, k, v, d, state, segment_BxT=s)
    palimpsa = lambda q, k, v, beta, dt, rate, prior, s: kernels.palimpsa_scan(
        q, k, v, beta, dt, rate, prior, PalimpsaState(state, jnp.abs(state)), segment_BxT=s
    )
    shared = lambda q, k, v, beta, dt, rate, prior, s: kernels.shared_importance_scan(
        q, k, v, beta, dt, rate, prior, segment_BxT=s
    )
    packed = [q, k, v, log_decay, segments]
    gates = [dt, rate, prior, segments]
    divided = [batch] * 5
    stored = lambda cache, new, place, q: kernels.read_cache(
        q, kernels.write_cache(cache, new, place), cache, place + 1
    )
    cache, place = draw(B * G, T, K), jnp.arange(B) % T
    return {
        "cache": (stored, [cache, draw(B, G, K), place, draw(B, H, K)], [batch] * 4),
        "attention": (attend, [draw(B, T, H, K), k, draw(B, T, G, V), marks, segments], divided),
        "attention of divided heads": (
            attend,
            [draw(B, T, H, K), k, draw(B, T, G, V), marks, segments],
            [P(BATCH, None, HEADS)] * 3 + [batch] * 2,
        ),
        "ssd": (ssd, [*packed, state], [*divided, batch]),
        "ssd of divided heads": (
            ssd,
            [*packed, state],
            [P(BATCH, None, HEADS)] * 4 + [batch, P(BATCH, HEADS)],
        ),
        "ssd from nothing": (lambda *arrays: ssd(*arrays, None), packed, divided),
        "palimpsa": (palimpsa, [q, k, v, beta, *gates], [batch] * 5 + [P(), P(), batch]),
        "shared importance": (shared, [q, k, v, beta[..., 0], *gates], [batch] * 5 + [P(), P(), batch]),
    }


def with_gradient(f, floating: list[int]):
    """f, and the gradient of the sum of squares of its first result."""

    def run(*arrays):
        def loss(*some):
            given = list(arrays)
            for place, x in zip(floating, some, strict=True):
                given[place] = x
            out = f(*given)
            return jnp.sum(jax.tree.leaves(out)[0] ** 2), out

        return jax.value_and_grad(loss, argnums=tuple(range(len(floating))), has_aux=True)(
            *(arrays[place] for place in floating)
        )

    return run


def check(name: str, f, arrays: list, specs: list) -> None:
    run = with_gradient(f, [i for i, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating)])
    want = jax.jit(run)(*arrays)
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=1e-10, err_msg=name)
    mesh = jax.make_mesh((4, 2), (BATCH, HEADS), axis_types=(AxisType.Explicit,) * 2)
    placed = [jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)]
    jax.tree.map(near, jax.jit(run)(*placed), want)
    with jax.set_mesh(mesh):
        jax.tree.map(near, run(*placed), want)
    first = jax.tree.leaves(jax.jit(f)(*placed))[0]
    assert jax.typeof(first).sharding.spec[0] == BATCH, f"{name}: the result is {jax.typeof(first)}"
    if all(HEADS not in spec for spec in specs) and name != "palimpsa":  # it closes over a whole state
        over = jax.shard_map(f, mesh=mesh, in_specs=tuple(specs), out_specs=P(BATCH))
        jax.tree.map(near, jax.jit(over)(*placed), want[0][1])


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    with jax.enable_x64(True):
        for name, case in arguments().items():
            check(name, *case)
    print("the same on eight devices")
