"""Every layer keeps the contract of `functional/layer.py`, and what is built on layers names none of them."""

import ast
import dataclasses
import importlib
import pkgutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_cases import EACH, LAYERS, B, D, T, layer, sequence, streamed, whole

import cram_jax
from cram_jax import functional
from cram_jax.functional import layer as contract
from cram_jax.functional.layer import Layer, LayerAux, Routes
from cram_jax.functional.objective import MemorySums
from cram_jax.models.stack import Stack

KEY = jax.random.key(3)
MODULES = {type(cfg).__module__: sys.modules[type(cfg).__module__] for cfg in LAYERS.values()}
FUNCTIONS = ("init", "init_state", "init_cache", "apply", "step")
FAMILIES = ("cram", "posterior cram", "attention", "mamba2", "palimpsa", "seqboat")  # the others share their code
# What routes have by name; layers that consolidate have all of it.
ROUTES = {name: bool for name in (*Routes._fields, "retrieved_BxT")} | dict.fromkeys(
    ("quality_BxT", "familiarity_BxT"), jnp.float32
)


def like(tree):
    """Shapes and dtypes."""
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def test_every_layer_there_is_is_listed():
    for module in pkgutil.iter_modules(functional.__path__, f"{functional.__name__}."):
        importlib.import_module(module.name)
    ours = {cls for cls in Layer.__subclasses__() if cls.__module__.startswith(functional.__name__)}
    assert ours == {type(cfg) for cfg in LAYERS.values()}
    for module in MODULES.values():
        assert all(getattr(module, name) is getattr(contract, name) for name in FUNCTIONS), module.__name__


@EACH
def test_a_configuration_is_static_and_frozen(cfg):
    assert jax.tree.leaves(cfg) == [] and hash(cfg) == hash(dataclasses.replace(cfg)) and cfg.D == D
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.D = 9


@EACH
def test_streaming_equals_the_whole_sequence(x64, cfg):
    arrays = *layer(cfg), *sequence(), KEY
    y_BxTxD, aux = whole(cfg)(*arrays)
    streamed_BxTxD, seen = streamed(cfg)(*arrays)
    assert y_BxTxD.dtype == jnp.float64
    # float64: what differs is the order of sums
    np.testing.assert_allclose(streamed_BxTxD, y_BxTxD, atol=1e-10, rtol=0)
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10, rtol=0)
    jax.tree.map(near, seen.routes, aux.routes)


@EACH
def test_no_token_sees_the_future_or_another_sequence(cfg):
    params, state = layer(cfg)
    x_BxTxD, gap_BxT = sequence()
    at = 11

    @jax.jit
    def run(x_BxTxD):
        def mine(x_BxTxD):
            y_BxTxD, aux = contract.apply(params, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT)
            return jnp.sum(y_BxTxD[0, at] ** 2), (y_BxTxD, aux.routes)

        return jax.grad(mine, has_aux=True)(x_BxTxD)

    gradient_BxTxD, (y_BxTxD, routes) = run(x_BxTxD)
    np.testing.assert_array_equal(gradient_BxTxD[0, at + 1 :], 0)
    np.testing.assert_array_equal(gradient_BxTxD[1], 0)
    assert np.any(gradient_BxTxD[0, at] != 0) and np.any(gradient_BxTxD[0, :at] != 0)
    # Nor do choices, which have no gradient
    for other, same in (
        (x_BxTxD.at[:, at:].add(1.0), np.s_[:, :at]),
        (x_BxTxD.at[1].add(1.0), np.s_[:1]),
    ):
        _, (changed_BxTxD, changed) = run(other)
        assert np.any(changed_BxTxD != y_BxTxD)
        equal = lambda a, b, same=same: np.testing.assert_array_equal(a[same], b[same])
        jax.tree.map(equal, (changed_BxTxD, changed), (y_BxTxD, routes))


