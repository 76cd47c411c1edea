"""The loss of Eq 8: its terms and signs, and which part of a layer each of them teaches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import CONFIG, INPUTS, inputs, lively

from cram_jax.functional import cram, objective, routing
from cram_jax.functional.objective import MemorySums, ObjectiveConfig
from cram_jax.functional.routing import RoutingConfig


def test_equation_8_by_hand():
    # Given the sums of two layers
    each = {name: jnp.array([value, 2.0 * value]) for name, value in zip(MemorySums._fields, range(1, 14), strict=True)}
    cfg = ObjectiveConfig(
        semantic_reward=0.5,
        need_price=0.75,
        distillation=0.25,
        write_price=0.125,
        familiarity=0.0625,
        prediction=0.03125,
    )
    loss, parts = objective.memory_loss(MemorySums(**each), jnp.asarray(7.0), cfg)
    # Then each is a mean over what it counts: 3 tokens, of which 9 retrieved, and 39 predictions
    tokens, retrieved = 3 * 1, 3 * 3
    mean = lambda name, count: 3 * (MemorySums._fields.index(name) + 1) / count
    by_hand = (
        7.0 * (mean("episodic", tokens) + 0.75 * mean("needed", tokens))
        - 0.5 * mean("semantic", tokens)
        # each layer has its own average event; here 9 reads a token, then 9 again
        + (0.125 * 9 * (7 + 14) - (8 + 16)) / 3
        + 0.25 * mean("distillation", retrieved)
        + 0.0625 * mean("familiarity", retrieved)
        + 0.03125 * mean("prediction", 3 * 13)
    )
    np.testing.assert_allclose(loss, by_hand, rtol=1e-6)
    np.testing.assert_allclose(parts["expected_episodic"], mean("episodic", tokens), rtol=1e-6)


def test_nothing_retrieved_is_no_division_by_zero():
    nothing = MemorySums(*(jnp.zeros(2) for _ in MemorySums._fields))._replace(tokens=jnp.array([8.0, 8.0]))
    loss, gradient = jax.value_and_grad(lambda s: objective.memory_loss(s, jnp.asarray(1.0), ObjectiveConfig())[0])(
        nothing
    )
    assert loss == 0 and all(np.all(np.isfinite(g)) for g in gradient)


# The router reads what working memory says of the process, its own features and the token; nothing else is taught.
ROUTED = {"norm_D", "working", "router"}
TEACHES = {
    "episodic": ROUTED,
    "semantic": ROUTED,
    "write": {"episodic"},
    "reads": {"episodic"},
    "distillation": {"semantic"},
    "familiarity": {"familiarity"},
    "prediction": {"uncertainty_DxU"},
    "needed": set(),  # a router of two stages has it, this layer none
    "tokens": set(),
    "attended": set(),
    "retrieved": set(),
    "routed": set(),
    "predicted": set(),
}


def teaching(cfg, state, params):
    """(gradient of one field of the sums to (params, tokens), as a function of its name; aux)."""
    x_BxTxD, gap_BxT = inputs()

    @jax.jit
    def back(state, params, x_BxTxD, cotangent):
        key = jax.random.key(1)
        one = lambda p, x: cram.apply(p, state, x, cfg=cfg, gap_BxT=gap_BxT, key=key, train=True)[1]
        _, pull, aux = jax.vjp(lambda p, x: (lambda aux: (aux.sums, aux))(one(p, x)), params, x_BxTxD, has_aux=True)
        return pull(cotangent), aux

    only = lambda name: MemorySums(*(jnp.asarray(float(field == name)) for field in MemorySums._fields))
    return lambda name: back(state, params, x_BxTxD, only(name))


def test_each_loss_teaches_its_own_part():
    params, state = lively(CONFIG)
    gradient_of = teaching(CONFIG, state, params)
    assert set(TEACHES) == set(MemorySums._fields)
    for name, parts in TEACHES.items():
        (gradient, to_tokens), _ = gradient_of(name)
        touched = lambda tree: any(np.any(g != 0) for g in jax.tree.leaves(tree))
        moved = {part for part in params._fields if touched(getattr(gradient, part))}
        assert moved <= parts and bool(moved) == bool(parts), name
        # what only measures the token does not change it
        assert np.any(to_tokens != 0) == (name in ("episodic", "semantic")), name
        if name in ("write", "reads"):
            assert not touched(gradient.episodic._replace(write=()))


def test_a_layer_that_nobody_reads_forgets():
    # Given events nobody reads, and a gate that keeps them
    sums = MemorySums(*(jnp.zeros(1) for _ in MemorySums._fields))._replace(tokens=jnp.array([100.0]))
    cost = lambda logit: objective.write_loss(sums._replace(write=100 * jnp.exp(logit)[None]), ObjectiveConfig())
    assert jax.grad(cost)(jnp.asarray(0.0)) > 0


def test_only_what_the_router_sends_teaches_the_write_gate():
    params, state = lively(CONFIG)

    def taught(gradient_of):
        gradients = [gradient_of(name) for name in ("write", "reads")]
        return [any(np.any(g != 0) for g in jax.tree.leaves(g[0].episodic)) for g, _ in gradients], gradients[0][1]

    assert taught(teaching(CONFIG, state, params))[0] == [True, True]
    # While every token attends, reads say nothing about value
    held = state._replace(released=jnp.array(False))
    assert taught(teaching(CONFIG, held, params))[0] == [False, False]
    # What audits read does not count, and audits are not counted among the routed
    audited = dataclasses.replace(CONFIG, routing=RoutingConfig(features=INPUTS, audit_rate=1.0))
    away = params.router._replace(
        in_DxF=jnp.zeros_like(params.router.in_DxF),
        bias_F=jnp.ones_like(params.router.bias_F),
        out_FxD=jnp.zeros_like(params.router.out_FxD).at[:, routing.WORKING].set(1e3),
    )
    does, aux = taught(teaching(audited, state, params._replace(router=away)))
    assert does == [True, False]
    assert np.all(aux.routes.attended_BxT) and aux.sums.routed == 0 and aux.sums.retrieved > 0


def test_familiarity_learns_nothing_where_nothing_was_retrieved():
    # Given a layer that routes nothing to episodic memory and audits nothing
    cfg = dataclasses.replace(CONFIG, routing=RoutingConfig(features=INPUTS, evaluation_audit_rate=0.0))
    params, state = lively(cfg)
    params = params._replace(router=params.router._replace(out_FxD=jnp.zeros_like(params.router.out_FxD)))
    x_BxTxD, gap_BxT = inputs()
    total = lambda p: sum(
        getattr(cram.apply(p, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT)[1].sums, name)
        for name in ("familiarity", "distillation", "retrieved")
    )
    value, gradient = jax.jit(jax.value_and_grad(total))(params)
    assert value == 0 and not any(np.any(g != 0) for g in jax.tree.leaves(gradient))


def test_writes_cannot_be_free():
    with pytest.raises(ValueError, match="write_price must be above 0, got 0.0; 0.01 keeps almost all events"):
        ObjectiveConfig(write_price=0.0)
