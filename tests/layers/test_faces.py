"""The function, its NNX face and its Linen face are one layer: every face passes the same battery."""

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
    RATE,
    B,
    Face,
    Step,
    batch,
    function_step,
    linen_call,
    linen_key,
    linen_variables,
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

from cram_jax.layers import linen as linen_faces
from cram_jax.layers import nnx as nnx_faces

# What has to be compiled runs for every layer and for one mixer: how a face calls a mixer does not depend on the layer.
COMPILED = ("CRAM", "CRAMMixer", "PosteriorCRAM", "Attention", "Mamba2", "Palimpsa", "SeqBoat")


def nnx_steps(face: Face, count: int) -> tuple[list[Step], list]:
    """Training steps, and the key of each."""
    x_BxTxD, gap_BxT, segment_BxT = batch()
    module = nnx_module(face)
    module.train()
    optimizer = nnx.Optimizer(module, optax.sgd(RATE), wrt=nnx.Param)

    @nnx.jit
    def train(module, optimizer):
        def loss(module):
            y_BxTxD = module(x_BxTxD, gap_BxT, segment_BxT=segment_BxT)
            memory = nnx_faces.memory_loss(module, PRICE)[0] if face.cfg.consolidates else 0.0
            return jnp.mean(y_BxTxD**2) + memory, y_BxTxD

        (total, y_BxTxD), gradient = nnx.value_and_grad(loss, has_aux=True)(module)
        optimizer.update(module, gradient)
        nnx_faces.update(module)
        return total, y_BxTxD, gradient["weights"]

    steps = []
    for _ in range(count):
        total, y_BxTxD, gradient = train(module, optimizer)
        memory, weights, held = values((module.memory, module.weights, module.state))
        gradient = linen_faces.unnamed(weights, nnx.to_pure_dict(gradient))
        steps.append(Step(total, y_BxTxD, memory, gradient, weights, held))
    twin = nnx_module(face)
    return steps, [twin.noise() if face.cfg.draws else None for _ in range(count)]


def linen_steps(face: Face, count: int) -> tuple[list[Step], list]:
    """Training steps, and the key of each."""
    x_BxTxD, gap_BxT, segment_BxT = batch()
    module, variables = face.linen(face.cfg, deterministic=False), linen_variables(face)
    rngs = {"route": jax.random.key(NOISE)}
    key = linen_key(module, variables) if face.cfg.draws else None

    @jax.jit
    def train(variables):
        def loss(params):
            y_BxTxD, seen = module.apply(
                {**variables, "params": params},
                x_BxTxD,
                gap_BxT,
                segment_BxT=segment_BxT,
                rngs=rngs,
                mutable=["memory"],
            )
            memory = linen_faces.memory_loss(seen["memory"], PRICE)[0] if face.cfg.consolidates else 0.0
            return jnp.mean(y_BxTxD**2) + memory, (y_BxTxD, seen)

        (total, (y_BxTxD, seen)), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        after = {"params": jax.tree.map(lambda p, g: p - RATE * g, variables["params"], gradient)}
        if face.cfg.consolidates:
            after["consolidation"] = linen_faces.update(variables["consolidation"], seen["memory"])
        return total, y_BxTxD, seen, gradient, after

    steps, tree = [], partial(linen_faces.unnamed, parameters(face))
    for _ in range(count):
        total, y_BxTxD, seen, gradient, variables = train(variables)
        memory, held = ((), ()), ()
        if face.cfg.consolidates:
            found, like = seen["memory"], nnx_module(face)
            memory = tuple(map(linen_faces.unnamed, like.memory, (found["stats"], found["sums"])))
            held = linen_faces.unnamed(state(face), variables["consolidation"])
        steps.append(Step(total, y_BxTxD, memory, tree(gradient), tree(variables["params"]), held))
    return steps, [key] * count


