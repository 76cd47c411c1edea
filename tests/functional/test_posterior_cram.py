"""The CRAM layer whose semantic memory is a posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import check_skipped_retrievals_are_not_looked_at
from posterior_cases import CFG, B, D, T, lively, streamed, tokens, visited, widened

from cram_jax.functional import addressed, blocks, episodic, posterior, posterior_cram
from cram_jax.functional.common import rms_norm
from cram_jax.functional.routing import EPISODIC, SEMANTIC, WORKING


@pytest.mark.parametrize("streams", [None, B])
def test_streaming_equals_the_whole_sequence(x64, monkeypatch, streams):
    # Given a memory of three visits
    params = widened(lively())
    state = widened(CFG.release(CFG.init_state(streams)))
    key = jax.random.key(7)
    state = visited(params, state, (1, 2, 3), key=key)
    # When a fourth one is read as a whole, and token by token
    x_BxTxD, gap_BxT = map(widened, tokens(6))
    run = lambda s, x: posterior_cram.apply(params, s, x, cfg=CFG, gap_BxT=gap_BxT, key=key)
    y_BxTxD, aux = jax.jit(run)(state, x_BxTxD)
    cache, (out_TxBxD, each) = jax.jit(lambda s, x: streamed(params, s, x, gap_BxT, key=key))(state, x_BxTxD)
    # Then every kind of route occurs, and all is the same
    assert {WORKING, EPISODIC, SEMANTIC} == set(np.unique(aux.routes.choice_BxT))
    assert np.any(aux.routes.attended_BxT & (aux.routes.choice_BxT != EPISODIC))
    for name in ("choice_BxT", "attended_BxT", "retrieved_BxT", "kept_BxT"):
        np.testing.assert_array_equal(getattr(each.routes, name).T, getattr(aux.routes, name), err_msg=name)
    np.testing.assert_allclose(jnp.swapaxes(out_TxBxD, 0, 1), y_BxTxD, atol=1e-9)
    # and the state after the visit, too
    taught = jax.tree.map(lambda a: a.sum(0), each.stats)
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10)
    jax.tree.map(near, CFG.update(state, taught), CFG.update(state, aux.stats))
    # and contradictions matter: there are some, and without them tokens choose otherwise
    assert np.any(cache.against.position_BxG < addressed.NEVER)
    if streams is None:
        return  # one program less to compile
    nowhere = lambda recalled, value: addressed.Comparison(*2 * (jnp.zeros(value.shape[:-1], bool),))
    monkeypatch.setattr(addressed, "compare", nowhere)
    _, blind = jax.jit(lambda s, x: run(s, x))(state, x_BxTxD)
    assert np.any(blind.routes.choice_BxT != aux.routes.choice_BxT)


@pytest.mark.parametrize("train", [False, True])
def test_no_decision_needs_a_retrieval(x64, monkeypatch, train):
    # Given a memory of three visits, with which tokens take every route
    params, key = widened(lively()), jax.random.key(7)
    state = visited(params, widened(CFG.release(CFG.init_state(B))), (1, 2, 3), key=key)
    arrays = params, state, *map(widened, tokens(4))

    def loss(params, x_BxTxD, state, gap_BxT):
        y, aux = posterior_cram.apply(params, state, x_BxTxD, cfg=CFG, gap_BxT=gap_BxT, key=key, train=train)
        return jnp.sum(y**2) + sum(jax.tree.leaves(aux.sums)), (y, aux, CFG.update(state, aux.stats))

    def run(params, state, x_BxTxD, gap_BxT):
        f = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True) if train else loss
        return f(params, x_BxTxD, state, gap_BxT)

    # When retrievals that are not made are NaN, then outputs, routes, sums, gradients and the next state are the same
    out = check_skipped_retrievals_are_not_looked_at(monkeypatch, run, *arrays, module=addressed)
    routes = (out[0] if train else out)[1][1].routes
    assert {WORKING, EPISODIC, SEMANTIC} == set(np.unique(routes.choice_BxT))
    assert 0.1 < np.mean(~routes.attended_BxT) < 0.97


def test_no_decision_needs_a_retrieval_in_streaming_either(x64, monkeypatch):
    # Given a memory of three visits, and many rows, so that at nearly every token some attend and others do not
    rows = 8
    params = widened(lively())
    state = visited(params, widened(CFG.release(CFG.init_state(rows))), (1, 2, 3))

    def run(params, state, x_BxTxD, gap_BxT):
        cache, (y, aux) = streamed(params, state, x_BxTxD, gap_BxT, key=jax.random.key(7))
        return cache, y, aux, CFG.update(state, jax.tree.map(lambda a: a.sum(0), aux.stats))

    def poisoned(look_up, poison):
        def filled(ring, q_BxHxK, attends_B):
            return jnp.where(attends_B[:, None, None], look_up(ring, q_BxHxK, attends_B), poison)

        return filled

    arrays = params, state, *map(widened, tokens(4, rows))
    more = dict(module=episodic, name="look_up", poisoned=poisoned)
    _, _, aux, _ = check_skipped_retrievals_are_not_looked_at(monkeypatch, run, *arrays, **more)
    # Then all is the same, and skipped rows of every route stood beside others that attend
    attended_TxB = np.asarray(aux.routes.attended_BxT)
    skipped_TxB = ~attended_TxB & attended_TxB.any(1, keepdims=True)
    assert {WORKING, SEMANTIC} == set(np.asarray(aux.routes.choice_BxT)[skipped_TxB])


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
    empty = CFG.init_state().memory
    at, _, _ = addressed.event(params.episodic, empty, x_1xD)
    value = jnp.einsum("td,dhv,hvo->to", x_1xD, params.episodic.v_DxHxV, params.episodic.o_HxVxD)
    other = jnp.roll(value, 3, axis=-1) * jnp.sign(jnp.arange(D) - 3.5)
    cases = ((value, 5.0, False, True), (other, 5.0, True, False), (other, 1e-6, False, False))
    for written, weight, wrong, agrees in cases:
        sums = blocks.writes(at, written, jnp.full(1, weight), CFG.semantic.blocks)
        _, own, compared = addressed.event(params.episodic, posterior.update(empty, sums), x_1xD)
        np.testing.assert_allclose(own, value, rtol=1e-5)
        assert bool(compared.contradicts[0]) == wrong and bool(compared.agrees[0]) == agrees


@pytest.mark.parametrize(
    ("asks", "known", "writes"), [(False, True, "rehearsal"), (False, False, "shown"), (True, True, None)]
)
def test_an_event_writes_its_value_if_memory_recalls_it_or_if_what_is_shown_is_learned(asks, known, writes):
    # Given events that are all kept and need memory or do not, and a memory that holds their value, or nothing
    routing = dataclasses.replace(CFG.routing, need_bias=1e3 if asks else -1e3)
    cfg = dataclasses.replace(CFG, routing=routing, episodic=dataclasses.replace(CFG.episodic, write_bias=1e3))
    params, state = lively(cfg), cfg.release(cfg.init_state())
    x_BxTxD = jnp.broadcast_to(tokens(0)[0][0, 0], (1, T, D))
    event_1xD = rms_norm(params.norm_D, x_BxTxD[0, :1])
    at, value, _ = addressed.event(params.episodic, state.memory, event_1xD)
    write = lambda weight: blocks.writes(at, value, jnp.full(1, weight), cfg.semantic.blocks)
    if known:
        state = state._replace(memory=posterior.update(state.memory, write(5.0)))
    # When a visit is read, then each event that tells writes, with another weight if it is recalled already
    _, aux = posterior_cram.apply(params, state, x_BxTxD, cfg=cfg)
    assert np.all(aux.routes.kept_BxT) and np.all((aux.routes.choice_BxT == SEMANTIC) == asks)
    want = write(T * getattr(cfg.learning, writes) if writes else 0.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), aux.stats.written, want)


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
    largest = np.linalg.eigvalsh(state.memory.sums.A_SxFxF).max()
    bound = B * (T - 1) * cfg.learning.most / (1 - cfg.semantic.keep)
    np.testing.assert_allclose(largest, bound, rtol=1e-2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state.memory))
