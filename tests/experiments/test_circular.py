"""The ablation that takes Eq 7 literally: its router sees the quality of recall, and every retrieval is counted."""

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


def circular(**routes) -> CircularCRAMConfig:
    parts = {field.name: getattr(CONFIG, field.name) for field in dataclasses.fields(CONFIG)}
    return CircularCRAMConfig(**parts | {"routing": RoutingConfig(**routes)})


def test_streaming_decides_alike():
    cfg = circular()
    params, state = lively(cfg)
    x_BxTxD, gap_BxT = inputs()
    y_BxTxD, aux = jax.jit(lambda x: cram.apply(params, state, x, cfg=cfg, gap_BxT=gap_BxT, key=KEY))(x_BxTxD)
    streamed_BxTxD, seen = jax.jit(lambda x: stream(params, state, x, gap_BxT, cfg, KEY))(x_BxTxD)
    np.testing.assert_array_equal(seen.choice_BxT, aux.routes.choice_BxT)
    assert np.all(seen.attended_BxT) and np.all(aux.routes.attended_BxT)
    # Sums of at most 40 numbers of size 1 in float32, in another order, through two norms
    np.testing.assert_allclose(streamed_BxTxD, y_BxTxD, atol=1e-4)


def test_the_router_sees_quality_and_pays_for_it():
    # Given a router that sees familiarity alone, and asks for episodic memory where that is below a threshold
    cfg = circular(features=("familiarity",), width=1)
    params, state = lively(cfg)
    gate = FeedForward(jnp.full((1, 1), -10.0), jnp.zeros(1), jnp.array([[-1.0, 0.0, -1.0]]))
    x_BxTxD, gap_BxT = inputs()

    @jax.jit
    def routes(gate):
        own = params._replace(router=gate)
        return cram.apply(own, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=KEY)[1].routes

    low, high = routes(gate), routes(gate._replace(in_DxF=jnp.full((1, 1), 10.0)))
    # Then every token retrieves and is counted
    assert np.all(low.attended_BxT) and np.all(high.attended_BxT)
    # And the route follows from the quality of that very retrieval: at 10 q its unit is on, at -10 q just below 0
    known_BxT = low.quality_BxT > 0.05
    assert 0.02 < np.mean(known_BxT) < 1
    np.testing.assert_array_equal(high.choice_BxT[known_BxT] == routing.EPISODIC, True)
    np.testing.assert_array_equal(low.choice_BxT[known_BxT] != routing.EPISODIC, True)
