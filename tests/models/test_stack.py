"""A stack keeps the contract of its layers, whatever they are and in whatever order."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import ATTENTION, LAYERS, B, D, T, moved, sequence

from cram_jax.functional import layer as contract
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.layer import LayerAux
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.models.stack import Stack, jamba_pattern

CRAM, MAMBA2, PALIMPSA, SEQBOAT = (LAYERS[name] for name in ("cram", "mamba2", "palimpsa", "seqboat"))
LESS = dataclasses.replace(CRAM, F=4)  # another layer with a memory of its own
MIXED = Stack((CRAM, ATTENTION, MAMBA2, SEQBOAT), 2)
JAMBA = Stack(jamba_pattern(PALIMPSA, ATTENTION, 2, 1))
EACH = pytest.mark.parametrize("stack", [MIXED, JAMBA], ids=["four layers twice", "jamba"])
KEY = jax.random.key(3)


def network(stack: Stack):
    """(parameters, states), the routers released."""
    params = jax.jit(lambda key: moved(stack.init(key), repeats=1))(jax.random.key(0))
    return params, stack.release(stack.init_state())


def numbered(stack: Stack, trees: tuple):
    """(configuration, tree) of each layer, in the order of the network."""
    at = lambda tree, repeat: jax.tree.map(lambda leaf: leaf[repeat], tree)
    return [
        (cfg, at(tree, repeat))
        for repeat in range(stack.repeats)
        for cfg, tree in zip(stack.layers, trees, strict=True)
    ]


@functools.cache
def trained(stack: Stack):
    """(states, tokens, aux) of a batch in training."""
    params, states = network(stack)
    x_BxTxD, gap_BxT = sequence()
    run = jax.jit(lambda p, s, x: stack.apply(p, s, x, gap_BxT=gap_BxT, key=KEY, train=True))
    return states, *run(params, states, x_BxTxD)


@EACH
def test_a_stack_is_its_layers_one_after_the_other(stack):
    params, states = network(stack)
    _, stacked_BxTxD, auxes = trained(stack)
    y_BxTxD, gap_BxT = sequence()
    apply = jax.jit(functools.partial(contract.apply, train=True), static_argnames="cfg")
    layers = zip(*(numbered(stack, trees) for trees in (params, states, auxes)), strict=True)
    for number, ((cfg, own), (_, state), (_, got)) in enumerate(layers):
        # Each draws noise by its number in the network
        key = jax.random.fold_in(KEY, number)
        y_BxTxD, aux = apply(own, state, y_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=key)
        # float32: compiled together or apart, sums are fused differently, and later layers make more of it
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4), got, aux)
    np.testing.assert_allclose(stacked_BxTxD, y_BxTxD, atol=1e-4, rtol=1e-4)


@EACH
def test_streaming_equals_the_whole_sequence(x64, stack):
    params, states = network(stack)
    x_BxTxD, gap_BxT = sequence()
    whole_BxTxD, aux = jax.jit(lambda x, g: stack.apply(params, states, x, gap_BxT=g, key=KEY))(x_BxTxD, gap_BxT)

    # In two pieces of one length, the caches written in place
    stream = jax.jit(lambda c, x, g: stack.rollout(params, states, c, x, gap_BxT=g, key=KEY), donate_argnums=0)
    half = T // 2
    first_BxTxD, caches, seen = stream(stack.init_cache(B), x_BxTxD[:, :half], gap_BxT[:, :half])
    second_BxTxD, _, later = stream(caches, x_BxTxD[:, half:], gap_BxT[:, half:])
    # float64: what differs is the order of sums
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9, rtol=0)
    near(jnp.concatenate([first_BxTxD, second_BxTxD], axis=1), whole_BxTxD)
    # A streamed report has time in front, then repeats and batch
    routes = lambda auxes: tuple(aux.routes for aux in auxes)
    both = jax.tree.map(lambda *parts: jnp.moveaxis(jnp.concatenate(parts), 0, 2), routes(seen), routes(later))
    jax.tree.map(near, both, routes(aux))


def test_a_pattern_repeated_is_the_pattern_written_out():
    # Given (layer,) x 2 and (layer, layer) x 1 with the same parameters
    twice, out = Stack((CRAM,), 2), Stack((CRAM, CRAM))
    (params,), (state,) = network(twice)
    apart = tuple(jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], params) for i in range(2))
    x_BxTxD, gap_BxT = sequence()

    def run(stack, params, states):
        return jax.jit(lambda x: stack.apply(params, states, x, gap_BxT=gap_BxT, key=KEY, train=True))(x_BxTxD)

    y_BxTxD, (aux,) = run(twice, (params,), (state,))
    written_BxTxD, auxes = run(out, apart, network(out)[1])
    np.testing.assert_allclose(written_BxTxD, y_BxTxD, atol=2e-5, rtol=1e-5)
    # Then noise is the same, and that of the two layers is not
    attended_LxBxT = np.concatenate([one.routes.attended_BxT for one in auxes])
    np.testing.assert_array_equal(attended_LxBxT, aux.routes.attended_BxT)
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0], leaf[0]]), params)
    still = same._replace(feed_forward=jax.tree.map(jnp.zeros_like, same.feed_forward))
    _, (alike,) = run(twice, (still,), (state,))
    assert np.any(alike.routes.attended_BxT[0] != alike.routes.attended_BxT[1])


def test_layers_start_apart_and_caches_are_one_a_layer():
    like = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    for stack in (MIXED, JAMBA):
        params = [leaf for _, tree in numbered(stack, stack.init(KEY)) for leaf in jax.tree.leaves(tree)]
        matrices = [np.asarray(leaf).tobytes() for leaf in params if leaf.ndim > 1 and np.any(leaf)]
        assert len(set(matrices)) == len(matrices)
        caches = stack.init_cache(B)
        assert [len(place) for place in caches] == [stack.repeats] * len(stack.layers)
        assert all(
            like(one) == like(cfg.init_cache(B))
            for cfg, place in zip(stack.layers, caches, strict=True)
            for one in place
        )
        assert stack.D == D and stack.depth == len(stack.layers) * stack.repeats


def test_routes_come_in_the_order_of_the_network():
    _, _, aux = trained(MIXED)
    found = MIXED.routes(aux)
    assert [cfg for cfg, _ in found] == [CRAM, SEQBOAT, CRAM, SEQBOAT]
    own = [one.routes for _, one in numbered(MIXED, aux) if one.routes]
    for (_, got), want in zip(found, own, strict=True):
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert Stack((ATTENTION, MAMBA2), 2).routes((LayerAux(), LayerAux())) == []


def test_sums_are_those_of_the_layers_that_have_a_loss():
    _, _, aux = trained(MIXED)
    assert MIXED.consolidates and not JAMBA.consolidates
    sums = MIXED.sums(aux)
    jax.tree.map(np.testing.assert_array_equal, sums, aux[0].sums)  # of both repeats of the one place
    assert JAMBA.sums((LayerAux(),) * 4) is None
    # Two places with memories, place after place
    two = Stack((PALIMPSA, CRAM, LESS), 2)
    other = jax.tree.map(lambda leaf: leaf + 1, aux[0].sums)
    both = two.sums((LayerAux(), LayerAux(sums=aux[0].sums), LayerAux(sums=other)))
    np.testing.assert_array_equal(both.tokens, [*aux[0].sums.tokens, *other.tokens])


def test_update_and_release_reach_the_layers_that_have_a_state():
    states, _, aux = trained(MIXED)
    assert states[1:] == ((), (), ())
    after = MIXED.update(states, aux)
    assert after[1:] == ((), (), ())
    for (cfg, got), (_, state), (_, one) in zip(*(numbered(MIXED, t) for t in (after, states, aux)), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, cfg.update(state, one.stats))
    assert np.any(after[0].weight != states[0].weight)
    fresh = MIXED.init_state()
    assert not np.any(fresh[0].released) and not np.any(MIXED.release(fresh, jnp.array(False))[0].released)
    assert np.all(MIXED.release(fresh)[0].released) and fresh[0].released.shape == (2,)


def test_operations_add_up():
    _, _, aux = trained(MIXED)
    for train in (False, True):
        got = MIXED.operations(aux, (B, T), train)
        each = [cfg.operations((B, T), one.routes, train) for cfg, one in numbered(MIXED, aux)]
        np.testing.assert_allclose(got.attention, sum(one.attention for one in each), rtol=1e-6)
        np.testing.assert_allclose(got.total, sum(one.total for one in each), rtol=1e-6)


def test_patterns_say_the_place_and_a_change_reaches_every_place():
    stack = Stack((MAMBA2, CRAM))
    assert stack.patterns("taught") == tuple(f"1.{pattern}" for pattern in CRAM.taught)
    changed = MIXED.replace(lambda cfg: cfg.audited())
    assert changed.layers == (CRAM.audited(), ATTENTION, MAMBA2, SEQBOAT) and changed.repeats == 2


def test_jamba_has_seven_recurrent_layers_to_one_of_attention():
    jamba = Stack(jamba_pattern(MAMBA2, ATTENTION))
    assert jamba.layers == (*[MAMBA2] * 4, ATTENTION, *[MAMBA2] * 3) and jamba.depth == 8
    # Its attention costs what one layer's does, and all it carries that grows with the context is one layer's
    none = tuple(LayerAux() for _ in jamba.layers)
    ours = jamba.operations(none, (B, T), False)
    (attention, dense), (_, recurrent) = (cfg.operations((B, T), (), False) for cfg in (ATTENTION, MAMBA2))
    assert ours.attention == attention
    np.testing.assert_allclose(ours.total, 7 * recurrent + dense, rtol=1e-6)


def test_jambas_attention_stands_where_it_is_asked_to():
    # An attention layer of zeros passes its input on: then the order of what is left does not depend on its place
    first, last = (Stack(jamba_pattern(MAMBA2, ATTENTION, *around)) for around in ((0, 2), (2, 0)))
    one, two, attending = (cfg.init(jax.random.key(seed)) for seed, cfg in enumerate((MAMBA2, MAMBA2, ATTENTION)))
    silent = jax.tree.map(jnp.zeros_like, attending)
    x_BxTxD, _ = sequence()

    def difference(attention):
        run = lambda stack, *layers: jax.jit(lambda layers: stack.apply(layers, stack.init_state(), x_BxTxD)[0])(
            tuple(jax.tree.map(lambda leaf: leaf[None], own) for own in layers)
        )
        return np.max(np.abs(run(first, attention, one, two) - run(last, one, two, attention)))

    assert difference(silent) < 1e-5 and difference(attending) > 1e-2  # float32, compiled in another order


def test_what_cannot_be_stacked_is_refused(unchecked):
    with pytest.raises(TypeError, match=r"layers must be a tuple of configurations, such as \(CRAMConfig\(\),\), got"):
        Stack(({"D": 8},))
    with pytest.raises(TypeError, match="layers must be a tuple"):
        Stack(())
    with pytest.raises(ValueError, match=r"all layers must have one width, got D=\[64, 32\]"):
        Stack((Mamba2Config(), AttentionConfig(D=32)))
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        Stack((CRAM,), 0)


@pytest.mark.parametrize("changes", [{"remat": True}, {"rolled": True, "remat": True}])
def test_how_a_stack_is_compiled_changes_no_gradient(changes, x64):
    stack = Stack((CRAM,), 2)
    params, states = network(stack)
    x_BxTxD, gap_BxT = sequence()

    def loss(params, stack):
        y_BxTxD, aux = stack.apply(params, states, x_BxTxD, gap_BxT=gap_BxT, key=KEY, train=True)
        return jnp.sum(y_BxTxD**2), aux

    run = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9, rtol=1e-9)
    jax.tree.map(near, run(params, dataclasses.replace(stack, **changes)), run(params, stack))


def test_rolled_layers_are_compiled_once_and_remat_keeps_less():
    x_BxTxD = jnp.zeros((B, 8 * T, D))

    def program(repeats: int, **how):
        stack = Stack((MAMBA2,), repeats, **how)
        params, states = jax.eval_shape(lambda: (stack.init(KEY), stack.init_state()))
        loss = lambda params, states: jnp.sum(stack.apply(params, states, x_BxTxD, train=True)[0] ** 2)
        return jax.jit(jax.grad(loss)).lower(params, states)

    lines = lambda lowered: lowered.as_text().count("\n")
    assert lines(program(2)) < lines(program(8))
    assert lines(program(2, rolled=True)) == lines(program(8, rolled=True))
    working = lambda **how: program(8, rolled=True, **how).compile().memory_analysis().temp_size_in_bytes
    assert working(remat=True) < 0.5 * working()
