"""What the NNX faces add to the functions: variables, random streams, nesting, and functions of a whole model."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from face_cases import (
    FACES,
    PRICE,
    B,
    D,
    batch,
    function_step,
    near,
    nnx_module,
    parameters,
    paths,
    put,
    same,
    state,
    values,
)
from flax import nnx

from cram_jax.functional import consolidation, objective
from cram_jax.layers import linen as linen_faces
from cram_jax.layers import nnx as faces

CRAM, ATTENTION, MAMBA2 = FACES["CRAM"], FACES["Attention"], FACES["Mamba2"]


class Net(nnx.Module):
    """A network of one's own: a block, and a mixer in the place of attention."""

    def __init__(self, rngs: nnx.Rngs):
        self.read = nnx.Linear(D, D, rngs=rngs)
        self.layers = nnx.List([faces.CRAM(CRAM.cfg, rngs=rngs), faces.CRAMMixer(CRAM.cfg, rngs=rngs)])
        self.norm = nnx.RMSNorm(D, rngs=rngs)

    def __call__(self, x_BxTxD):
        x_BxTxD = self.layers[0](self.read(x_BxTxD))
        return x_BxTxD + self.layers[1](self.norm(x_BxTxD))


@nnx.jit
def train_step(net: Net, optimizer: nnx.Optimizer, x_BxTxD):
    """As a user writes it: (loss, tokens)."""

    def loss(net):
        y_BxTxD = net(x_BxTxD)
        return jnp.mean(y_BxTxD**2) + faces.memory_loss(net, PRICE)[0], y_BxTxD

    out, gradient = nnx.value_and_grad(loss, has_aux=True)(net)
    optimizer.update(net, gradient)
    faces.update(net)
    return out


STILL = optax.sgd(0.0)  # parameters stand still: what changes from step to step is noise and the running state


def train(net: Net, steps: int) -> list:
    """(loss, tokens) of each step."""
    net.train()
    optimizer = nnx.Optimizer(net, STILL, wrt=nnx.Param)
    return [train_step(net, optimizer, batch()[0]) for _ in range(steps)]


def released(seed: int) -> Net:
    net = Net(nnx.Rngs(params=0, route=seed))
    faces.release(net)
    return net


def test_fresh_layers_hold_the_functions_parameters_and_state(face):
    # Given a stream "params"
    module = face.nnx(face.cfg, rngs=nnx.Rngs(params=3))

    # Then the function's parameters and state are there, every leaf a variable under the functional types' names
    want, held = face.own(face.cfg.init(nnx.Rngs(params=3).params())), face.cfg.init_state()
    same((values(module.weights), values(module.state)), (want, held))
    named = paths({"weights": linen_faces.named(want), "state": linen_faces.named(held) if held else {}})
    assert paths(nnx.to_pure_dict(nnx.state(module, (nnx.Param, faces.Consolidation)))) == named
    assert len(jax.tree.leaves(nnx.state(module, nnx.Param))) == len(jax.tree.leaves(want))
    # A mixer has no feed-forward network
    assert ("feed_forward" in str(named)) == (
        face.nnx.__name__ in ("CRAM", "PosteriorCRAM", "Attention", "Palimpsa", "SeqBoat")
    )


def test_each_training_step_draws_fresh_noise_that_its_seed_repeats():
    # Given a jitted training step in which only noise can change the tokens
    steps = train(released(seed=1), 3)

    # Then no two steps give the same tokens; the same seed repeats all steps, another repeats none
    tokens = [y_BxTxD for _, y_BxTxD in steps + train(released(seed=2), 3)]
    assert not any(np.allclose(one, other) for i, one in enumerate(tokens) for other in tokens[:i])
    same(train(released(seed=1), 3), steps)

    # And no two layers have the same noise
    one, other = (layer.noise() for layer in released(seed=1).layers)
    assert one != other


def test_layers_without_a_stream_refuse_training_unless_given_one(face):
    module = nnx_module(face, route=None)
    if not face.cfg.draws:
        return same(module(batch()[0], train=True), module(batch()[0]))
    with pytest.raises(ValueError, match=rf"{face.nnx.__name__} draws random numbers in training.*route=1"):
        module(batch()[0], train=True)
    given = [module(batch()[0], train=True, rngs=nnx.Rngs(route=7)) for _ in range(2)]
    same(*given)
    same(given[0], module(batch()[0], train=True, rngs=nnx.Rngs(route=7).route()))


def test_train_and_eval_set_the_mode_of_nested_layers():
    # Given layers in a network: evaluation at first
    net = Net(nnx.Rngs(0))
    faces.release(net)
    plain = net(batch()[0])
    count = lambda: int(net.layers[0].noise.count[...])
    assert count() == 0

    # When it trains, it draws; in evaluation it is what it was; an argument goes before the mode
    net.train()
    net(batch()[0])
    assert count() == 1
    net.eval()
    same(net(batch()[0]), plain)
    assert count() == 1
    net.layers[0](batch()[0], train=True)
    assert count() == 2


def test_only_update_and_release_change_a_state():
    # Given a network whose layers are fresh: every token attends
    net, x_BxTxD = Net(nnx.Rngs(0)), batch()[0]
    fresh = CRAM.cfg.init_state()

    # When it is called, its state stays
    net(x_BxTxD)
    for layer in net.layers:
        same(values(layer.state), fresh)
        assert layer.memory[1].routed[...] == x_BxTxD.shape[0] * x_BxTxD.shape[1]

    # When it is updated and released, every layer's is the function's
    faces.update(net)
    faces.release(net, when=False)
    assert not any(layer.state.released[...] for layer in net.layers)
    faces.release(net)
    for layer in net.layers:
        want = consolidation.release(consolidation.update(fresh, values(layer.memory)[0]))
        same(values(layer.state), want)
        assert float(want.weight) > 0 and bool(want.released)