@EACH
def test_packed_sequences_equal_separate_ones(x64, cfg):
    params, state = layer(cfg)
    x_BxTxD, gap_BxT = sequence()
    run = jax.jit(lambda x, g, s: contract.apply(params, state, x, cfg=cfg, gap_BxT=g, segment_BxT=s)[0])
    cuts = (0, 2, 3, 14, T)  # one part is shorter than any convolution
    segment_T = jnp.searchsorted(jnp.array(cuts[1:-1]), jnp.arange(T), side="right")
    number_BxT = jnp.broadcast_to(segment_T % 2, (B, T))  # a part may have the number of one that ended before
    packed_BxTxD = run(x_BxTxD, gap_BxT, number_BxT)
    for start, end in zip(cuts, cuts[1:], strict=False):
        # What follows the part changes nothing, so all parts have one shape
        alone_BxTxD = run(jnp.roll(x_BxTxD, -start, axis=1), jnp.roll(gap_BxT, -start, axis=1), None)
        # float64; rotary angles are those of other positions
        np.testing.assert_allclose(packed_BxTxD[:, start:end], alone_BxTxD[:, : end - start], atol=1e-10, rtol=0)
    # A token that is not finite spoils nothing before it, in other sequences or in other parts
    at = 6
    spoilt_BxTxD = run(x_BxTxD.at[1, at].set(jnp.nan), gap_BxT, number_BxT)
    assert np.all(np.isnan(spoilt_BxTxD[1, at]))
    unseen_T = (np.arange(T) < at) | (segment_T != segment_T[at])
    np.testing.assert_array_equal(spoilt_BxTxD[0], packed_BxTxD[0])
    np.testing.assert_array_equal(spoilt_BxTxD[1, unseen_T], packed_BxTxD[1, unseen_T])


@pytest.mark.parametrize("cfg", [LAYERS[name] for name in FAMILIES], ids=FAMILIES)
def test_no_sequences_or_no_tokens_are_no_error(cfg):
    params, state = layer(cfg)

    @jax.jit
    def run(params, x_BxTxD):
        def loss(params):
            y_BxTxD, aux = contract.apply(params, state, x_BxTxD, cfg=cfg)
            return jnp.sum(y_BxTxD), (y_BxTxD, cfg.update(state, aux.stats))

        return jax.grad(loss, has_aux=True)(params)

    for shape in ((0, T, D), (B, 0, D)):
        gradient, (y_BxTxD, after) = run(params, jnp.zeros(shape))
        assert y_BxTxD.shape == shape and all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, state)  # nothing was learned
    y_BxD, cache, _ = jax.jit(lambda x_BxD: contract.step(params, state, cfg.init_cache(0), x_BxD, cfg=cfg))(
        jnp.zeros((0, D))
    )
    assert y_BxD.shape == (0, D) and like(cache) == like(cfg.init_cache(0))


@EACH
def test_random_numbers_change_only_what_draws_them(cfg):
    params, state = layer(cfg)
    x_BxTxD, gap_BxT = sequence()
    run = whole(cfg, train=True)
    first, again, other = (run(params, state, x_BxTxD, gap_BxT, jax.random.key(seed)) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.array_equal(first[0], other[0]) != cfg.draws


@EACH
def test_reports_have_the_parts_that_the_layer_says(cfg):
    params, state = layer(cfg)
    x_BxTxD, _ = sequence()
    cache = cfg.init_cache(B)
    named = lambda aux: {name: getattr(aux.routes, name) for name in ROUTES if hasattr(aux.routes, name)}

    def both(x_BxTxD):
        _, aux = contract.apply(params, state, x_BxTxD, cfg=cfg)
        _, after, seen = contract.step(params, state, cache, x_BxTxD[:, 0], cfg=cfg)
        return aux, named(aux), seen, named(seen), after

    aux, of_apply, seen, of_step, after = jax.eval_shape(both, x_BxTxD)
    assert like(after) == like(cache)
    assert isinstance(aux, LayerAux) and isinstance(seen, LayerAux) and seen.sums == ()
    assert bool(aux.stats) == bool(aux.sums) == cfg.consolidates
    # A layer that learns from a stream has what a token teaches, in the form of what a sequence teaches
    assert seen.stats == () or jax.tree.structure(seen.stats) == jax.tree.structure(aux.stats)
    assert not cfg.consolidates or (isinstance(aux.sums, MemorySums) and all(one.shape == () for one in aux.sums))
    for routes, shape in ((of_apply, (B, T)), (of_step, (B,))):
        assert set(routes) == (set(ROUTES) if cfg.consolidates else set(Routes._fields) if aux.routes else set())
        assert all(one.shape == shape and one.dtype == ROUTES[name] for name, one in routes.items())


@EACH
def test_update_and_release_keep_what_the_state_is(cfg):
    params, _ = layer(cfg)
    state = cfg.init_state()
    _, aux = whole(cfg)(params, state, *sequence(), None)
    after = cfg.update(cfg.release(state), aux.stats)
    assert like(after) == like(state)
    moved = any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (after, state)), strict=True))
    assert moved == cfg.consolidates
    if aux.routes and cfg.consolidates:  # before the release every token attends
        assert np.all(aux.routes.chose_BxT) and np.all(aux.routes.attended_BxT)
    jax.tree.map(np.testing.assert_array_equal, cfg.release(state, False), state)
    # Statistics of a mapped axis are added up first
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), aux.stats)
    double = cfg.update(state, jax.tree.map(lambda leaf: 2 * leaf, aux.stats))
    summed = jax.vmap(lambda stats: cfg.update(state, stats, "devices"), axis_name="devices", axis_size=2)(twice)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, jnp.stack([b, b]), rtol=1e-6), summed, double)


