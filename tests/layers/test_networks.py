"""Blocks and mixers in networks of one's own, NNX and Linen: Sequential, stacks, scans over layers, the bridges."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from face_cases import (
    FACES,
    NOISE,
    PRICE,
    B,
    D,
    batch,
    linen_call,
    linen_variables,
    near,
    nnx_module,
    paths,
    same,
    values,
)
from flax import linen as nn
from flax import nnx

from cram_jax.functional import objective
from cram_jax.layers import linen as linen_faces
from cram_jax.layers import nnx as nnx_faces
from cram_jax.models.stack import jamba_pattern

CRAM, MAMBA2 = FACES["CRAM"], FACES["Mamba2"]
JAMBA = jamba_pattern(MAMBA2.cfg, CRAM.cfg, before=1, after=1)  # a CRAM layer in the place of attention
ROUTE = {"route": jax.random.key(NOISE)}


def test_blocks_and_mixers_stand_in_a_sequential_of_nnx():
    # Given three layers and a projection, one after the other
    rngs = nnx.Rngs(params=0, route=1)
    blocks = [nnx_faces.CRAM(CRAM.cfg, rngs=rngs), nnx_faces.SeqBoatMixer(FACES["SeqBoat"].cfg, rngs=rngs)]
    net = nnx.Sequential(*blocks, nnx.Linear(D, D, rngs=rngs), nnx_faces.Palimpsa(FACES["Palimpsa"].cfg, rngs=rngs))

    # Then it is each applied to the tokens of the one before
    y_BxTxD = batch()[0]
    for layer in net.layers:
        y_BxTxD = layer(y_BxTxD)
    same(net(batch()[0]), y_BxTxD)
    nnx_faces.release(net)
    assert bool(blocks[0].state.released[...])


def test_blocks_and_mixers_stand_in_a_sequential_of_linen():
    # Given three layers and a projection, one after the other
    layers = [linen_faces.CRAM(CRAM.cfg), linen_faces.SeqBoatMixer(FACES["SeqBoat"].cfg)]
    layers += [nn.Dense(D), linen_faces.Palimpsa(FACES["Palimpsa"].cfg)]
    net, x_BxTxD = nn.Sequential(layers), batch()[0]
    variables = net.init(jax.random.key(0), x_BxTxD)
    y_BxTxD, memory = linen_call(net, variables, x_BxTxD)

    # Then it is each applied to the tokens of the one before
    want_BxTxD = x_BxTxD
    for i, layer in enumerate(layers):
        own = {name: tree[f"layers_{i}"] for name, tree in variables.items() if f"layers_{i}" in tree}
        want_BxTxD = layer.apply(own, want_BxTxD)
    same(y_BxTxD, want_BxTxD)
    assert set(memory) == {"layers_0"} and linen_faces.release(variables["consolidation"])["layers_0"]["released"]


def test_jamba_is_a_stack_of_blocks_in_nnx():
    net, (x_BxTxD, gap_BxT, segment_BxT) = nnx_faces.Stack(JAMBA, rngs=nnx.Rngs(0)), batch()
    assert [type(block.cfg).__name__ for block in net.blocks] == ["Mamba2Config", "CRAMConfig", "Mamba2Config"]

    # Its tokens are the blocks', gaps and segments included, and the model's functions reach its state
    y_BxTxD = x_BxTxD
    for block in net.blocks:
        y_BxTxD = block(y_BxTxD, gap_BxT, segment_BxT=segment_BxT)
    same(net(x_BxTxD, gap_BxT, segment_BxT=segment_BxT), y_BxTxD)
    nnx_faces.update(net)
    assert net.blocks[1].state.weight[...] > 0

    # And a stream of tokens is the whole sequence
    @nnx.jit
    def streamed(net):
        one = lambda caches, now: net.step(caches, *now)[::-1]
        return jax.lax.scan(one, net.init_cache(B), (x_BxTxD.swapaxes(0, 1), gap_BxT.T))[1]

    near(streamed(net).swapaxes(0, 1), net(x_BxTxD, gap_BxT))


def test_jamba_is_a_stack_of_blocks_in_linen():
    net, (x_BxTxD, gap_BxT, segment_BxT) = linen_faces.Stack(JAMBA), batch()
    variables = net.init(jax.random.key(0), x_BxTxD)

    # Its tokens are the blocks', gaps and segments included
    y_BxTxD = x_BxTxD
    for i, cfg in enumerate(JAMBA):
        own = {name: tree[f"blocks_{i}"] for name, tree in variables.items() if f"blocks_{i}" in tree}
        y_BxTxD = linen_faces.Block(cfg).apply(own, y_BxTxD, gap_BxT, segment_BxT=segment_BxT)
    same(net.apply(variables, x_BxTxD, gap_BxT, segment_BxT=segment_BxT), y_BxTxD)
    assert set(variables["consolidation"]) == {"blocks_1"}

    # And a stream of tokens is the whole sequence
    empty = jax.eval_shape(partial(net.init, method="step"), jax.random.key(0), x_BxTxD[:, 0])["cache"]

    @jax.jit
    def streamed(variables):
        def one(cache, now):
            y_BxD, after = net.apply({**variables, "cache": cache}, *now, method="step", mutable=["cache"])
            return after["cache"], y_BxD

        start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), empty)
        return jax.lax.scan(one, start, (x_BxTxD.swapaxes(0, 1), gap_BxT.T))[1]

    near(streamed(variables).swapaxes(0, 1), net.apply(variables, x_BxTxD, gap_BxT))


def test_nnx_scans_over_layers():
    # Given two layers whose variables are stacked
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def make(rngs: nnx.Rngs):
        return nnx_faces.CRAM(CRAM.cfg, rngs=rngs)

    net, x_BxTxD = make(nnx.Rngs(params=0, route=1)), batch()[0]
    net.train()
    nnx_faces.release(net)
    graph, variables = nnx.split(net)
    one = lambda i: nnx.merge(graph, jax.tree.map(lambda leaf: leaf[i], variables))
    want_BxTxD = one(1)(one(0)(x_BxTxD))

    # When tokens go through both in a scan, and the network is updated
    @nnx.jit
    def run(net, x_BxTxD):
        y_BxTxD = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x_BxTxD, net)
        loss = nnx_faces.memory_loss(net, PRICE)[0]
        nnx_faces.update(net)
        return y_BxTxD, loss

    y_BxTxD, loss = run(net, x_BxTxD)

    # Then it is one layer after the other, each with noise, sums and a state of its own
    near(y_BxTxD, want_BxTxD)
    sums, held = values(net.memory)[1], values(net.state)
    near(loss, objective.memory_loss(sums, PRICE, objective.ObjectiveConfig())[0])
    assert held.weight.shape == (2,) and not np.allclose(held.mean_D[0], held.mean_D[1])
    assert sums.distillation[0] != sums.distillation[1]


def test_linen_scans_over_layers():
    # Given two layers in a scan, each with parameters, noise, sums and a state of its own
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x_BxTxD, _):
            return linen_faces.CRAM(CRAM.cfg, deterministic=False)(x_BxTxD), None

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x_BxTxD):
            axes = {"params": 0, "consolidation": 0, "memory": 0}
            return nn.scan(Body, axes, split_rngs={"params": True, "route": True}, length=2)()(x_BxTxD, None)[0]

    net, x_BxTxD = Deep(), batch()[0]
    variables = jax.jit(net.init)({"params": jax.random.key(0)} | ROUTE, x_BxTxD)
    variables["consolidation"] = linen_faces.release(variables["consolidation"])

    # When it runs in training
    _, memory = jax.jit(partial(linen_call, net, rngs=ROUTE))(variables, x_BxTxD)

    # Then loss and update are those of two layers
    sums, stats = (memory["ScanBody_0"]["CRAM_0"][name] for name in ("sums", "stats"))
    want = objective.memory_loss(objective.MemorySums(**sums), PRICE, objective.ObjectiveConfig())
    near(linen_faces.memory_loss(memory, PRICE), want)
    assert sums["distillation"].shape == (2,) and sums["distillation"][0] != sums["distillation"][1]
    after = linen_faces.update(variables["consolidation"], memory)["ScanBody_0"]["CRAM_0"]
    mean_D = lambda i: stats["total_D"][i] / stats["count"][i] * (1 - CRAM.cfg.consolidation.decay)
    near(after["mean_D"], jnp.stack([mean_D(0), mean_D(1)]))


def test_a_linen_network_runs_an_nnx_layer():
    # Given an NNX layer as a Linen module
    x_BxTxD = batch()[0]
    bridged = nnx.bridge.to_linen(nnx_faces.CRAM, CRAM.cfg)
    variables = bridged.init({"params": jax.random.key(0), "route": jax.random.key(1)}, x_BxTxD)

    # When the collections that the bridge names after the variables' classes hold the layer's variables
    module = nnx_module(CRAM)
    want = nnx.to_pure_dict(nnx.state(module, (nnx.Param, nnx_faces.Consolidation)))
    assert paths(variables["params"]["weights"]) == paths(want["weights"])
    variables = {**variables, "params": {"weights": want["weights"]}, "Consolidation": {"state": want["state"]}}

    # Then it gives the layer's tokens
    same(bridged.apply(variables, x_BxTxD), module(x_BxTxD))
    y_BxTxD, after = bridged.apply(variables, x_BxTxD, mutable=["Memory"])
    same(y_BxTxD, module(x_BxTxD))
    same(after["Memory"]["memory"], nnx.to_pure_dict(nnx.state(module, nnx_faces.Memory))["memory"])


def test_an_nnx_network_runs_a_linen_layer():
    # Given a Linen layer as an NNX module
    x_BxTxD, variables = batch()[0], linen_variables(CRAM)
    module = nnx.bridge.ToNNX(linen_faces.CRAM(CRAM.cfg), rngs=nnx.Rngs(params=0, route=1)).lazy_init(x_BxTxD)

    # When it holds the layer's variables
    held = nnx.state(module)
    nnx.replace_by_pure_dict(held, variables["params"] | variables["consolidation"])
    nnx.update(module, held)

    # Then it gives the layer's tokens and memory, and fresh noise at each training step
    y_BxTxD, memory = linen_call(linen_faces.CRAM(CRAM.cfg), variables, x_BxTxD)
    same(module(x_BxTxD), y_BxTxD)
    module(x_BxTxD, mutable=["memory"], rngs={})
    held = nnx.to_pure_dict(nnx.state(module))
    same({name: held[name] for name in ("stats", "sums")}, memory)
    first, second = (module(x_BxTxD, train=True) for _ in range(2))
    assert not np.allclose(first, second)
