"""Plans, attention and scans where devices share heads and tokens are those of one device. test_meshes.py runs this.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/functional/kernels_in_parts.py
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from kernels_on_meshes import draw, with_gradient

from cram_jax import kernels
from cram_jax.functional.working import WorkingConfig, gated_scan
from cram_jax.kernels import PalimpsaState
from cram_jax.training.sharding import AXES

B, T, H, G, K, V = 2, 1024, 4, 2, 3, 5  # a quarter of a sequence still has a small bucket
MESH = jax.make_mesh((1, 1, 2, 4), AXES, axis_types=(AxisType.Auto,) * 4)
SIZES = ((1 / 8, 1 / 4), (1, 1))


def read(plan, x_BxTxD, w_DxHxK):
    """Rows and keys projected after they are gathered, as an episodic memory does."""
    q, k = (jnp.einsum("bcd,dhk->bchk", x, w_DxHxK) for x in (plan.gather_queries(x_BxTxD), plan.gather_keys(x_BxTxD)))
    o = kernels.skip_attention_compact(q, k, k, plan)
    return plan.scatter(o, T)


def arguments() -> dict:
    """(function of arrays, arrays) by name."""
    q, k, v = draw(B, T, G, K), draw(B, T, G, K), draw(B, T, H, V)
    beta, dt, rate, prior = (draw(*s, positive=True) for s in ((B, T, H, V), (B, T, H), (H,), (H,)))
    log_decay, state, x, w = -draw(B, T, H, positive=True), draw(B, H, V, K), draw(B, T, K), draw(K, H, V)
    some = jnp.asarray(np.random.default_rng(0).random((B, T)) < 0.05)
    late = some & (jnp.arange(T) > 0.8 * T)  # all rows are of one device
    segments = jnp.broadcast_to(jnp.arange(T) // 300, (B, T))
    plan = lambda routed, kept, **more: kernels.make_plan(routed, kept_BxT=kept, **more)
    attend = lambda q, k, v, routed, kept: kernels.skip_attention(q, k, v, plan(routed, kept, memory=40))
    bucket = lambda x, w, routed, kept: kernels.in_buckets(
        read, plan(routed, kept, window=100, segment_BxT=segments), x, w, sizes=SIZES
    )
    ssd = lambda q, k, v, d, state: kernels.ssd_scan(q, k, v, d, state)
    packed = lambda q, k, v, d: kernels.ssd_scan(q, k, v, d, segment_BxT=segments)
    palimpsa = lambda q, k, v, beta, dt, rate, prior, state: kernels.palimpsa_scan(
        q, k, v, beta, dt, rate, prior, PalimpsaState(state, state**2), segment_BxT=segments
    )
    heads = draw(B, T, H, K), k, draw(B, T, G, V)
    gated = lambda x, gap, segment_BxT: gated_scan.apply(working, x, gap, segment_BxT, WorkingConfig(width=6))[0]
    working = gated_scan.init(jax.random.key(0), K, WorkingConfig(width=6))
    gap = draw(B, T, positive=True)
    both = lambda x, kept: (lambda plan: plan.scatter_keys(plan.gather_keys(x), T))(plan(kept, kept))
    return {
        "attention of few": (attend, [*heads, some, some]),
        "attention of late": (attend, [*heads, late, ~late]),
        "attention with one head of keys": (attend, [heads[0], k[:, :, :1], heads[2][:, :, :1], some, some]),
        "read by few": (bucket, [x, w, some, some]),
        "read by all": (bucket, [x, w, some | True, some | True]),
        "gated scan": (lambda x, gap: gated(x, gap, None), [x, gap]),
        "gated scan of packed sequences": (gated, [x, gap, segments]),
        "kept keys": (both, [x, some]),
        "ssd": (ssd, [q, k, v, 0.1 * log_decay, state]),
        "ssd of packed sequences": (packed, [q, k, v.at[0, 700].set(jnp.nan), 0.1 * log_decay]),
        "palimpsa": (palimpsa, [q, k, v, beta, 0.1 * dt, rate, prior, state]),
    }


def check(name: str, f, arrays: list) -> None:
    run = with_gradient(f, [place for place, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.floating)])
    want = jax.jit(run)(*arrays)
    with jax.sharding.use_abstract_mesh(MESH.abstract_mesh):
        everywhere = jax.device_put(arrays, jax.NamedSharding(MESH, jax.P()))
        got = jax.jit(run)(*everywhere)
    close = partial(np.testing.assert_allclose, atol=1e-9, rtol=1e-9, err_msg=name)
    jax.tree.map(close, jax.device_get(got), jax.device_get(want))


if __name__ == "__main__":
    assert jax.device_count() == 8, jax.devices()
    with jax.enable_x64(True):
        for name, (f, arrays) in arguments().items():
            check(name, f, arrays)
    print("the same on eight devices")
