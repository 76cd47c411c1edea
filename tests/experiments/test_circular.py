"""The ablation whose router sees Eq 7's own input, the quality of a retrieval."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from cram_cases import CONFIG, inputs, lively, stream
from lib.circular import CircularCRAMConfig

from cram_jax.functional import cram, routing
from cram_jax.functional.common import FeedForward
from cram_jax.functional.routing import RoutingConfig

KEY = jax.random.key(4)


def circular(**more) -> CircularCRAMConfig:
    settings = {field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)}
    return CircularCRAMConfig(**settings | {"routing": RoutingConfig(**more)})


def test_streaming_decides_alike():
    cfg = circular()
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    y_BxTxD, aux = jax.jit(lambda x: cram.apply(params, state, x, cfg=cfg, gap_BxT=gap_BxT, key=KEY))(x_BxTxD)
    streamed_BxTxD, seen = jax.jit(lambda x: stream(params, state, x, gap_BxT, cfg, KEY))(x_BxTxD)
    np.testing.assert_array_equal(seen.choice_BxT, aux.routes.choice_BxT)
    np.testing.assert_array_equal(seen.attended_BxT, aux.routes.attended_BxT)
    # Sums of at most 40 numbers of size 1 in float32, in another order, through two norms
    np.testing.assert_allclose(streamed_BxTxD, y_BxTxD, atol=1e-4)


def test_the_router_sees_quality_and_pays_for_it():
    # Given a router that sees familiarity alone, and asks for episodic memory where that is below a threshold
    cfg = circular(features=("familiarity",), width=1)
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    routes = jax.jit(lambda p: cram.apply(p, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=KEY)[1].routes)
    gate = FeedForward(jnp.full((1, 1), -10.0), jnp.zeros(1), jnp.array([[-1.0, 0.0, -1.0]]))
    low = routes(params._replace(router=gate))
    high = routes(params._replace(router=gate._replace(in_DxF=jnp.full((1, 1), 10.0))))
    # Then every token retrieves and is counted, where the learned router spares some
    assert np.all(low.attended_BxT) and np.all(high.attended_BxT)
    plain, state = lively(CONFIG)
    learned = jax.jit(lambda x: cram.apply(plain, state, x, cfg=CONFIG, gap_BxT=gap_BxT, key=KEY)[1].routes)(x_BxTxD)
    assert not np.all(learned.attended_BxT)
    # And the route follows from the quality of that very retrieval: at 10 q its unit is on, at -10 q just below 0
    known_BxT = low.quality_BxT > 0.05
    assert 0.02 < np.mean(known_BxT) < 1
    np.testing.assert_array_equal(high.choice_BxT[known_BxT] == routing.EPISODIC, True)
    np.testing.assert_array_equal(low.choice_BxT[known_BxT] != routing.EPISODIC, True)
