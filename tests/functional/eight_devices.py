"""A visit on eight devices leaves the state that one device leaves. test_meshes.py runs this.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/functional/eight_devices.py
"""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from posterior_cases import CFG, lively, tokens, widened

from cram_jax.functional import posterior_cram
from cram_jax.functional.routing import EPISODIC, SEMANTIC, WORKING
from cram_jax.functional.stream_memory import StreamState

DEVICES = "devices"
ROWS = 16  # two for each device


def visit(params, state, x_BxTxD, gap_BxT, axis_name=None):
    """(state after the visit, who chose what)."""
    _, aux = posterior_cram.apply(params, state, x_BxTxD, cfg=CFG, gap_BxT=gap_BxT)
    return CFG.update(state, aux.stats, axis_name), aux.routes.choice_BxT


def check(streams: int | None) -> None:
    """Compares one device with eight that add their sums, and with eight that the compiler uses."""
    alone, params, state = jax.jit(visit), widened(lively()), widened(CFG.release(CFG.init_state(streams)))
    for seed in (1, 2):
        state, _ = alone(params, state, *map(widened, tokens(seed, ROWS)))
    batch = tuple(map(widened, tokens(3, ROWS)))
    want, choice_BxT = alone(params, state, *batch)
    assert {WORKING, EPISODIC, SEMANTIC} == set(np.unique(choice_BxT))
    assert np.any(want.memory.sums.A_SxFxF != state.memory.sums.A_SxFxF)

    # One memory for all sequences is on meshes of both kinds in layers_on_meshes.py
    meshes = [jax.make_mesh((8,), (DEVICES,), axis_types=(kind,)) for kind in (AxisType.Auto, AxisType.Explicit)]
    of_state = StreamState(P(), P(), P(DEVICES) if streams else P())
    mapped = jax.shard_map(
        lambda *arrays: visit(*arrays, axis_name=DEVICES),
        mesh=meshes[0],
        in_specs=(P(), of_state, P(DEVICES), P(DEVICES)),
        out_specs=(of_state, P(DEVICES)),
    )
    for mesh, run in ((meshes[0], mapped), *((mesh, visit) for mesh in meshes if streams)):
        place = lambda spec, tree, mesh=mesh: jax.device_put(tree, NamedSharding(mesh, spec))
        placed = StreamState(*(place(spec, part) for spec, part in zip(of_state, state, strict=True)))
        got, got_BxT = jax.jit(run)(place(P(), params), placed, *place(P(DEVICES), batch))
        np.testing.assert_array_equal(got_BxT, choice_BxT)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), got, want)


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    with jax.enable_x64(True):
        check(None)
        check(ROWS)
    print("eight devices: one state")
