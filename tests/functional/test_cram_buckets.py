"""What `test_cram.py` promises, where so few attend and are kept that the small buckets hold them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import CONFIG, B, D, check_skipped_retrievals_are_not_looked_at, lively, loss, stream

from cram_jax.functional import cram, episodic
from cram_jax.functional.common import FeedForward
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.working import WorkingConfig

NO_WHOLE_TILES, SEVERAL_TILES = 320, 1024  # lengths of lists
ROUTES, KEEPS = 0, 1  # coordinates of a token that say so
CFG = dataclasses.replace(
    CONFIG,
    episodic=dataclasses.replace(CONFIG.episodic, memory=32),
    routing=dataclasses.replace(CONFIG.routing, features=("content",), evaluation_audit_rate=0.01, audit_rate=0.01),
)


SCANNED = dataclasses.replace(
    CFG, working=WorkingConfig(body="gated_scan"), episodic=dataclasses.replace(CFG.episodic, rotary=True)
)


def obedient(cfg: CRAMConfig = CFG):
    """A layer whose tokens attend where their first coordinate is positive, and are kept where the second is."""
    params, state = lively(cfg)

    def when_positive(like: FeedForward, coordinate: int, output: int) -> FeedForward:
        return FeedForward(
            jnp.zeros_like(like.in_DxF).at[coordinate, 0].set(1.0),
            jnp.zeros_like(like.bias_F),
            jnp.zeros_like(like.out_FxD).at[0, output].set(200.0).at[1:, output].set(-1.0),
        )

    router, write = params.router, params.episodic.write
    return params._replace(
        router=when_positive(router, ROUTES, 1),
        episodic=params.episodic._replace(write=when_positive(write, KEEPS, 0)),
    ), state


def sparse_inputs(T: int = 256, seed: int = 5):
    """One token in 16 attends, one in 8 is kept."""
    x, gap, chance = jax.random.split(jax.random.key(seed), 3)
    x_BxTxD = jax.random.normal(x, (B, T, D))
    chance_BxTx2 = jax.random.uniform(chance, (B, T, 2)) < jnp.array([1 / 16, 1 / 8])
    signed_BxTx2 = jnp.where(chance_BxTx2, 1.0, -1.0) * (1 + jnp.abs(x_BxTxD[..., :2]))
    return x_BxTxD.at[..., :2].set(signed_BxTx2), 1 + jax.random.exponential(gap, (B, T))


def on_short_lists(routes) -> bool:
    """Whether the smallest bucket holds all that a batch attends and keeps."""
    rows, keys = (max(np.sum(marks, axis=1)) for marks in (routes.attended_BxT, routes.kept_BxT))
    T = routes.kept_BxT.shape[1]
    return rows <= T // 8 and keys <= T // 4


def check_causality(T: int, train: bool, cfg: CRAMConfig = CFG) -> None:
    # Given a batch that the short lists hold
    params, state = obedient(cfg)
    x_BxTxD, gap_BxT = sparse_inputs(T)
    key, at = jax.random.key(2), 3 * T // 4
    run = jax.jit(lambda x: cram.apply(params, state, x, cfg=cfg, gap_BxT=gap_BxT, key=key, train=train))
    y_BxTxD, aux = run(x_BxTxD)
    assert on_short_lists(aux.routes)

    # When all tokens attend from some position on, in one sequence or in all, so that only the long lists hold them
    for which in (slice(0, 1), slice(None)):
        changed_BxTxD, changed = run(x_BxTxD.at[which, at:, ROUTES].set(3.0))
        assert not on_short_lists(changed.routes)
        # Then nothing before is different, to the last bit
        np.testing.assert_array_equal(y_BxTxD[:, :at], changed_BxTxD[:, :at])
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, :at], b[:, :at]), aux.routes, changed.routes)


@pytest.mark.parametrize("train", [False, True])
def test_how_many_attend_in_the_future_changes_nothing(train):
    check_causality(256, train)


def test_nor_does_it_as_compiled_for_users():
    # Tests compile with less effort; other shapes may then be added up in other orders. So here as anybody would.
    code = (
        "import test_cram_buckets as t; t.check_causality(t.NO_WHOLE_TILES, False); "
        "t.check_causality(t.SEVERAL_TILES, True, t.SCANNED)"
    )
    env = {n: v for n, v in os.environ.items() if n != "XLA_FLAGS"}
    path = [Path(__file__).parent, Path(__file__).parents[1], Path(__file__).parents[2]]
    env |= {"PYTHONPATH": os.pathsep.join(map(str, path)), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def test_streaming_equals_the_whole_sequence(x64):
    params, state = obedient()
    x_BxTxD, gap_BxT = sparse_inputs()
    key = jax.random.key(9)
    whole_BxTxD, aux = jax.jit(lambda x: cram.apply(params, state, x, cfg=CFG, gap_BxT=gap_BxT, key=key))(x_BxTxD)
    assert on_short_lists(aux.routes) and np.sum(aux.routes.attended_BxT) > 10
    streamed_BxTxD, routes = stream(params, state, x_BxTxD, gap_BxT, CFG, key)
    for name in ("choice_BxT", "attended_BxT", "kept_BxT"):
        np.testing.assert_array_equal(getattr(routes, name), getattr(aux.routes, name), err_msg=name)
    np.testing.assert_allclose(streamed_BxTxD, whole_BxTxD, atol=1e-10, rtol=0)
    np.testing.assert_allclose(routes.quality_BxT, aux.routes.quality_BxT, atol=1e-10, rtol=0)


def test_a_skipped_retrieval_is_not_looked_at(monkeypatch):
    params, state = obedient()
    x_BxTxD, gap_BxT = sparse_inputs()
    key = jax.random.key(3)
    assert on_short_lists(
        jax.jit(lambda *arrays: loss(*arrays, CFG, key))(params, state, x_BxTxD, gap_BxT)[1][1].routes
    )
    run = lambda *arrays: jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)(*arrays, CFG, key)
    check_skipped_retrievals_are_not_looked_at(monkeypatch, run, params, state, x_BxTxD, gap_BxT)


def test_transformations_keep_the_layer_what_it_is_on_short_lists():
    # Given two layers' parameters, and a batch that the short lists hold
    first, state = obedient()
    both = jax.tree.map(lambda a: jnp.stack([a, a + 0.01 * jnp.sin(jnp.arange(a.size).reshape(a.shape))]), first)
    x_BxTxD, gap_BxT = sparse_inputs()
    key = jax.random.key(4)

    def layer(params, x_BxTxD):
        return cram.apply(params, state, x_BxTxD, cfg=CFG, gap_BxT=gap_BxT, key=key, train=True)

    one = jax.jit(layer)
    singles = [one(jax.tree.map(lambda leaf, i=i: leaf[i], both), x_BxTxD) for i in (0, 1)]
    assert all(on_short_lists(aux.routes) for _, aux in singles)

    # vmap over the parameters equals one after the other
    mapped_2xBxTxD, _ = jax.jit(jax.vmap(layer, in_axes=(0, None)))(both, x_BxTxD)
    np.testing.assert_allclose(mapped_2xBxTxD, jnp.stack([y for y, _ in singles]), atol=2e-5, rtol=1e-5)

    # A rolled scan over the layers equals them called in turn, and so do its gradients, recomputed or not
    def in_turn(both):
        y_BxTxD = x_BxTxD
        for i in (0, 1):
            y_BxTxD = layer(jax.tree.map(lambda leaf, i=i: leaf[i], both), y_BxTxD)[0]
        return jnp.sum(y_BxTxD**2)

    def scanned(both, layer=layer):
        y_BxTxD, _ = jax.lax.scan(lambda x, params: layer(params, x), x_BxTxD, both)
        return jnp.sum(y_BxTxD**2)

    value, slope = jax.jit(jax.value_and_grad(in_turn))(both)
    for f in (scanned, lambda both: scanned(both, jax.checkpoint(layer))):
        other, others_slope = jax.jit(jax.value_and_grad(f))(both)
        np.testing.assert_allclose(other, value, rtol=1e-5)
        norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(slope)))
        far = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, others_slope, slope))))
        assert far < 1e-4 * norm  # recomputation reorders sums


def counting(monkeypatch, module, name, note=lambda *args: None):
    """A list that grows by note(*args) each time that function runs, in compiled programs too."""
    seen, f = [], getattr(module, name)

    def counted(*args, **more):
        what = note(*args)
        jax.debug.callback(lambda: seen.append(what))
        return f(*args, **more)

    monkeypatch.setattr(module, name, counted)
    return seen


def test_a_read_projects_the_shortest_lists_that_hold_it(monkeypatch):
    sizes = lambda project, cfg, plan, *_: (plan.rows_BxC.shape[1], plan.slots_BxS.shape[1])
    lists = counting(monkeypatch, episodic, "_attend", sizes)
    params, state = obedient()
    x_BxTxD, _ = sparse_inputs(256)
    run = jax.jit(lambda x: cram.apply(params, state, x, cfg=CFG)[0])
    # An eighth of the rows, and a quarter of the slots in whole tiles of 128
    for x, wanted in [(x_BxTxD, (32, 128)), (x_BxTxD.at[:, :, ROUTES].set(3.0), (256, 256))]:
        lists.clear()
        jax.block_until_ready(run(x))
        jax.effects_barrier()
        assert lists == [wanted]


def test_streaming_reads_the_buffer_only_where_somebody_attends(monkeypatch):
    reads = counting(monkeypatch, episodic.kernels, "read_cache")
    params, state = obedient()
    x_BxTxD, _ = sparse_inputs(32)
    signs_BxT = np.where(np.arange(32) % 8 == 3, 1.0, -1.0)
    x_BxTxD = x_BxTxD.at[..., ROUTES].set(2 * signs_BxT).at[1, :, ROUTES].set(-2.0)  # one sequence attends 4 times
    step = jax.jit(lambda cache, x: cram.step(params, state, cache, x, cfg=CFG))
    cache, attended = cram.init_cache(CFG, B), 0
    for t in range(32):
        _, cache, aux = step(cache, x_BxTxD[:, t])
        attended += bool(np.any(aux.routes.attended_BxT))
    jax.effects_barrier()
    assert attended == 4 == len(reads)
