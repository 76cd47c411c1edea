"""The function, its NNX face and its Linen face are one layer: every family in FAMILIES passes the same battery."""

from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from face_cases import (
    NOISE,
    B,
    Family,
    assert_near,
    initial_state,
    linen_key,
    linen_variables,
    loss_of,
    nnx_layer,
    nnx_values,
    parameters,
)
from flax import nnx

from cram_jax.functional import consolidation
from cram_jax.layers import nnx as nnx_faces

RATE = 0.1


class Step(NamedTuple):
    """What one training step shows."""

    y_BxTxD: Any
    aux: Any
    grads: Any
    params: Any
    state: Any


def function_steps(family: Family, params, state, batch, keys) -> list[Step]:
    x_BxTxD, gap_BxT, segment_BxT = batch

    @jax.jit
    def train(params, state, key):
        def loss(params):
            y_BxTxD, aux = family.functional.apply(
                params, state, x_BxTxD, cfg=family.cfg, gap_BxT=gap_BxT, key=key, train=True, segment_BxT=segment_BxT
            )
            return loss_of(y_BxTxD, aux), (y_BxTxD, aux)

        (_, (y_BxTxD, aux)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grads)
        return Step(y_BxTxD, aux, grads, params, consolidation.update(state, aux.stats) if state else state)

    steps = []
    for key in keys:
        steps.append(train(params, state, key))
        params, state = steps[-1].params, steps[-1].state
    return steps