@pytest.mark.parametrize("steps_of", [nnx_steps, linen_steps])
@pytest.mark.parametrize("name", COMPILED)
def test_a_training_is_that_of_the_function(name, steps_of):
    # Given the same parameters, state and noise
    face = FACES[name]

    # When two steps are taken under jit: gradients of Eq 8, then the state's update
    got, keys = steps_of(face, 2)

    # Then loss, tokens, sums, gradients, parameters and states agree at each
    params, held = parameters(face), state(face)
    for step, key in zip(got, keys, strict=True):
        want = function_step(face, params, held, key)
        near(step, want)
        params, held = step.params, step.state


def test_an_evaluation_is_the_function_bit_for_bit(face):
    x_BxTxD, gap_BxT, segment_BxT = batch()
    apply = partial(
        face.apply, parameters(face), state(face), x_BxTxD, cfg=face.cfg, gap_BxT=gap_BxT, segment_BxT=segment_BxT
    )
    for key in [None, jax.random.key(NOISE)] if face.cfg.draws else [None]:  # a key switches audits on
        # The same operations one by one, not compiled together: no reason for a bit to differ.
        module, want = nnx_module(face), apply(key=key)
        more = dict(segment_BxT=segment_BxT, rngs=key)
        same(module.with_aux(x_BxTxD, gap_BxT, **more), want)
        same(module(x_BxTxD, gap_BxT, **more), want[0])
        same(values(module.memory), (want[1].stats, want[1].sums))

        module, variables = face.linen(face.cfg), linen_variables(face)
        more = dict(segment_BxT=segment_BxT, rngs={} if key is None else {"route": key})
        want = apply(key=None if key is None else linen_key(module, variables))
        same(module.apply(variables, x_BxTxD, gap_BxT, method="with_aux", **more), want)
        same(module.apply(variables, x_BxTxD, gap_BxT, **more), want[0])

        # And the battery sees every route, and audits
        routes = want[1].routes
        if face.cfg.consolidates:
            assert set(np.unique(routes.choice_BxT)) == {0, 1, 2}
            assert np.any(routes.attended_BxT & ~routes.chose_BxT) == (key is not None)
        elif routes:
            assert 0 < np.mean(routes.chose_BxT) < 1


def stream_nnx(face: Face, x_BxTxD, gap_BxT):
    module, key = nnx_module(face), jax.random.key(NOISE)

    @nnx.jit
    def streamed(module):
        def one(cache, now):
            y_BxD, cache, aux = module.step(cache, *now, rngs=key)
            return cache, (y_BxD, aux)

        return jax.lax.scan(one, module.init_cache(B), (x_BxTxD.swapaxes(0, 1), gap_BxT.T))[1]

    return streamed(module), key


def stream_linen(face: Face, x_BxTxD, gap_BxT):
    module, variables, rngs = face.linen(face.cfg), linen_variables(face), {"route": jax.random.key(NOISE)}
    made = jax.eval_shape(partial(module.init, method="step"), jax.random.key(0), x_BxTxD[:, 0])["cache"]
    empty = {"stream": face.cfg.init_cache(B)}
    assert jax.tree.structure(made) == jax.tree.structure(empty)

    @jax.jit
    def streamed(variables):
        def one(cache, now):
            out, after = module.apply({**variables, "cache": cache}, *now, method="step", mutable=["cache"], rngs=rngs)
            return after["cache"], out

        return jax.lax.scan(one, empty, (x_BxTxD.swapaxes(0, 1), gap_BxT.T))[1]

    return streamed(variables), linen_key(module, variables)


