"""The router (Eq 7): what it samples, audits, and routers to compare it with."""

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


# The last case has the inputs that a layer has by default. The others name theirs, so they would not see a new one.
@pytest.mark.parametrize("decide", [*routing.DECIDES, "by default"])
def test_streaming_decides_alike(decide):
    cfg = dataclasses.replace(CONFIG, routing=RoutingConfig())
    if decide != "by default":
        cfg = deciding(decide, budget=0.3)
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    y_BxTxD, aux = jax.jit(lambda x: cram.apply(params, state, x, cfg=cfg, gap_BxT=gap_BxT, key=KEY))(x_BxTxD)
    streamed_BxTxD, seen = jax.jit(lambda x: stream(params, state, x, gap_BxT, cfg, KEY))(x_BxTxD)
    np.testing.assert_array_equal(seen.choice_BxT, aux.routes.choice_BxT)
    np.testing.assert_array_equal(seen.attended_BxT, aux.routes.attended_BxT)
    # Sums of at most 40 numbers of size 1 in float32, in another order, through two norms
    np.testing.assert_allclose(streamed_BxTxD, y_BxTxD, atol=1e-4)
    # Margins show a difference that is too small to turn a decision
    np.testing.assert_allclose(seen.margin_BxT, aux.routes.margin_BxT, atol=1e-4)


def test_a_semantic_memory_of_rank_0_knows_nothing_of_the_token():
    params = semantic.init(KEY, 8, SemanticConfig(rank=0))
    recalled = semantic.recall(params._replace(mean_D=jnp.arange(8.0)), jax.random.normal(KEY, (5, 8)))
    np.testing.assert_array_equal(recalled, np.broadcast_to(np.arange(8.0), (5, 8)))


def test_in_training_each_memory_is_drawn_with_its_probability():
    # Eq 7: the largest of logits plus Gumbel noise is drawn with the probabilities of the softmax
    cfg, count = RoutingConfig(features=("gap",), temperature=1.0), 60_000
    logits = np.array([1.0, 0.3, -0.2])
    params = routing.init(jax.random.key(0), 4, cfg)
    params = params._replace(
        in_DxF=jnp.zeros_like(params.in_DxF).at[0, 0].set(1.0),
        out_FxD=jnp.zeros_like(params.out_FxD).at[0].set(logits / jax.nn.gelu(1.0)),
    )
    uniform_BxTx4 = jax.random.uniform(jax.random.key(1), (1, count, 4), minval=1e-6, maxval=1 - 1e-6)
    gates = routing.route(
        params, {"gap": jnp.ones((1, count))}, uniform_BxTx4, jnp.array(True), jnp.arange(count), cfg=cfg, train=True
    )
    drawn = np.bincount(np.asarray(gates.choice_BxT[0]), minlength=3) / count
    # Standard deviations are at most 0.002
    np.testing.assert_allclose(drawn, np.exp(logits) / np.exp(logits).sum(), atol=0.01)
    np.testing.assert_allclose(drawn, gates.mean_BxTx3[0, 0], atol=0.01)


def test_audits_are_as_frequent_as_their_weights_say():
    # Given tokens that lean to episodic memory to different degrees, and do not choose it
    cfg, shape = RoutingConfig(features=("gap",), audit_rate=0.05, audit_gain=2.0), (1, 60_000)
    lean_BxT = jnp.where(jnp.arange(shape[1]) % 2, -6.0, -9.0)[None]
    params = routing.init(jax.random.key(0), 4, cfg)
    params = params._replace(
        in_DxF=jnp.zeros_like(params.in_DxF).at[0, 0].set(-1.0),
        out_FxD=jnp.zeros_like(params.out_FxD).at[0, routing.EPISODIC].set(-1.0),
    )
    uniform_BxTx4 = jax.random.uniform(jax.random.key(1), (*shape, 4), minval=1e-6, maxval=1 - 1e-6)
    place_T = jnp.arange(shape[1])
    routes = routing.route(params, {"gap": lean_BxT}, uniform_BxTx4, jnp.array(True), place_T, cfg=cfg, train=True)
    other_BxT = ~routes.routed_BxT
    for kind in (0, 1):
        among_BxT = other_BxT & (jnp.arange(shape[1]) % 2 == kind)
        lean = routes.mean_BxTx3[0, kind, routing.EPISODIC]
        rate = np.mean(routes.audited_BxT[among_BxT])
        # Then the chance is what is documented, the weight is one over it, and the noise of the route has no part
        np.testing.assert_allclose(rate, 0.05 + 2 * lean, rtol=0.05)  # 30,000 draws: a standard deviation of 2%
        np.testing.assert_allclose(routes.audit_weight_BxT[among_BxT] * rate, 1, rtol=0.05)
        chosen = routes.audited_BxT[among_BxT]
        gumbel = uniform_BxTx4[..., routing.EPISODIC][among_BxT]
        assert abs(np.mean(gumbel[chosen]) - np.mean(gumbel[~chosen])) < 0.03


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
