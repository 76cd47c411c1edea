"""The function, its NNX face and its Linen face are one layer: every family in FAMILIES passes the same battery."""

from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import errors, nnx
from flax import linen as nn

from cram_jax.functional import attention, consolidation, cram, objective
from cram_jax.layers import linen as linen_faces
from cram_jax.layers import nnx as nnx_faces

B, T, D = 2, 12, 8
NOISE = 5  # seed of the stream "route"
RATE = 0.1


class Family(NamedTuple):
    functional: ModuleType
    cfg: Any
    nnx: type[nnx.Module]
    linen: type[nn.Module]


FAMILIES = {
    "cram": Family(
        cram,
        cram.CRAMConfig(
            D=D,
            F=8,
            working=cram.WorkingConfig(body="gated_scan", width=8),  # the body that carries a state along the stream
            episodic=cram.EpisodicConfig(heads=2, head_dim=4, memory=3, width=4),
            semantic=cram.SemanticConfig(rank=8),
            routing=cram.RoutingConfig(
                width=8, audit_rate=0.3, evaluation_audit_rate=0.3
            ),  # so that 24 tokens show some
        ),
        nnx_faces.CRAM,
        linen_faces.CRAM,
    ),
    "attention": Family(
        attention,
        attention.AttentionConfig(D=D, F=8, heads=2, head_dim=4, rotary=True, context=T),
        nnx_faces.Attention,
        linen_faces.Attention,
    ),
}


@pytest.fixture(params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def batch():
    x, gap = jax.random.split(jax.random.key(1))
    segment_BxT = jnp.broadcast_to(jnp.arange(T) // 7, (B, T))
    return jax.random.normal(x, (B, T, D)), 1 + jax.random.exponential(gap, (B, T)), segment_BxT


def parameters(family: Family, key=0):
    """Parameters off their initial zeros, so that tokens take every route."""
    params = family.functional.init(jax.random.key(key), family.cfg)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    return tree.unflatten([p + 0.5 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


def initial_state(family: Family):
    """A released state that has seen retrievals, where the layer has one."""
    state = family.functional.init_state(family.cfg)
    if not state:
        return state
    stats = consolidation.ConsolidationStats(jnp.ones(D), jnp.asarray(40.0), jnp.asarray(10.0))
    return consolidation.release(consolidation.update(state, stats))


def is_variable(node) -> bool:
    return isinstance(node, nnx.Variable)


def nnx_layer(family: Family, params, state) -> nnx.Module:
    layer = family.nnx(family.cfg, rngs=nnx.Rngs(0))
    jax.tree.map(nnx.Variable.set_value, (layer.params, layer.state), (params, state), is_leaf=is_variable)
    return layer


def nnx_values(variables):
    return jax.tree.map(lambda variable: variable[...], variables, is_leaf=is_variable)


def linen_variables(params, state):
    return {"params": {"layer": params}} | ({"consolidation": {"state": state}} if state else {})


def linen_key(layer: nn.Module, variables):
    """What "route" gives the layer; Flax folds the module's path into it."""
    rngs = {"route": jax.random.key(NOISE)}
    return nn.apply(lambda layer: layer.make_rng("route"), layer)(variables, rngs=rngs)


def loss_of(y_BxTxD, aux):
    """A task's loss and, where the layer has memories, all of Eq 8."""
    task = jnp.mean(y_BxTxD**2)
    return task + objective.memory_loss(aux.sums, jnp.asarray(0.3), objective.ObjectiveConfig())[0] if aux else task


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


def assert_near(got, want):
    """Choices are equal; numbers differ at most as one program differs from another that XLA fused otherwise.

    That is a few units in the last place (6e-8) of sums of about 100 terms of size 1: 1e-5 is 20 times as much.
    """

    def check(got, want):
        assert got.dtype == want.dtype
        if jnp.issubdtype(want.dtype, jnp.floating):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(got, want)

    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(check, got, want)


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
