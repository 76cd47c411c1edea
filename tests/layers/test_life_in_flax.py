"""What a face adds to the function: variables and collections, who may change them, nesting, and refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from face_cases import (
    FAMILIES,
    D,
    assert_near,
    initial_state,
    linen_variables,
    loss_of,
    nnx_layer,
    nnx_values,
    parameters,
)
from flax import errors, nnx
from flax import linen as nn

from cram_jax.functional import attention, consolidation, cram
from cram_jax.layers import nnx as nnx_faces


def test_fresh_layers_hold_the_functions_parameters_and_state(family, batch):
    init, state = family.functional.init, family.functional.init_state(family.cfg)

    # NNX: the stream "params" gives the key; every leaf is a Param or a Consolidation
    layer = family.nnx(family.cfg, rngs=nnx.Rngs(params=3))
    want = init(nnx.Rngs(params=3).params(), family.cfg)
    jax.tree.map(np.testing.assert_array_equal, nnx_values(layer.params), want)
    jax.tree.map(np.testing.assert_array_equal, nnx_values(layer.state), state)
    counts = [len(jax.tree.leaves(nnx.state(layer, kind))) for kind in (nnx.Param, nnx_faces.Consolidation, ...)]
    assert counts == [len(jax.tree.leaves(want)), len(jax.tree.leaves(state)), counts[0] + counts[1]]

    # Linen: the same key gives the same parameters, and the state has a collection of its own
    layer = family.linen(family.cfg)
    variables = layer.init({"params": jax.random.key(3)}, batch[0])
    key = nn.apply(lambda layer: layer.make_rng("params"), layer)({}, rngs={"params": jax.random.key(3)})
    jax.tree.map(np.testing.assert_array_equal, variables, linen_variables(init(key, family.cfg), state))


def test_only_update_and_release_change_a_state(batch):
    # Given a fresh CRAM layer of either kind, in which every token attends
    family, x_BxTxD = FAMILIES["cram"], batch[0]
    params, fresh = parameters(family), family.functional.init_state(family.cfg)
    layer, linen, variables = nnx_layer(family, params, fresh), family.linen(family.cfg), linen_variables(params, fresh)

    # When it is called, nothing changes, though its collection is mutable
    _, aux = layer(x_BxTxD, train=True, rngs=nnx.Rngs(0))
    _, changed = linen.apply(
        variables, x_BxTxD, train=True, rngs={"route": jax.random.key(0)}, mutable=["consolidation"]
    )
    for state in (nnx_values(layer.state), changed["consolidation"]["state"]):
        jax.tree.map(np.testing.assert_array_equal, state, fresh)
    assert np.all(aux.routes.choice_BxT == 1)

    # When it is updated and released, its state is the function's
    want = consolidation.release(consolidation.update(fresh, aux.stats))
    layer.update(aux.stats)
    layer.release()
    variables |= linen.apply(variables, aux.stats, method="update", mutable=["consolidation"])[1]
    variables |= linen.apply(variables, method="release", mutable=["consolidation"])[1]
    for state in (nnx_values(layer.state), variables["consolidation"]["state"]):
        jax.tree.map(np.testing.assert_array_equal, state, want)
    assert float(want.weight) > 0 and bool(want.released)


def test_statistics_add_over_a_mapped_axis():
    # Given the sums of two devices, one of which retrieved nothing
    family = FAMILIES["cram"]
    params, state = parameters(family), initial_state(family)
    total_2xD = jax.random.normal(jax.random.key(2), (2, D)) * jnp.array([[1.0], [0.0]])
    parts = consolidation.ConsolidationStats(total_2xD, jnp.array([30.0, 0.0]), jnp.array([5.0, 0.0]))
    want = consolidation.update(state, jax.tree.map(lambda leaf: leaf.sum(0), parts))

    # When each updates over the axis
    variables = linen_variables(params, state)
    update = partial(family.linen(family.cfg).apply, method="update", mutable=["consolidation"])
    linen = jax.vmap(lambda stats: update(variables, stats, "devices")[1], axis_name="devices")(parts)

    def nnx_update(stats):
        layer = nnx_layer(family, params, state)
        layer.update(stats, "devices")
        return nnx_values(layer.state)

    # Then both have the state of the whole batch
    for states in (linen["consolidation"]["state"], jax.vmap(nnx_update, axis_name="devices")(parts)):
        for device in range(2):
            assert_near(jax.tree.map(lambda leaf, device=device: leaf[device], states), want)


def test_an_nnx_layer_differentiates_as_split_parameters(family, batch):
    # Given a module split as jax.grad wants it (design: a call writes no variable, so merge needs no copy)
    params, state = parameters(family), initial_state(family)
    layer = nnx_layer(family, params, state)
    graph, variables, rest = nnx.split(layer, nnx.Param, ...)

    def loss(variables):
        return loss_of(*nnx.merge(graph, variables, rest)(batch[0]))

    got = jax.jit(jax.grad(loss))(variables)

    want = jax.jit(jax.grad(lambda p: loss_of(*family.functional.apply(p, state, batch[0], cfg=family.cfg))))(params)
    assert_near(nnx_values(nnx.merge(graph, got, rest).params), want)


class NNXNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layers = nnx.List([FAMILIES[name].nnx(FAMILIES[name].cfg, rngs=rngs) for name in ("cram", "attention")])

    def __call__(self, x_BxTxD):
        x_BxTxD, aux = self.layers[0](x_BxTxD)
        return self.layers[1](x_BxTxD)[0], aux


class LinenNet(nn.Module):
    def setup(self):
        self.layers = [FAMILIES[name].linen(FAMILIES[name].cfg) for name in ("cram", "attention")]

    def __call__(self, x_BxTxD):
        x_BxTxD, aux = self.layers[0](x_BxTxD)
        return self.layers[1](x_BxTxD)[0], aux

    def update(self, stats):
        self.layers[0].update(stats)


def test_layers_nest_in_a_network(batch):
    # Given a CRAM layer under a transformer layer, in a network of one's own
    nnx_net, linen_net = NNXNet(nnx.Rngs(0)), LinenNet()
    variables = linen_net.init(jax.random.key(0), batch[0])
    linen_params = [variables["params"][f"layers_{i}"]["layer"] for i in (0, 1)]
    nnx_params = [nnx_values(layer.params) for layer in nnx_net.layers]

    # When it runs and its state is updated
    got_nnx, got_linen = nnx_net(batch[0]), linen_net.apply(variables, batch[0])
    nnx_net.layers[0].update(got_nnx[1].stats)
    _, changed = linen_net.apply(variables, got_linen[1].stats, method="update", mutable=["consolidation"])
    states = nnx_values(nnx_net.layers[0].state), changed["consolidation"]["layers_0"]["state"]

    # Then it is one function after the other, bit for bit (the same operations, not compiled together)
    first, second = FAMILIES["cram"], FAMILIES["attention"]
    fresh = cram.init_state(first.cfg)
    for params, got, state in zip((nnx_params, linen_params), (got_nnx, got_linen), states, strict=True):
        x_BxTxD, aux = cram.apply(params[0], fresh, batch[0], cfg=first.cfg)
        y_BxTxD, _ = attention.apply(params[1], (), x_BxTxD, cfg=second.cfg)
        jax.tree.map(np.testing.assert_array_equal, got, (y_BxTxD, aux))
        jax.tree.map(np.testing.assert_array_equal, state, consolidation.update(fresh, aux.stats))


def test_training_without_randomness_is_refused_where_a_layer_draws(family, batch):
    layer, linen = family.nnx(family.cfg, rngs=nnx.Rngs(0)), family.linen(family.cfg)
    variables = linen_variables(parameters(family), initial_state(family))
    if family.functional is cram:
        with pytest.raises(ValueError, match=r"CRAM needs rngs where train=True, got None.*route=seed"):
            layer(batch[0], train=True)
        with pytest.raises(errors.InvalidRngError, match="route"):
            linen.apply(variables, batch[0], train=True)
    else:
        np.testing.assert_array_equal(layer(batch[0], train=True)[0], layer(batch[0])[0])
        np.testing.assert_array_equal(
            linen.apply(variables, batch[0], train=True)[0], linen.apply(variables, batch[0])[0]
        )


def test_a_linen_stream_with_a_frozen_cache_is_refused(family, batch):
    variables = linen_variables(parameters(family), initial_state(family))
    with pytest.raises(errors.ModifyScopeVariableError, match='collection "cache" is immutable'):
        family.linen(family.cfg).apply(variables, batch[0][:, 0], method="step")
