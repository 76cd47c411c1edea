"""The CRAM layer whose semantic memory is a posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import addressed, posterior, posterior_cram, two_stage
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.functional.routing import EPISODIC, SEMANTIC, WORKING

B, T, D, KEYS = 2, 48, 8, 4
CFG = PosteriorCRAMConfig(
    D=D,
    F=16,
    contradictions=3,
    episodic=EpisodicConfig(heads=2, head_dim=6, memory=5, write_bias=0.0),
    semantic=PosteriorConfig(features=64),
    routing=two_stage.TwoStageConfig(audit_rate=0.1, evaluation_audit_rate=0.1),
)


def lively(cfg: PosteriorCRAMConfig = CFG, seed: int = 0):
    """Parameters with which every route, write and contradiction occurs."""
    params = posterior_cram.init(jax.random.key(seed), cfg)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    scale = lambda leaf: 0.5 * leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.2
    moved = [x + scale(x) * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, moved)
    router = params.router._replace(need=params.router.need._replace(out_FxD=8 * params.router.need.out_FxD))
    # Known where u is low: the logit falls with log u
    known = params.router.known
    known = known._replace(
        in_DxF=jnp.zeros_like(known.in_DxF).at[0, 0].set(-1.0), bias_F=jnp.zeros_like(known.bias_F),
        out_FxD=jnp.zeros_like(known.out_FxD).at[0].set(6.0),
    )  # fmt: skip
    return params._replace(router=router._replace(known=known))


def tokens(seed: int):
    """Events about few keys, so that addresses recur."""
    kind, noise, gap = jax.random.split(jax.random.key(seed), 3)
    key_BxT = jax.random.randint(kind, (B, T), 0, KEYS)
    table = 2 * jax.random.normal(jax.random.key(99), (KEYS, D))
    return table[key_BxT] + 0.3 * jax.random.normal(noise, (B, T, D)), 1 + jax.random.exponential(gap, (B, T))


def widened(tree):
    """In float64."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def visited(params, state, seeds, cfg=CFG, key=None):
    """The state after visits, and the last visit's output and aux."""

    @jax.jit
    def one(state, x_BxTxD, gap_BxT):
        y, aux = posterior_cram.apply(params, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=key)
        return cfg.update(state, aux.stats), y, aux

    for seed in seeds:
        state, y, aux = one(state, *map(widened, tokens(seed)))
    return state, y, aux


def streamed(params, state, x_BxTxD, gap_BxT, cfg=CFG, key=None):
    """`step` over a visit: (outputs, aux), batch first."""

    def one(cache, token):
        y, cache, aux = posterior_cram.step(params, state, cache, token[0], cfg=cfg, gap_B=token[1], key=key)
        return cache, (y, aux)

    cache = widened(posterior_cram.init_cache(cfg, B))
    _, out = jax.lax.scan(one, cache, (jnp.swapaxes(x_BxTxD, 0, 1), gap_BxT.T))
    return out


@pytest.mark.parametrize("streams", [None, B])
def test_streaming_equals_the_whole_sequence(x64, streams):
    # Given a memory of three visits
    params = widened(lively())
    state = widened(CFG.release(CFG.init_state(streams)))
    key = jax.random.key(7)
    state, _, _ = visited(params, state, (1, 2, 3), key=key)
    # When a fourth one is read as a whole, and token by token
    x_BxTxD, gap_BxT = map(widened, tokens(4))
    run = jax.jit(lambda s, x: posterior_cram.apply(params, s, x, cfg=CFG, gap_BxT=gap_BxT, key=key))
    y_BxTxD, aux = run(state, x_BxTxD)
    out_TxBxD, each = jax.jit(lambda s, x: streamed(params, s, x, gap_BxT, key=key))(state, x_BxTxD)
    # Then every kind of route and a contradiction occur, and all is the same
    assert {WORKING, EPISODIC, SEMANTIC} == set(np.unique(aux.routes.choice_BxT))
    assert np.any(aux.routes.attended_BxT & (aux.routes.choice_BxT != EPISODIC))
    for name in ("choice_BxT", "attended_BxT", "retrieved_BxT", "kept_BxT"):
        np.testing.assert_array_equal(getattr(each.routes, name).T, getattr(aux.routes, name), err_msg=name)
    np.testing.assert_allclose(jnp.swapaxes(out_TxBxD, 0, 1), y_BxTxD, atol=1e-9)
    # and what it teaches adds up to the same sums
    total = jax.tree.map(lambda a: a.sum(0), each.stats.written)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), total, aux.stats.written)


def test_whoever_needs_memory_looks_it_up_even_if_no_event_was_kept():
    # Given a sequence long enough for short buckets, a write gate that keeps nothing, and tokens that all need memory
    shut = dataclasses.replace(CFG.episodic, write_bias=-1e3)
    needy = dataclasses.replace(CFG.routing, need_bias=1e3)
    cfg = dataclasses.replace(CFG, episodic=shut, routing=needy)
    params, state = lively(cfg), cfg.release(cfg.init_state())
    x_BxTxD = jax.random.normal(jax.random.key(0), (B, 320, D))
    routes = jax.jit(lambda x: posterior_cram.apply(params, state, x, cfg=cfg)[1].routes)(x_BxTxD)
    # Then each asks, is told that nothing is known, and attends
    assert not np.any(routes.kept_BxT) and np.all(routes.choice_BxT == EPISODIC)


def test_a_contradicted_recall_is_not_believed():
    # Given a memory that knows the address of an event, with its own value, with another one, or not at all
    params = lively()
    x_1xD = tokens(0)[0][0, :1]
    phi = posterior.features(
        params.episodic.frequencies_ExR, addressed.joined(addressed.addresses(params.episodic, x_1xD))
    )
    value = jnp.einsum("td,dhv,hvo->to", x_1xD, params.episodic.v_DxHxV, params.episodic.o_HxVxD)
    other = jnp.roll(value, 3, axis=-1) * jnp.sign(jnp.arange(D) - 3.5)
    for written, weight, wrong in ((value, 5.0, False), (other, 5.0, True), (other, 1e-6, False)):
        empty = posterior.init(D, CFG.semantic)
        memory = posterior.update(empty, posterior.writes(phi, written, jnp.full(1, weight)))
        assert bool(addressed.contradicts(params.episodic, memory.up_SxFxD, x_1xD)[0]) == wrong


def test_many_writes_at_one_address_leave_the_memory_finite():
    # Given a router that knows nothing, and visits in which all tokens are alike, need memory and write
    needy = dataclasses.replace(CFG.routing, need_bias=1e3)
    keeps = dataclasses.replace(CFG.episodic, write_bias=1.0)
    cfg = dataclasses.replace(CFG, routing=needy, episodic=keeps)
    params, state = posterior_cram.init(jax.random.key(0), cfg), cfg.release(cfg.init_state())
    x_BxTxD = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (D,)), (B, T, D))

    def visit(state, _):
        _, aux = posterior_cram.apply(params, state, x_BxTxD, cfg=cfg)
        return cfg.update(state, aux.stats), jnp.mean(aux.routes.attended_BxT)

    # When 200 of them follow each other
    state, attended = jax.jit(lambda state: jax.lax.scan(visit, state, length=200))(state)
    # Then each token attended in each. All but the first of a sequence wrote, in the end with the largest weight
    assert np.all(attended == 1)
    largest = np.linalg.eigvalsh(state.memory.sums.A_SxFxF)[-1]
    bound = B * (T - 1) * cfg.learning.most / (1 - cfg.semantic.keep)
    np.testing.assert_allclose(largest, bound, rtol=1e-2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.memory))
