"""What the Linen faces add to the functions: named leaves, collections, nesting, and functions of a whole model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from face_cases import (
    FACES,
    NOISE,
    PRICE,
    B,
    D,
    batch,
    function_step,
    linen_call,
    linen_variables,
    near,
    parameters,
    same,
    state,
)
from flax import errors, traverse_util
from flax import linen as nn

from cram_jax.functional import consolidation, objective
from cram_jax.layers import linen as faces

CRAM, ATTENTION, MAMBA2 = FACES["CRAM"], FACES["Attention"], FACES["Mamba2"]
ROUTE = {"route": jax.random.key(NOISE)}


class Net(nn.Module):
    """A network of one's own: a block, and a mixer in the place of attention."""

    deterministic: bool = True

    @nn.compact
    def __call__(self, x_BxTxD):
        x_BxTxD = faces.CRAM(CRAM.cfg, deterministic=self.deterministic)(nn.Dense(D)(x_BxTxD))
        mixer = faces.CRAMMixer(CRAM.cfg, deterministic=self.deterministic, name="mixer")
        return x_BxTxD + mixer(nn.RMSNorm()(x_BxTxD))


def memory_of(face, params, held, x_BxTxD):
    """The dictionary that a layer writes into "memory", from the function."""
    aux = face.apply(params, held, x_BxTxD, cfg=face.cfg)[1]
    return {"stats": faces.named(aux.stats), "sums": faces.named(aux.sums)}


def test_fresh_layers_hold_the_functions_parameters_under_their_names(face):
    # Given a fresh layer: the stream "params" gives the key
    module = face.linen(face.cfg)
    variables = module.init(jax.random.key(3), batch()[0])
    key = nn.apply(lambda module: module.make_rng("params"), module)({}, rngs={"params": jax.random.key(3)})

    # Then there is one entry for each of the function's leaves, with its name, and no other collection than the state
    want = face.own(face.cfg.init(key))
    same(variables, linen_variables(face, want, face.cfg.init_state()))
    functional = {".".join(entry.name for entry in path) for path, _ in jax.tree_util.tree_leaves_with_path(want)}
    assert set(traverse_util.flatten_dict(variables["params"], sep=".")) == functional
    assert set(variables) == {"params", "consolidation"} if face.cfg.consolidates else {"params"}

    # And shapes of another configuration are refused
    name = next(iter(variables["params"]))
    wrong = {**variables, "params": {**variables["params"], name: jax.tree.map(lambda a: a[None], want[0])}}
    with pytest.raises(errors.ScopeParamShapeError):
        module.apply(wrong, batch()[0])


def test_optimizer_masks_by_path_reach_single_parameters():
    # Given weight decay for the router of the block alone, by path
    params = Net().init(jax.random.key(0), batch()[0])["params"]
    chosen = traverse_util.path_aware_map(lambda path, _: path[:2] == ("CRAM_0", "router"), params)
    decay = optax.masked(optax.add_decayed_weights(1.0), chosen)

    # Then the router's parameters are decayed, and no others
    change, _ = decay.update(jax.tree.map(jnp.zeros_like, params), decay.init(params), params)
    moved = {path for path, leaf in traverse_util.flatten_dict(change, sep="/").items() if np.any(leaf)}
    assert moved == {"CRAM_0/router/in_DxF"}, "its bias and its output weights begin at 0"