def nnx_steps(family: Family, params, state, batch, count: int) -> tuple[list[Step], list]:
    x_BxTxD, gap_BxT, segment_BxT = batch
    layer = nnx_layer(family, params, state)
    optimizer = nnx.Optimizer(layer, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def train(layer, optimizer, rngs):
        def loss(layer, rngs):
            y_BxTxD, aux = layer(x_BxTxD, gap_BxT, train=True, segment_BxT=segment_BxT, rngs=rngs)
            return loss_of(y_BxTxD, aux), (y_BxTxD, aux)

        (_, (y_BxTxD, aux)), grads = nnx.value_and_grad(loss, has_aux=True)(layer, rngs)
        optimizer.update(layer, grads)
        if layer.state:
            layer.update(aux.stats)
        return y_BxTxD, aux, grads

    rngs, steps = nnx.Rngs(route=NOISE), []
    for _ in range(count):
        y_BxTxD, aux, grads = train(layer, optimizer, rngs)
        grads = nnx_values(nnx.merge(nnx.graphdef(layer), grads, nnx.state(layer, nnx_faces.Consolidation)).params)
        steps.append(Step(y_BxTxD, aux, grads, nnx_values(layer.params), nnx_values(layer.state)))
    rngs = nnx.Rngs(route=NOISE)
    return steps, [rngs.route() for _ in range(count)]


def linen_steps(family: Family, params, state, batch, count: int) -> tuple[list[Step], list]:
    x_BxTxD, gap_BxT, segment_BxT = batch
    layer = family.linen(family.cfg)
    variables = linen_variables(params, state)
    key = linen_key(layer, variables)

    @jax.jit
    def train(variables):
        def loss(params):
            y_BxTxD, aux = layer.apply(
                {**variables, "params": params},
                x_BxTxD,
                gap_BxT,
                train=True,
                segment_BxT=segment_BxT,
                rngs={"route": jax.random.key(NOISE)},
            )
            return loss_of(y_BxTxD, aux), (y_BxTxD, aux)

        (_, (y_BxTxD, aux)), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        changed = {"params": jax.tree.map(lambda p, g: p - RATE * g, variables["params"], grads)}
        if "consolidation" in variables:
            changed |= layer.apply(variables, aux.stats, method="update", mutable=["consolidation"])[1]
        return y_BxTxD, aux, grads["layer"], changed

    steps = []
    for _ in range(count):
        y_BxTxD, aux, grads, variables = train(variables)
        state = variables["consolidation"]["state"] if "consolidation" in variables else ()
        steps.append(Step(y_BxTxD, aux, grads, variables["params"]["layer"], state))
    return steps, [key] * count


@pytest.mark.parametrize("steps_of", [nnx_steps, linen_steps])
def test_a_training_is_that_of_the_function(family, batch, steps_of):
    # Given the same parameters, state and noise
    params, state = parameters(family), initial_state(family)

    # When two steps are taken under jit: gradients of Eq 8, then the state's update
    got, keys = steps_of(family, params, state, batch, 2)
    want = function_steps(family, params, state, batch, keys)

    # Then outputs, routes, sums, gradients, parameters and states agree at each
    assert_near(got, want)
    if state:
        assert set(np.unique(want[0].aux.routes.choice_BxT)) == {0, 1, 2}, "the battery should see every route"


@pytest.mark.parametrize("key", [None, jax.random.key(NOISE)], ids=["plain", "audited"])
def test_an_evaluation_is_the_function_bit_for_bit(family, batch, key):
    params, state = parameters(family), initial_state(family)
    x_BxTxD, gap_BxT, segment_BxT = batch
    apply = partial(
        family.functional.apply, params, state, x_BxTxD, cfg=family.cfg, gap_BxT=gap_BxT, segment_BxT=segment_BxT
    )

    # The same operations one by one, not compiled together: no reason for a bit to differ.
    layer = nnx_layer(family, params, state)
    got = layer(x_BxTxD, gap_BxT, segment_BxT=segment_BxT, rngs=key)
    jax.tree.map(np.testing.assert_array_equal, got, apply(key=key))

    layer, variables = family.linen(family.cfg), linen_variables(params, state)
    rngs = {} if key is None else {"route": key}
    got = layer.apply(variables, x_BxTxD, gap_BxT, segment_BxT=segment_BxT, rngs=rngs)
    jax.tree.map(np.testing.assert_array_equal, got, apply(key=None if key is None else linen_key(layer, variables)))


def stream_nnx(family: Family, params, state, x_BxTxD, gap_BxT):
    layer, key = nnx_layer(family, params, state), jax.random.key(NOISE)

    @nnx.jit
    def whole(layer):
        return layer(x_BxTxD, gap_BxT, rngs=key)

    @nnx.jit
    def streamed(layer):
        def one(cache, now):
            y_BxD, cache, aux = layer.step(cache, *now, rngs=key)
            return cache, (y_BxD, aux)

        return jax.lax.scan(one, layer.init_cache(B), (x_BxTxD.swapaxes(0, 1), gap_BxT.T))[1]

    return whole(layer), streamed(layer)


def stream_linen(family: Family, params, state, x_BxTxD, gap_BxT):
    layer, variables, rngs = family.linen(family.cfg), linen_variables(params, state), {"route": jax.random.key(NOISE)}
    empty = layer.init(jax.random.key(0), x_BxTxD[:, 0], method="step")["cache"]

    @jax.jit
    def streamed(variables):
        def one(cache, now):
            out, changed = layer.apply({**variables, "cache": cache}, *now, method="step", mutable=["cache"], rngs=rngs)
            return changed["cache"], out

        return jax.lax.scan(one, empty, (x_BxTxD.swapaxes(0, 1), gap_BxT.T))[1]

    return jax.jit(partial(layer.apply, rngs=rngs))(variables, x_BxTxD, gap_BxT), streamed(variables)


@pytest.mark.parametrize("stream", [stream_nnx, stream_linen])
def test_a_stream_equals_the_whole_sequence(family, batch, stream):
    # Given a layer in evaluation, audits on, whose buffer (3) is shorter than the sequence (12)
    x_BxTxD, gap_BxT, _ = batch
    (y_BxTxD, aux), (y_TxBxD, routes) = stream(family, parameters(family), initial_state(family), x_BxTxD, gap_BxT)

    # Then token by token gives the same tokens and, where the layer routes, the same routes
    assert_near(y_TxBxD.swapaxes(0, 1), y_BxTxD)
    if aux:
        assert_near(jax.tree.map(lambda a: a.swapaxes(0, 1), routes), aux.routes)
        audited_BxT = aux.routes.attended_BxT & (aux.routes.choice_BxT != 1)
        assert np.any(audited_BxT), "the battery should see an audit"


def test_a_linen_stream_may_start_without_a_cache(family, batch):
    x_BxTxD, _, _ = batch
    layer, variables = family.linen(family.cfg), linen_variables(parameters(family), initial_state(family))
    empty = layer.init(jax.random.key(0), x_BxTxD[:, 0], method="step")["cache"]

    jax.tree.map(np.testing.assert_array_equal, empty["stream"], family.functional.init_cache(family.cfg, B))
    step = partial(layer.apply, method="step", mutable=["cache"])
    given, none = step({**variables, "cache": empty}, x_BxTxD[:, 0]), step(variables, x_BxTxD[:, 0])
    jax.tree.map(np.testing.assert_array_equal, given, none)