def test_memory_loss_is_that_of_all_layers():
    net = Net(nnx.Rngs(0))
    net(batch()[0])
    sums = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[values(layer.memory)[1] for layer in net.layers])
    cfg = objective.ObjectiveConfig(distillation=3.0)
    near(faces.memory_loss(net, PRICE, cfg), objective.memory_loss(sums, PRICE, cfg))
    near(faces.memory_loss(net, PRICE), objective.memory_loss(sums, PRICE, objective.ObjectiveConfig()))

    # The share of pairs that attended is that of both layers, too
    near(faces.attention_utilisation(net), jnp.sum(sums.attended) / jnp.sum(sums.tokens))


def test_who_attends_an_empty_buffer_attends():
    # Given a layer before its release, whose write gate keeps nothing
    shut = dataclasses.replace(CRAM.cfg, episodic=dataclasses.replace(CRAM.cfg.episodic, write_bias=-1e3))
    layer = faces.CRAM(shut, rngs=nnx.Rngs(params=3))
    layer(batch()[0])
    assert faces.attention_utilisation(layer) == 1 and layer.memory[1].retrieved[...] == 0


def test_models_without_memories_are_refused_where_memories_are_needed():
    model = nnx_module(ATTENTION)
    for asked in (partial(faces.memory_loss, price=PRICE), faces.attention_utilisation):
        with pytest.raises(ValueError, match="a model with CRAM layers is needed; Attention has none"):
            asked(model)
    faces.update(model)
    faces.release(model)


def test_statistics_add_over_a_mapped_axis():
    # Given the sums of two devices, one of which retrieved nothing
    total_2xD = jax.random.normal(jax.random.key(2), (2, D)) * jnp.array([[1.0], [0.0]])
    parts = consolidation.ConsolidationStats(total_2xD, jnp.array([30.0, 0.0]), jnp.array([5.0, 0.0]))
    want = consolidation.update(state(CRAM), jax.tree.map(lambda leaf: leaf.sum(0), parts))

    # When each updates over the axis
    graph, variables = nnx.split(nnx_module(CRAM))

    def update(stats):
        module = nnx.merge(graph, variables, copy=True)
        put(module.memory[0], stats)
        faces.update(module, "devices")
        return values(module.state)

    states = jax.vmap(update, axis_name="devices")(parts)

    # Then both have the state of the whole batch
    for device in range(2):
        near(jax.tree.map(lambda leaf, device=device: leaf[device], states), want)


def test_a_state_dict_carries_all_that_training_needs():
    # Given a network after two steps, and one with other parameters and noise
    net, other = released(seed=1), Net(nnx.Rngs(params=8, route=9))
    train(net, 2)

    # When the first one's state goes through plain dictionaries of arrays, as a checkpoint's does, into the second
    saved = jax.tree.map(jax.random.key_data, nnx.to_pure_dict(nnx.state(net, nnx.RngKey)))
    saved = jax.device_get((nnx.to_pure_dict(nnx.state(net, nnx.Not(nnx.RngKey))), saved))
    blank = nnx.state(other)
    for part in (saved[0], jax.tree.map(jax.random.wrap_key_data, saved[1])):
        nnx.replace_by_pure_dict(blank, part)
    nnx.update(other, blank)

    # Then it goes on as the first would: parameters, running state, sums and noise
    twin = nnx.merge(*nnx.split(net), copy=True)
    assert all(layer.state.weight[...] > 0 for layer in other.layers)
    same(faces.memory_loss(other, PRICE), faces.memory_loss(net, PRICE))
    want = train(net, 2)
    same(train(other, 2), want)
    same(train(twin, 2), want)


@pytest.mark.parametrize("how", ["split", "remat"])
def test_gradients_of_split_and_rematerialised_layers(how):
    # Given a layer in training
    module = nnx_module(CRAM)
    module.train()
    key = nnx_module(CRAM).noise()
    (x_BxTxD, gap_BxT, segment_BxT), want = batch(), function_step(CRAM, parameters(CRAM), state(CRAM), key)

    def loss(module, call):
        y_BxTxD = call(module, x_BxTxD, gap_BxT, segment_BxT)
        return jnp.mean(y_BxTxD**2) + faces.memory_loss(module, PRICE)[0]

    def call(module, x_BxTxD, gap_BxT, segment_BxT):
        return module(x_BxTxD, gap_BxT, segment_BxT=segment_BxT)

    # When its parameters are split off for jax.grad, or its activations are computed again
    if how == "split":
        graph, variables, rest = nnx.split(module, nnx.Param, ...)
        gradient = jax.jit(jax.grad(lambda v: loss(nnx.merge(graph, v, rest, copy=True), call)))(variables)
    else:
        gradient = nnx.jit(nnx.grad(partial(loss, call=nnx.remat(call))))(module)
        near(values(module.memory), want.memory)

    # Then gradients are the function's
    near(linen_faces.unnamed(want.params, nnx.to_pure_dict(gradient)["weights"]), want.gradient)


def test_a_stream_starts_from_the_functions_cache(face):
    same(nnx_module(face).init_cache(B), face.cfg.init_cache(B))