def test_rematerialised_layers_have_the_functions_gradients():
    # Given a network of a layer whose activations are computed again in the backward pass
    x_BxTxD, gap_BxT, segment_BxT = batch()

    class Outer(nn.Module):
        def setup(self):
            self.layer = nn.remat(faces.CRAM)(CRAM.cfg, deterministic=False)

        def __call__(self, *arrays, **more):
            return self.layer(*arrays, **more)

        def key(self):
            return self.layer.make_rng("route")

    variables = {name: {"layer": tree} for name, tree in linen_variables(CRAM).items()}
    key = Outer().apply(variables, rngs=ROUTE, method="key")

    @jax.jit
    def gradient(params):
        def loss(params):
            held = {**variables, "params": params}
            y_BxTxD, memory = linen_call(Outer(), held, x_BxTxD, gap_BxT, segment_BxT=segment_BxT, rngs=ROUTE)
            return jnp.mean(y_BxTxD**2) + faces.memory_loss(memory, PRICE)[0], (y_BxTxD, memory["layer"])

        return jax.grad(loss, has_aux=True)(params)

    got, (y_BxTxD, memory) = gradient(variables["params"])

    # Then gradients, tokens and the collection "memory" are the function's
    want = function_step(CRAM, parameters(CRAM), state(CRAM), key)
    near(faces.unnamed(want.params, got["layer"]), want.gradient)
    near((y_BxTxD, memory), (want.y_BxTxD, dict(zip(("stats", "sums"), map(faces.named, want.memory), strict=True))))


def test_deterministic_or_train_decides_what_is_drawn():
    # Given a layer that trains by its attribute
    x_BxTxD, variables = batch()[0], linen_variables(CRAM)
    trains, evaluates = faces.CRAM(CRAM.cfg, deterministic=False), faces.CRAM(CRAM.cfg)
    trained = trains.apply(variables, x_BxTxD, rngs=ROUTE)

    # Then an argument goes before the attribute
    same(evaluates.apply(variables, x_BxTxD, train=True, rngs=ROUTE), trained)
    same(trains.apply(variables, x_BxTxD, train=False), evaluates.apply(variables, x_BxTxD))
    assert not np.allclose(trained, evaluates.apply(variables, x_BxTxD, rngs=ROUTE))
    # The same seed gives the same noise, another seed other noise
    same(trains.apply(variables, x_BxTxD, rngs=ROUTE), trained)
    assert not np.allclose(trains.apply(variables, x_BxTxD, rngs={"route": jax.random.key(9)}), trained)


def test_training_without_a_stream_is_refused_where_a_layer_draws(face):
    module, variables = face.linen(face.cfg, deterministic=False), linen_variables(face)
    if face.cfg.draws:
        with pytest.raises(errors.InvalidRngError, match="route"):
            module.apply(variables, batch()[0])
    else:
        same(module.apply(variables, batch()[0]), face.linen(face.cfg).apply(variables, batch()[0]))


def test_memory_is_written_where_it_is_mutable(face):
    module, variables = face.linen(face.cfg), linen_variables(face)
    y_BxTxD, seen = module.apply(variables, batch()[0], mutable=["memory", "consolidation"])
    want = memory_of(face, parameters(face), state(face), batch()[0])
    if face.cfg.consolidates:
        same(seen, {"memory": want, "consolidation": variables["consolidation"]})
    else:
        assert seen == {}
    same(module.apply(variables, batch()[0]), y_BxTxD)