@pytest.mark.parametrize("cfg", [LAYERS[name] for name in FAMILIES], ids=FAMILIES)
def test_half_precision_goes_through_a_stack_and_its_sums_are_exact(cfg):
    # Given parameters and tokens in bfloat16, in which a count of 257 does not exist
    half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16) if a.dtype == jnp.float32 else a, tree)
    stack = Stack((cfg,), 2)
    params, state = half(stack.init(KEY)), stack.release(stack.init_state())
    x_BxTxD, gap_BxT = half(jax.random.normal(KEY, (9, 57, cfg.D))), jnp.ones((9, 57), jnp.bfloat16)

    @jax.jit
    def run(params, x_BxTxD):
        def loss(params):
            y_BxTxD, aux = stack.apply(params, state, x_BxTxD, gap_BxT=gap_BxT, key=KEY, train=True)
            return jnp.sum(y_BxTxD.astype(jnp.float32)), (y_BxTxD, aux)

        gradient, (y_BxTxD, aux) = jax.grad(loss, has_aux=True)(params)
        return gradient, y_BxTxD, aux, stack.rollout(params, state, stack.init_cache(9), x_BxTxD, gap_BxT=gap_BxT)[0]

    gradient, y_BxTxD, aux, rolled_BxTxD = run(params, x_BxTxD)
    # Then tokens and gradients keep their dtype, and nothing overflows
    assert y_BxTxD.dtype == rolled_BxTxD.dtype == jnp.bfloat16 and like(gradient) == like(params)
    floats = [leaf for leaf in jax.tree.leaves((gradient, y_BxTxD, aux, rolled_BxTxD)) if leaf.dtype != bool]
    assert all(np.all(np.isfinite(leaf.astype(jnp.float32))) for leaf in floats)
    # ... and sums are float32, and count every token
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((aux[0].stats, aux[0].sums)))
    if aux[0].sums:
        assert aux[0].sums.tokens.tolist() == [9 * 57] * 2
        for name, marks in {"attended": aux[0].routes.attended_BxT, "retrieved": aux[0].routes.retrieved_BxT}.items():
            assert getattr(aux[0].sums, name).tolist() == np.sum(marks, axis=(1, 2)).tolist()


@EACH
def test_looking_at_more_changes_no_answer(cfg):
    if cfg.audited() == cfg:
        assert not cfg.consolidates and cfg.attentive(T) == cfg
        return
    arrays = *layer(cfg), *sequence(), KEY
    y_BxTxD, plain = whole(cfg)(*arrays)
    audited_BxTxD, audited = whole(cfg.audited())(*arrays)
    np.testing.assert_array_equal(audited_BxTxD, y_BxTxD)
    np.testing.assert_array_equal(audited.routes.chose_BxT, plain.routes.chose_BxT)
    assert np.all(audited.routes.attended_BxT) and not np.all(plain.routes.attended_BxT)
    # With all events in reach, every token retrieves, the first one its own event if a token may see its own
    _, attentive = whole(cfg.attentive(T))(*arrays)
    own = cfg is not LAYERS["posterior cram"]
    assert np.all(attentive.routes.kept_BxT) and np.all(attentive.routes.retrieved_BxT[:, 0] == own)
    assert np.all(attentive.routes.retrieved_BxT[:, 1:]) and not np.all(audited.routes.kept_BxT)
    assert attentive.sums.retrieved == B * (T - (not own))


