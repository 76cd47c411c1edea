"""A layer computes on meshes of eight devices what it computes on one. test_meshes.py runs this.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/functional/layers_on_meshes.py LAYER
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from layer_cases import LAYERS, D, layer

from cram_jax.functional.layer import apply, step
from cram_jax.kernels.meshes import varying_like

ROWS, T = 8, 24
DEVICES = "devices"


def inputs():
    """(x_BxTxD, gap_BxT, segment_BxT)."""
    x, gap = jax.random.split(jax.random.key(2))
    segment_T = np.arange(T) // 10 % 2
    arrays = jax.random.normal(x, (ROWS, T, D)), 1 + jax.random.exponential(gap, (ROWS, T))
    return *arrays, jnp.broadcast_to(segment_T, (ROWS, T))


def learned(cfg, update: bool):
    """(tokens, choices, gradient of the sum of squares, state after the visit) as a function of arrays alone."""

    def run(params, state, x_BxTxD, gap_BxT, segment_BxT):
        def loss(params):
            y, aux = apply(params, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, segment_BxT=segment_BxT)
            return jnp.sum(y**2), (y, aux.routes, cfg.update(state, aux.stats) if update else ())

        gradient, (y_BxTxD, routes, after) = jax.grad(loss, has_aux=True)(params)
        return (y_BxTxD, routes), gradient, after

    return run


def streamed(cfg):
    """Tokens of `step`, one after the other, likewise."""

    def run(params, state, x_BxTxD, gap_BxT, _):
        def one(cache, now):
            y_BxD, cache, _ = step(params, state, cache, now[0], cfg=cfg, gap_B=now[1])
            return cache, y_BxD

        begin = varying_like(cfg.init_cache(len(x_BxTxD)), x_BxTxD)
        return jax.lax.scan(one, begin, (x_BxTxD.swapaxes(0, 1), gap_BxT.T))[1].swapaxes(0, 1)

    return run


def same(got, want) -> None:
    """float64: what differs is the order of sums."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9, rtol=1e-9), got, want)


def check(cfg) -> None:
    """Compares one device with meshes of both kinds, and with `shard_map` as it is by default."""
    params, state = layer(cfg)
    wide = lambda leaf: leaf.astype(jnp.float64) if leaf.dtype == jnp.float32 else leaf
    arrays = jax.tree.map(wide, (params, state, *inputs()))
    specs = P(), P(), *[P(DEVICES)] * 3
    calls = learned(cfg, update=True), streamed(cfg)
    want = [jax.jit(call)(*arrays) for call in calls]
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), (DEVICES,), axis_types=(kind,))
        placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
        got = jax.jit(calls[0])(*placed)
        same(got, want[0])
        with jax.set_mesh(mesh):
            same(jax.jit(calls[1])(*placed), want[1])
    assert jax.typeof(got[0][0]).sharding.spec == P(DEVICES, None, None)
    # The gradient of parameters that all devices share is summed over devices
    over = lambda call, out: jax.jit(jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=out))(*placed)
    same(over(learned(cfg, update=False), (P(DEVICES), P(), P()))[:2], want[0][:2])
    same(over(streamed(cfg), P(DEVICES)), want[1])


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    with jax.enable_x64(True):
        check(LAYERS[sys.argv[1]])
    print("the same on eight devices")