def test_layers_nest_in_a_network():
    # Given a network with two CRAM layers, fresh: every token attends
    net, x_BxTxD = Net(), batch()[0]
    variables = net.init(jax.random.key(0), x_BxTxD)
    fresh, params = CRAM.cfg.init_state(), variables["params"]
    held = {name: faces.unnamed(parameters(FACES[kind]), params[name])
            for name, kind in (("CRAM_0", "CRAM"), ("mixer", "CRAMMixer"))}  # fmt: skip

    # When it runs
    y_BxTxD, memory = linen_call(net, variables, x_BxTxD)

    # Then it is one function after the other, bit for bit (the same operations, not compiled together)
    read_BxTxD = nn.Dense(D).apply({"params": params["Dense_0"]}, x_BxTxD)
    first_BxTxD, _ = CRAM.apply(held["CRAM_0"], fresh, read_BxTxD, cfg=CRAM.cfg)
    normed_BxTxD = nn.RMSNorm().apply({"params": params["RMSNorm_0"]}, first_BxTxD)
    mixed_BxTxD, _ = FACES["CRAMMixer"].apply(held["mixer"], fresh, normed_BxTxD, cfg=CRAM.cfg)
    same(y_BxTxD, first_BxTxD + mixed_BxTxD)
    same(memory["CRAM_0"], memory_of(CRAM, held["CRAM_0"], fresh, read_BxTxD))
    same(memory["mixer"], memory_of(FACES["CRAMMixer"], held["mixer"], fresh, normed_BxTxD))
    assert memory["mixer"]["sums"]["routed"] == x_BxTxD.shape[0] * x_BxTxD.shape[1]

    # The loss is that of both layers
    sums = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[memory[name]["sums"] for name in ("CRAM_0", "mixer")])
    cfg = objective.ObjectiveConfig(distillation=3.0)
    want = objective.memory_loss(objective.MemorySums(**sums), PRICE, cfg)
    near(faces.memory_loss(memory, PRICE, cfg), want)
    assert faces.memory_loss(memory, PRICE)[0] != want[0]
    near(faces.attention_utilisation(memory), jnp.sum(sums["retrieved"]) / jnp.sum(sums["tokens"]))

    # And only update and release change the running state, each layer's to the function's
    before = variables["consolidation"]
    after = faces.release(faces.update(before, memory))
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for name in ("CRAM_0", "mixer"):
        stats = consolidation.ConsolidationStats(**memory[name]["stats"])
        same(after[name], faces.named(consolidation.release(consolidation.update(fresh, stats))))
    same(faces.release(before, when=False), before)


def test_models_without_memories_are_refused_where_memories_are_needed():
    _, seen = faces.Attention(ATTENTION.cfg).apply(linen_variables(ATTENTION), batch()[0], mutable=["memory"])
    for asked in (partial(faces.memory_loss, price=PRICE), faces.attention_utilisation):
        with pytest.raises(ValueError, match=r'call a model that has such layers, with mutable=\["memory"\]; got \[\]'):
            asked(seen.get("memory", {}))


def test_statistics_add_over_a_mapped_axis():
    # Given the statistics of two devices, one of which retrieved nothing
    total_2xD = jax.random.normal(jax.random.key(2), (2, D)) * jnp.array([[1.0], [0.0]])
    parts = consolidation.ConsolidationStats(total_2xD, jnp.array([30.0, 0.0]), jnp.array([5.0, 0.0]))
    want = faces.named(consolidation.update(state(CRAM), jax.tree.map(lambda leaf: leaf.sum(0), parts)))

    # When each updates over the axis
    held = {"CRAM_0": linen_variables(CRAM)["consolidation"]}
    update = lambda stats: faces.update(held, {"CRAM_0": {"stats": faces.named(stats)}}, "devices")
    states = jax.vmap(update, axis_name="devices")(parts)

    # Then both have the state of the whole batch
    for device in range(2):
        near(jax.tree.map(lambda leaf, device=device: leaf[device], states["CRAM_0"]), want)


def test_a_stream_may_start_without_a_cache(face):
    # Given no cache, as where a user begins to generate
    x_BxD, module, variables = batch()[0][:, 0], face.linen(face.cfg), linen_variables(face)
    empty = jax.jit(partial(module.init, method="step"))(jax.random.key(0), x_BxD)["cache"]
    same(empty["stream"], face.cfg.init_cache(B))

    # Then the first step is that from an empty one; a cache that may not change is refused
    if face in (CRAM, FACES["Mamba2Mixer"]):
        step = jax.jit(partial(module.apply, method="step", mutable=["cache"]))
        near(step({**variables, "cache": empty}, x_BxD), step(variables, x_BxD))
    with pytest.raises(errors.ModifyScopeVariableError, match='collection "cache" is immutable'):
        jax.eval_shape(partial(module.apply, method="step"), variables, x_BxD)