def filled(cfg: Layer, attended: bool):
    """Routes in which all tokens attend and are kept, or none; () for a layer without."""
    params, state = jax.eval_shape(lambda: (cfg.init(KEY), cfg.init_state()))
    apply = lambda p, s, x: contract.apply(p, s, x, cfg=cfg)[1].routes
    routes = jax.eval_shape(apply, params, state, jax.ShapeDtypeStruct((B, T, D), jnp.float32))
    return jax.tree.map(lambda leaf: jnp.full(leaf.shape, attended, leaf.dtype), routes)


@EACH
def test_operations_are_those_of_the_tokens_and_routes(cfg):
    count = lambda routes, train, shape=(B, T): [float(x) for x in cfg.operations(shape, routes, train)]
    routes = filled(cfg, True)
    attention, total = count(routes, False)
    assert 0 <= attention < total
    back = count(routes, True)
    # Look-ups and the solution of a memory outside the parameters have no backward pass
    looked = [float(cfg.lookups((B, T), r)) for r in (routes, filled(cfg, False))]
    assert back[0] >= 3 * attention and 3 * (total - looked[0]) <= back[1] - looked[0] <= 5 * (total - looked[0])
    # Twice the sequences are twice the work
    doubled = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), routes)
    np.testing.assert_allclose(count(doubled, False, (2 * B, T)), [2 * attention, 2 * total], rtol=1e-6)
    if routes:
        none, idle = count(filled(cfg, False), False)
        assert none == 0 < attention and 0 < idle - looked[1] == pytest.approx(total - attention - looked[0], rel=1e-6)


WRONG = [
    (lambda x, g: (x[..., :-1], g), rf"x_BxTxD must have shape \(batch, time, {D}\) for a layer of width D={D}"),
    (lambda x, g: (x[0], g), rf"x_BxTxD must have shape \(batch, time, {D}\)"),
    (lambda x, g: (x, g[:, :-1]), rf"gap_BxT has shape \({B}, {T - 1}\), but x_BxTxD has batch and time \({B}, {T}\)"),
    (lambda x, g: (x.astype(int), g), "x_BxTxD must be floating point, got int32; embed token ids first"),
    (lambda x, g: (x, g.at[1, 7].set(jnp.nan)), "at least 0, got nan at sequence 1, position 7"),
    (lambda x, g: (x, g.at[1, 3].set(-1.0)), r"at least 0, got -1.0 at sequence 1, position 3"),
]


@EACH
def test_wrong_input_is_named(cfg, unchecked):
    for change, message in WRONG:
        x_BxTxD, gap_BxT = change(*sequence())
        with pytest.raises((ValueError, TypeError), match=message):
            contract.apply((), (), x_BxTxD, cfg=cfg, gap_BxT=gap_BxT)
    x_BxTxD, gap_BxT = sequence()
    with pytest.raises(ValueError, match=rf"segment_BxT has shape \({T},\)"):
        contract.apply((), (), x_BxTxD, cfg=cfg, segment_BxT=jnp.zeros(T, int))
    with pytest.raises(ValueError, match="at least 0, got -2.0 at sequence 1, position 0"):
        contract.step((), (), (), x_BxTxD[:, 0], cfg=cfg, gap_B=jnp.array([1.0, -2.0]))


# `experiment.py` builds networks from settings, and moves to the experiments.
BUILT_ON_LAYERS = [
    *(path for path in Path(cram_jax.__file__).parent.glob("training/*.py") if path.name != "experiment.py"),
    Path(cram_jax.__file__).parent / "models" / "stack.py",
    Path(cram_jax.__file__).parent / "analysis" / "accounting.py",
]


@pytest.mark.parametrize("path", BUILT_ON_LAYERS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_built_on_layers_names_none(path):
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    assert not imported & set(MODULES)
    types = {name for module in MODULES.values() for name in module.__all__} - set(FUNCTIONS)
    assert {type(cfg).__name__ for cfg in LAYERS.values()} <= types
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not {name.rsplit(".")[-1] for name in imported} & types and not used & types
