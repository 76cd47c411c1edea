"""Small CRAM layers that use everything, and ways to run them, for several files of tests."""

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.functional import consolidation, cram, episodic
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig

B, T, D, M = 3, 40, 8, 5
# Named here, so that another router input by default does not change which routes these cases take.
INPUTS = ("content", "gap", "dynamics", "familiarity", "uncertainty")
CONFIG = CRAMConfig(
    D=D,
    F=16,
    episodic=EpisodicConfig(heads=2, head_dim=6, memory=M, write_bias=0.0),
    routing=RoutingConfig(features=INPUTS, evaluation_audit_rate=0.2),
)


def lively(cfg: CRAMConfig, seed: int = 0):
    """Parameters far from their initial values, so that every memory, route and write decision occurs."""
    params = cram.init(jax.random.key(seed), cfg)
    draw = np.random.default_rng(seed + 2)  # NumPy compiles nothing
    scale = lambda leaf: 0.5 * leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.2
    moved = jax.tree.map(lambda x: x + jnp.asarray(scale(x) * draw.standard_normal(x.shape), x.dtype), params)
    state = consolidation.release(cram.init_state(cfg))
    # It has seen retrievals whose variance is 3, so that a missing division by it shows.
    state = state._replace(weight=jnp.asarray(0.5), square=jnp.asarray(1.5), mean_D=jnp.zeros_like(state.mean_D))
    return moved, state


def inputs(seed: int = 5):
    x, gap = jax.random.split(jax.random.key(seed))
    return jax.random.normal(x, (B, T, D)), 1 + jax.random.exponential(gap, (B, T))


def stream(params, state, x_BxTxD, gap_BxT, cfg, key):
    """`step` over the whole sequence: (outputs, routes), batch first."""

    def one(cache, token):
        y_BxD, cache, aux = cram.step(params, state, cache, token[0], cfg=cfg, gap_B=token[1], key=key)
        return cache, (y_BxD, aux.routes)

    tokens = (jnp.swapaxes(x_BxTxD, 0, 1), jnp.swapaxes(gap_BxT, 0, 1))
    _, out = jax.lax.scan(one, cram.init_cache(cfg, B), tokens)
    return jax.tree.map(lambda leaf: jnp.swapaxes(leaf, 0, 1), out)


def loss(params, state, x_BxTxD, gap_BxT, cfg, key):
    """A scalar through everything that training differentiates: outputs and all sums."""
    y_BxTxD, aux = cram.apply(params, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=key, train=True)
    return jnp.sum(y_BxTxD**2) + sum(jax.tree.leaves(aux.sums)), (y_BxTxD, aux)


def poisoned_reads(read, poison):
    """`read` with `poison` in every row that neither routed nor was audited."""

    def poisoned(params, plan, x_BxTxD, read_weight_BxT, *, cfg):
        r_BxTxD, reads_BxT = read(params, plan, x_BxTxD, read_weight_BxT, cfg=cfg)
        attends_BxT = plan.scatter(jnp.ones(plan.rows_BxC.shape, bool), x_BxTxD.shape[1])
        filled = lambda a, attends: jnp.where(attends, a, poison)
        return filled(r_BxTxD, attends_BxT[..., None]), filled(reads_BxT, attends_BxT)

    return poisoned


def check_skipped_retrievals_are_not_looked_at(
    monkeypatch, run, *arrays, module=episodic, name="read", poisoned=poisoned_reads
):
    """Raises unless `run`, which retrieves, gives the same whatever stands in skipped rows: to the last bit in one
    program, and up to the order of sums in another. Returns what it gives.

    Args:
      module, name: where the function is that retrieves.
      poisoned: from it and a number to the function that has that number in skipped rows.
    """
    clean, read = jax.jit(run)(*arrays), getattr(module, name)

    def filled(poison, *arrays):
        monkeypatch.setattr(module, name, poisoned(read, poison))
        return run(*arrays)

    filled = jax.jit(filled)
    zero, nan = filled(0.0, *arrays), filled(jnp.nan, *arrays)
    jax.tree.map(np.testing.assert_array_equal, zero, nan)
    near = lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * max(1, np.abs(a).max(initial=0)))
    jax.tree.map(near, clean, nan)
    return clean