@pytest.mark.parametrize("stream", [stream_nnx, stream_linen])
@pytest.mark.parametrize("name", COMPILED)
def test_a_stream_equals_the_whole_sequence(name, stream):
    # Given a layer in evaluation, audits on, whose buffer (3) is shorter than the sequence (12)
    face, (x_BxTxD, gap_BxT, _) = FACES[name], batch()

    # When it reads token by token
    (y_TxBxD, aux), key = stream(face, x_BxTxD, gap_BxT)

    # Then tokens and, where the layer routes, routes are those of the whole sequence
    more = dict(cfg=face.cfg, gap_BxT=gap_BxT, key=key if face.cfg.draws else None)
    y_BxTxD, whole = face.apply(parameters(face), state(face), x_BxTxD, **more)
    near(y_TxBxD.swapaxes(0, 1), y_BxTxD)
    near(jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), aux.routes), whole.routes)
    if face.cfg.consolidates:
        assert np.any(whole.routes.attended_BxT & ~whole.routes.chose_BxT), "the battery should see an audit"


@pytest.mark.parametrize(
    "name", ["CRAM", "CRAMMixer", "PosteriorCRAM", "AttentionMixer", "Mamba2", "PalimpsaMixer", "SeqBoat"]
)
def test_bfloat16_tokens_stay_bfloat16(name):
    # Given tokens in bfloat16, as between layers of a network that computes in it
    face, x_BxTxD = FACES[name], batch()[0].astype(jnp.bfloat16)
    module, rngs = nnx_module(face), {"route": jax.random.key(0)}

    # Then tokens stay so, whole or streamed, and what NNX remembers of them stays in float32
    y_BxTxD = nnx.jit(lambda module: module(x_BxTxD, train=True))(module)
    assert y_BxTxD.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(y_BxTxD)))
    assert not {leaf.dtype for leaf in jax.tree.leaves(values(module.memory))} - {jnp.dtype(jnp.float32)}
    linen, variables = partial(face.linen(face.cfg, deterministic=False).apply, rngs=rngs), linen_variables(face)
    assert jax.eval_shape(linen, variables, x_BxTxD).dtype == jnp.bfloat16
    (y_BxD, _), _ = jax.eval_shape(partial(linen, method="step", mutable=["cache"]), variables, x_BxTxD[:, 0])
    assert y_BxD.dtype == jnp.bfloat16
    y_BxD, *_ = nnx.eval_shape(lambda module: module.step(module.init_cache(B), x_BxTxD[:, 0]), module)
    assert y_BxD.dtype == jnp.bfloat16


def test_each_row_of_a_batch_has_a_memory_of_its_own():
    # Given a layer for B streams, in both faces, released, with one set of parameters
    face, (x_BxTxD, gap_BxT, _) = FACES["PosteriorCRAM"], batch()
    held = face.cfg.for_streams(state(face), B)
    module = face.nnx(face.cfg, rngs=nnx.Rngs(params=0), streams=B)
    put(module.weights, parameters(face))
    put(module.state, held)
    linen = face.linen(face.cfg, streams=B)
    variables = linen_variables(face, held=held)
    fresh = jax.eval_shape(linen.init, jax.random.key(0), x_BxTxD)["consolidation"]
    assert paths(fresh) == paths(variables["consolidation"])

    # When a batch is read and consolidated, then both have the function's memories
    _, aux = face.apply(parameters(face), held, x_BxTxD, cfg=face.cfg, gap_BxT=gap_BxT)
    want = face.cfg.update(held, aux.stats)
    assert np.all(np.any(want.memory.up_SxFxD, axis=(1, 2, 3))) and want.memory.ridge.shape == (
        B,
        face.cfg.semantic.blocks,
    )
    module(x_BxTxD, gap_BxT)
    nnx_faces.update(module)
    near(values(module.state), want)
    _, memory = linen_call(linen, variables, x_BxTxD, gap_BxT)
    after = linen_faces.update(variables["consolidation"], memory)
    near(linen_faces.unnamed(want, after), want)

    # and a stream that begins anew has none
    fresh_B = jnp.arange(B) == 1
    want = face.cfg.reset(want, fresh_B)
    nnx_faces.reset(module, fresh_B)
    near(values(module.state), want)
    near(linen_faces.unnamed(want, linen_faces.reset(after, fresh_B)), want)
    assert not np.any(want.memory.up_SxFxD[1]) and np.any(want.memory.up_SxFxD[0])
