"""The CRAM layer as a whole: one definition, whole or streamed, that never looks ahead or at what it skipped."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import CONFIG, B, D, M, T, check_skipped_retrievals_are_not_looked_at, inputs, lively, loss, stream

from cram_jax.functional import cram, episodic, objective, routing
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.objective import MemorySums, ObjectiveConfig
from cram_jax.functional.routing import Gates, RoutingConfig
from cram_jax.functional.working import WorkingConfig


def config(body: str, rotary: bool = False) -> CRAMConfig:
    return dataclasses.replace(
        CONFIG,
        working=WorkingConfig(body=body, width=16),
        episodic=dataclasses.replace(CONFIG.episodic, rotary=rotary),
    )


@pytest.mark.parametrize(
    ("body", "rotary", "literal"),
    [  # each two of the three in every combination
        ("ct_ode", False, False),
        ("ct_ode", True, True),
        ("gated_scan", True, False),
        ("gated_scan", False, True),
        ("ssd", False, False),
        ("palimpsa", True, False),
    ],
)
def test_streaming_equals_the_whole_sequence_in_float64(x64, body, rotary, literal):
    # Given a layer that uses all three memories and overflows its buffer; or the paper's, taken literally
    cfg = config(body, rotary)
    if literal:
        paper = dataclasses.replace(cfg.routing, working_always=False, features=routing.PAPER_FEATURES)
        cfg = dataclasses.replace(cfg, routing=paper)
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    key = jax.random.key(9)

    whole_BxTxD, aux = jax.jit(lambda x, g: cram.apply(params, state, x, cfg=cfg, gap_BxT=g, key=key))(x_BxTxD, gap_BxT)
    assert x_BxTxD.dtype == whole_BxTxD.dtype == jnp.float64
    assert literal or set(np.unique(aux.routes.choice_BxT)) == {0, 1, 2}
    assert 0 < np.mean(aux.routes.attended_BxT) < 1
    assert np.sum(aux.routes.kept_BxT, axis=1).min() > M

    # When it is run token by token
    streamed_BxTxD, routes = stream(params, state, x_BxTxD, gap_BxT, cfg, key)

    # Then every decision is the same, and outputs differ by the order of float64 sums only
    for name in ("choice_BxT", "attended_BxT", "kept_BxT"):
        np.testing.assert_array_equal(getattr(routes, name), getattr(aux.routes, name), err_msg=name)
    np.testing.assert_allclose(streamed_BxTxD, whole_BxTxD, atol=1e-10, rtol=0)
    np.testing.assert_allclose(routes.quality_BxT, aux.routes.quality_BxT, atol=1e-10, rtol=0)


def test_streaming_equals_the_whole_sequence_in_float32_where_decisions_are_clear():
    # A decision within 1e-4 of another may fall either way in float32, and a changed write changes what comes after:
    # so compare up to a sequence's first unclear decision.
    cfg = config("gated_scan")
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    whole_BxTxD, aux = jax.jit(lambda x, g: cram.apply(params, state, x, cfg=cfg, gap_BxT=g))(x_BxTxD, gap_BxT)
    streamed_BxTxD, routes = stream(params, state, x_BxTxD, gap_BxT, cfg, None)
    clear_BxT = np.cumprod(np.asarray(aux.routes.margin_BxT) > 1e-4, axis=1).astype(bool)
    assert clear_BxT.mean() > 0.9
    np.testing.assert_array_equal(routes.choice_BxT[clear_BxT], aux.routes.choice_BxT[clear_BxT])
    # float32 sums of about 10 terms of size 1: 1e-5 absolute leaves a margin of about 10
    np.testing.assert_allclose(streamed_BxTxD[clear_BxT], whole_BxTxD[clear_BxT], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_the_future_changes_nothing(train):
    cfg = config("gated_scan")
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    other_BxTxD, other_BxT = inputs(seed=6)
    at = 17
    key = jax.random.key(2)
    run = jax.jit(lambda x, g: cram.apply(params, state, x, cfg=cfg, gap_BxT=g, key=key, train=train))
    y_BxTxD, aux = run(x_BxTxD, gap_BxT)
    mixed_BxTxD = x_BxTxD.at[:, at:].set(other_BxTxD[:, at:])
    changed_BxTxD, changed = run(mixed_BxTxD, gap_BxT.at[:, at:].set(other_BxT[:, at:]))
    assert not np.array_equal(y_BxTxD[:, at:], changed_BxTxD[:, at:])
    np.testing.assert_array_equal(y_BxTxD[:, :at], changed_BxTxD[:, :at])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:, :at], b[:, :at]), aux.routes, changed.routes)


def test_a_skipped_retrieval_is_not_looked_at(monkeypatch):
    params, state = lively(CONFIG)
    x_BxTxD, gap_BxT = inputs()
    key = jax.random.key(3)
    _, aux = jax.jit(lambda *arrays: loss(*arrays, CONFIG, key))(params, state, x_BxTxD, gap_BxT)[1]
    assert 0.2 < np.mean(~aux.routes.attended_BxT) < 0.9
    # Eq 5 and Eq 6 are of the same errors: the loss is the sum of -log q over what retrieved
    q = np.asarray(aux.routes.quality_BxT, np.float64)[np.asarray(aux.routes.retrieved_BxT)]
    np.testing.assert_allclose(aux.sums.distillation, -np.log(q).sum(), rtol=1e-3)
    # Outputs, sums, statistics and gradients of training
    run = lambda *arrays: jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)(*arrays, CONFIG, key)
    check_skipped_retrievals_are_not_looked_at(monkeypatch, run, params, state, x_BxTxD, gap_BxT)


def test_audits_give_the_router_the_gradient_of_a_dense_computation():
    # Given paths whose effect on the loss is known, and a router whose choice is fixed away from episodic memory
    shape, rate = (1, 4000), 0.1
    cfg = RoutingConfig()
    key = jax.random.split(jax.random.key(0), 3)
    working, retrieved, recalled = (jax.random.normal(k, (*shape, D)) + i for i, k in enumerate(key))
    logits_BxTx3 = jnp.broadcast_to(jnp.array([1.0, 0.3, -0.2]), (*shape, 3))

    def gradient(audited_BxT, weight):
        def value(logits_BxTx3):
            soft_BxTx3 = jax.nn.softmax(logits_BxTx3)
            choice_BxT = jnp.zeros(shape, jnp.int32)
            weight_BxT = jnp.full(shape, weight)
            routes = Gates(soft_BxTx3, soft_BxTx3, choice_BxT, choice_BxT == 1, audited_BxT, weight_BxT)
            return jnp.sum(routing.mix(routes, working, retrieved, recalled, cfg=cfg))

        return jax.grad(value)(logits_BxTx3)[0]

    dense_Tx3 = gradient(jnp.ones(shape, bool), 1.0)
    audited_BxT = jax.random.uniform(jax.random.key(7), shape) < rate
    sampled_Tx3 = gradient(audited_BxT, 1 / rate)
    # Then the means agree within 4 standard errors, and audits matter: without them the mean is another
    error_3 = 4 * np.std(sampled_Tx3 - dense_Tx3, axis=0) / np.sqrt(shape[1])
    assert np.all(np.abs(np.mean(sampled_Tx3 - dense_Tx3, axis=0)) < error_3)
    none_Tx3 = gradient(jnp.zeros(shape, bool), 1 / rate)
    assert np.all(np.abs(np.mean(none_Tx3 - dense_Tx3, axis=0)) > 2 * error_3)


def test_what_left_the_buffer_is_forgotten():
    # Given everything kept and everything attending, an event can matter for M positions and no longer
    cfg = dataclasses.replace(CONFIG, episodic=dataclasses.replace(CONFIG.episodic, write_bias=50.0))
    params, state = lively(cfg)
    state = state._replace(released=jnp.array(False))
    x_BxTxD, gap_BxT = inputs()
    run = jax.jit(lambda x: cram.apply(params, state, x, cfg=cfg, gap_BxT=gap_BxT)[0])
    change_BxTxD = np.abs(run(x_BxTxD) - run(x_BxTxD.at[:, 10].add(1.0)))
    assert np.all(change_BxTxD[:, 10 : 10 + M].max(axis=-1) > 0)
    np.testing.assert_array_equal(change_BxTxD[:, 10 + M :], 0)


def test_transformations_keep_the_layer_what_it_is():
    params, state = lively(CONFIG)
    x_BxTxD, gap_BxT = inputs()
    key = jax.random.key(4)
    plain = lambda x: cram.apply(params, state, x, cfg=CONFIG, gap_BxT=gap_BxT, key=key, train=True)[0]
    grad = jax.jit(jax.grad(lambda x: jnp.sum(plain(x) ** 2)))
    remat = jax.jit(jax.grad(lambda x: jnp.sum(jax.checkpoint(plain)(x) ** 2)))
    np.testing.assert_allclose(grad(x_BxTxD), remat(x_BxTxD), atol=1e-5, rtol=1e-5)  # recomputation reorders sums

    # vmap over two layers' parameters equals one after the other
    other, _ = lively(CONFIG, seed=11)
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), params, other)
    run = jax.jit(lambda p: cram.apply(p, state, x_BxTxD, cfg=CONFIG, gap_BxT=gap_BxT)[0])
    mapped = jax.jit(jax.vmap(run))(both)
    np.testing.assert_allclose(mapped, jnp.stack([run(params), run(other)]), atol=2e-5, rtol=1e-5)


def test_other_data_does_not_recompile():
    params, state = lively(CONFIG)
    run = jax.jit(lambda x, g: cram.apply(params, state, x, cfg=CONFIG, gap_BxT=g)[0])
    for seed in range(3):
        run(*inputs(seed))
    assert run._cache_size() == 1


def test_an_event_earns_its_place_by_the_attention_it_gets():
    # Given every key kept and every query routed, the gradient of the reads on the gate's logits sums to the attention
    # there is
    params, state = lively(CONFIG)
    x_BxTxD, _ = inputs()
    uniform_BxT = jnp.zeros((B, T))  # below every chance: all kept

    def reads(bias):
        gate = params.episodic.write
        moved = params.episodic._replace(write=gate._replace(out_FxD=gate.out_FxD * 0))
        cfg = CONFIG.episodic
        writes = episodic.decide_writes(moved.write, x_BxTxD, jnp.zeros((B, T)), uniform_BxT, cfg=cfg)
        read_weight_BxT = (bias - jax.lax.stop_gradient(bias)) * jnp.ones((B, T))
        plan = episodic.plan_reads(writes, jnp.ones((B, T), bool), None, cfg=cfg)
        return jnp.sum(episodic.read(moved, plan, x_BxTxD, read_weight_BxT, cfg=cfg)[1])

    value, slope = jax.value_and_grad(reads)(0.0)
    assert value == 0
    np.testing.assert_allclose(slope, B * T, rtol=1e-5)  # B T queries, each with attention 1


@pytest.mark.parametrize("reads", [0.2, 0.01])
def test_the_write_gate_settles_where_it_keeps_what_is_read_more_than_it_costs(reads):
    # Given events that are read `reads` times each where they are kept, and a gate that says the same of all of them
    price, shape, attending = 2.0, (1, 20_000), 0.025
    cfg = dataclasses.replace(CONFIG.episodic, write_audit_rate=0.1)
    params = episodic.init(jax.random.key(0), D, cfg)
    write = params.write._replace(bias_F=params.write.bias_F.at[0].set(10.0))  # gelu(10) is 10

    def loss(logit):
        said = params._replace(write=write._replace(out_FxD=write.out_FxD.at[0].set(logit / 10)))
        uniform_BxT = jax.random.uniform(jax.random.key(1), shape)
        writes = episodic.decide_writes(said.write, jnp.zeros((*shape, D)), jnp.zeros(shape), uniform_BxT, cfg=cfg)
        read_BxT = jnp.where(writes.kept_BxT, reads, 0)
        nothing = MemorySums(*(jnp.zeros(1) for _ in MemorySums._fields))
        sums = nothing._replace(
            tokens=jnp.array([float(shape[1])]),
            routed=jnp.array([attending * shape[1]]),
            write=jnp.sum(jnp.exp(writes.logit_BxT))[None],
            reads=jnp.sum(read_BxT * writes.read_weight_BxT)[None],
        )
        return objective.write_loss(sums, ObjectiveConfig(write_price=price))

    # Then its gradient vanishes where exp(logit) is reads over price times the reads of an average event, whether it is
    # above 1 (all are kept) or below (only audited ones are, a tenth of 20,000: a standard deviation of 2%), and
    # points there from either side
    settled = np.log(reads / (price * attending))
    slope = jax.grad(loss)
    assert abs(slope(settled)) < 0.06 * reads
    assert slope(settled - 0.3) < 0 < slope(settled + 0.3)
