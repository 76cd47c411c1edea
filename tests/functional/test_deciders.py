"""Routers to compare the learned one with: chance and places."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import CONFIG, INPUTS, B, T, inputs, lively, stream

from cram_jax.functional import cram, routing, semantic
from cram_jax.functional.routing import RoutingConfig
from cram_jax.functional.semantic import SemanticConfig

KEY = jax.random.key(4)


def deciding(decide: str, **more):
    return dataclasses.replace(CONFIG, routing=RoutingConfig(**{"features": INPUTS, "decide": decide} | more))


def routes(cfg, x_BxTxD=None, key=KEY, params=None):
    fresh, state = lively(cfg)
    x, gap_BxT = inputs()
    x_BxTxD = x if x_BxTxD is None else x_BxTxD
    run = jax.jit(lambda params, x: cram.apply(params, state, x, cfg=cfg, gap_BxT=gap_BxT, key=key)[1].routes)
    return run(params or fresh, x_BxTxD)


@pytest.mark.parametrize("decide", ["random", "positions"])
def test_a_fixed_router_spends_its_budget_whatever_the_token(decide):
    cfg = deciding(decide, budget=0.25)
    attended = [routes(cfg, x).attended_BxT for x in (None, 3 * inputs(seed=8)[0])]
    np.testing.assert_array_equal(*attended)
    if decide == "positions":
        np.testing.assert_array_equal(attended[0], np.broadcast_to(np.arange(T) % 4 == 3, (B, T)))
    else:  # 120 tosses: 0.25 +- 0.04
        assert 0.1 < np.mean(attended[0]) < 0.4
        assert np.any(attended[0] != routes(cfg, key=jax.random.key(5)).attended_BxT)
    # Of the others, each memory is chosen somewhere
    assert set(np.unique(routes(cfg).choice_BxT)) == {routing.WORKING, routing.EPISODIC, routing.SEMANTIC}


def test_random_routes_without_random_numbers_are_refused():
    with pytest.raises(ValueError, match='decide="random" needs random numbers: pass a key'):
        routes(deciding("random"), key=None)


@pytest.mark.parametrize("decide", routing.DECIDES)
def test_streaming_decides_alike(decide):
    cfg = deciding(decide, budget=0.3)
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    y_BxTxD, aux = jax.jit(lambda x: cram.apply(params, state, x, cfg=cfg, gap_BxT=gap_BxT, key=KEY))(x_BxTxD)
    streamed_BxTxD, seen = jax.jit(lambda x: stream(params, state, x, gap_BxT, cfg, KEY))(x_BxTxD)
    np.testing.assert_array_equal(seen.choice_BxT, aux.routes.choice_BxT)
    np.testing.assert_array_equal(seen.attended_BxT, aux.routes.attended_BxT)
    # Sums of at most 40 numbers of size 1 in float32, in another order, through two norms
    np.testing.assert_allclose(streamed_BxTxD, y_BxTxD, atol=1e-4)


def test_a_semantic_memory_of_rank_0_knows_nothing_of_the_token():
    params = semantic.init(KEY, 8, SemanticConfig(rank=0))
    recalled = semantic.recall(params._replace(mean_D=jnp.arange(8.0)), jax.random.normal(KEY, (5, 8)))
    np.testing.assert_array_equal(recalled, np.broadcast_to(np.arange(8.0), (5, 8)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"decide": "never"}, "decide must be one of .*got 'never'"),
        ({"budget": 1.5}, "budget must be a share between 0 and 1, got 1.5"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        RoutingConfig(**given)
