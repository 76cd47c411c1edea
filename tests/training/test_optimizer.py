"""Groups of parameters: which decay, which learn faster, which are frozen; named by patterns on their paths."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layer_cases import EACH

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.seqboat import SeqBoatConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import optimizer, step
from cram_jax.training.controller import PriceConfig
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.step import Learner, Params

CRAM = CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=8))
LEARNER = Learner(
    task=SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20)),
    model=Stack((CRAM,), 2),
    optimizer=OptimizerConfig(warmup=1, steps=20),
    price=PriceConfig(start=2, plateau=1.0),
)
DECAYED = """
    task.kind_3xD task.value_AxD task.number_2xD task.answer_DxA
    model.0.working.state_WxW model.0.working.input_DxW model.0.working.out_WxD
    model.0.episodic.q_DxHxK model.0.episodic.k_DxHxK model.0.episodic.v_DxHxV model.0.episodic.o_HxVxD
    model.0.uncertainty_DxU model.0.router.in_DxF model.0.router.out_FxD
    model.0.feed_forward.in_DxF model.0.feed_forward.out_FxD
"""


def shapes(model: Stack) -> Params:
    return jax.eval_shape(lambda: step.init(dataclasses.replace(LEARNER, model=model), 0, 10)).params


def everything(params) -> set[str]:
    """Paths of all parameters."""
    return named(jax.tree.map(lambda _: True, params))


def named(chosen) -> set[str]:
    """Paths of the parameters that are chosen."""
    paths = jax.tree.leaves(optimizer.by_path(lambda path, _: path, chosen))
    return {path for path, one in zip(paths, jax.tree.leaves(chosen), strict=True) if one}


def filled(params, seed: int = 0):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape), jnp.float32), params)


def changed(cfg: OptimizerConfig, model: Stack, params, gradient):
    """Paths of the parameters that one update changes."""
    optimize = optimizer.build(cfg, model)
    change, _ = jax.jit(lambda g, p: optimize.update(g, optimize.init(p), p))(gradient, params)
    return named(jax.tree.map(lambda leaf: bool(np.any(leaf)), change)), change


def test_weight_decay_spares_the_semantic_memory_and_what_holds_no_answer():
    decays = optimizer.decays(OptimizerConfig(), LEARNER.model, shapes(LEARNER.model))
    assert named(decays) == set(DECAYED.split())


@pytest.mark.parametrize(
    ("layer", "vectors"),
    [
        (PalimpsaConfig(D=16), "norm_D decay.log_rate_H decay.bias_H importance.scale_H skip_H out_norm_V"),
        (Mamba2Config(D=16), "norm_D conv_bias_X decay.log_rate_H decay.bias_H skip_H out_norm_X"),
        (AttentionConfig(D=16), "norm_D norm_ff_D feed_forward.bias_F"),
    ],
    ids=lambda x: type(x).__name__,
)
@pytest.mark.parametrize("before", [0, 1], ids=["alone", "second in its pattern"])
def test_weight_decay_is_on_matrices(layer, vectors, before):
    model = Stack((AttentionConfig(D=16),) * before + (layer,), 2)
    params = shapes(model)
    spared = named(jax.tree.map(lambda one: not one, optimizer.decays(OptimizerConfig(), model, params)))
    prefix = f"model.{before}."
    assert {path.removeprefix(prefix) for path in spared if path.startswith(prefix)} == set(vectors.split())


@EACH
def test_no_vector_of_any_layer_decays_and_patterns_of_layers_match(cfg):
    # A name says the shape of a layer's own parameter: q_DxHxK is a matrix, norm_D a vector
    model = Stack((cfg,), 2)
    params = shapes(model)
    decayed = named(optimizer.decays(OptimizerConfig(), model, params))
    matrices = {path for path in everything(params) if re.fullmatch(r"\w+_[A-Z0-9]+(x[A-Z0-9]+)+", path.split(".")[-1])}
    spared = model.patterns("no_decay")
    of_layers = named(optimizer.matches(spared, params.model)) if spared else set()
    assert decayed == matrices - {f"model.{path}" for path in of_layers}
    # Each pattern finds something, or it is refused
    for pattern in (*spared, *model.patterns("taught")):
        assert named(optimizer.matches((pattern,), params.model))


def test_a_pattern_scales_the_rate_of_what_it_matches():
    params = filled(shapes(LEARNER.model))
    gradient = jax.tree.map(lambda leaf: 0.1 * leaf, params)
    plain = OptimizerConfig(warmup=0, weight_decay=0.0)
    _, slow = changed(plain, LEARNER.model, params, gradient)
    _, fast = changed(
        dataclasses.replace(plain, rates=(("model.*.semantic.*", 10.0),)), LEARNER.model, params, gradient
    )
    np.testing.assert_allclose(fast.model[0].semantic.up_RxD, 10 * slow.model[0].semantic.up_RxD, rtol=1e-6)
    others = lambda change: (change.task, change.model[0]._replace(semantic=()))
    jax.tree.map(np.testing.assert_array_equal, others(fast), others(slow))


@pytest.mark.parametrize(
    ("layer", "frozen", "parts"),
    [
        (CRAM, ("model.*",), CRAM.init(jax.random.key(0))._fields),
        (CRAM, ("model.*.semantic.*", "model.*.router.*"), ("semantic", "router")),
        (
            SeqBoatConfig(AttentionConfig(D=16, F=16, heads=1, head_dim=8)),
            ("model.*.choice_Dx2", "model.*.log_temperature", "model.*.working.*"),
            ("choice_Dx2", "log_temperature", "working"),
        ),
    ],
    ids=["all layers", "memory and router", "a selection"],
)
def test_gradients_and_decay_leave_frozen_parameters_alone(layer, frozen, parts):
    model = Stack((layer,), 2)
    params = filled(shapes(model))
    moved, _ = changed(OptimizerConfig(frozen=frozen, warmup=0), model, params, filled(params, 1))
    part = lambda path: path.split(".")[2] if path.startswith("model.") else None
    assert everything(params) - moved == {path for path in everything(params) if part(path) in parts}


def test_a_frozen_semantic_memory_and_router_stay_bit_for_bit_under_all_losses():
    # Given heavy weight decay, losses of consolidation, a price, and recalls that are not zero
    frozen = dataclasses.replace(LEARNER.optimizer, frozen=("model.*.semantic.*", "model.*.router.*"), weight_decay=5.0)
    learner = dataclasses.replace(LEARNER, optimizer=frozen, model=Stack((CRAM,)))
    random = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    state = step.init(learner, 0, 10)
    state = state._replace(params=jax.tree.map(random, state.params))
    before = jax.tree.map(np.asarray, state.params)
    # When it is trained past the release
    for i in range(5):
        state, report = step.train_step(learner, state, learner.task.batch("train", 0, i, 32, 4))
    assert np.all(state.consolidation[0].released) and report["price"][0] > 0 and report["skipped"][0] == 0
    # Then they are what they were, and all else moved, the task's part too
    same = named(jax.tree.map(lambda old, new: bool(np.array_equal(old, new)), before, state.params))
    assert same == {path for path in everything(before) if ".semantic." in path or ".router." in path}


def test_what_is_frozen_takes_no_share_of_the_clip():
    params = filled(shapes(LEARNER.model))
    gradient = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 1e-6), params)
    loud = gradient.model[0]._replace(semantic=jax.tree.map(lambda leaf: leaf + 1e6, gradient.model[0].semantic))
    optimize = optimizer.build(OptimizerConfig(frozen=("model.*.semantic.*",)), LEARNER.model)
    update = jax.jit(lambda g, p: optimize.update(g, optimize.init(p), p))
    _, (_, _, (adam, *_)) = update(gradient._replace(model=(loud,)), params)
    np.testing.assert_allclose(adam.mu.model[0].router.in_DxF, 0.1 * 1e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"frozen": ("model.*.semantics.*",)}, {"rates": (("model.*.semantics.*", 2.0),)}])
def test_a_pattern_that_matches_nothing_is_refused_before_a_step(settings):
    learner = dataclasses.replace(LEARNER, optimizer=OptimizerConfig(**settings))
    with pytest.raises(ValueError, match=r"'model.\*.semantics.\*' matches no parameter; .* model.0.semantic.up_RxD"):
        step.init(learner, 0, 10)


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="rates must be above 0 and finite, got 0.0 for 'model.*'; use frozen"):
        OptimizerConfig(rates=(("model.*", 0.0),))
    for names, least in ((("learning_rate", "clip"), "above 0"), (("weight_decay", "final"), "at least 0")):
        for name in names:
            for value, must in ((-1.0, least), (float("nan"), "finite"), (float("inf"), "finite")):
                with pytest.raises(ValueError, match=f"{name} must be {must}, got {value}"):
                    OptimizerConfig(**{name: value})
    with pytest.raises(ValueError, match="rates must be above 0 and finite, got inf"):
        OptimizerConfig(rates=(("model.*", float("inf")),))


def test_a_description_lists_what_each_group_holds():
    cfg = OptimizerConfig(rates=(("model.*.semantic.*", 10.0),), frozen=("task.*",))
    params = shapes(LEARNER.model)
    groups = {}
    for line in optimizer.describe(cfg, LEARNER.model, params):
        group, count, paths = line.split(": ")
        groups[group] = set(paths.split(", "))
        assert count == f"{len(groups[group])} of {len(everything(params))} parameters"
    of_task = {path for path in everything(params) if path.startswith("task.")}
    assert groups == {
        "weight decay 0.7": set(DECAYED.split()) - of_task,
        "rate x 10 (model.*.semantic.*)": {path for path in everything(params) if ".semantic." in path},
        "frozen (task.*)": of_task,
    }


def test_without_groups_the_optimizer_holds_what_clipping_and_adamw_do():
    # A run without groups saves a state of this shape
    params = filled(shapes(LEARNER.model))
    held = optimizer.build(OptimizerConfig(), LEARNER.model).init(params)
    assert [type(part).__name__ for part in held] == ["EmptyState", "tuple"]
    like = lambda tree: jax.tree.map(jnp.shape, tree)
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 200, 3000, 1e-4)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, mask=lambda p: jax.tree.map(jnp.ndim, p)))
    assert like(held) == like(plain.init(params))


def test_steps_that_would_be_left_over_are_refused():
    with pytest.raises(ValueError, match="accumulate must divide steps, got 3 and 20"):
        OptimizerConfig(steps=20, accumulate=3)


def test_accumulated_gradients_change_parameters_as_their_mean_does():
    params = filled(shapes(LEARNER.model))
    gradients = [filled(params, seed) for seed in range(1, 7)]
    mean = lambda some: jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *some)
    cfg = OptimizerConfig(learning_rate=0.01, warmup=0, steps=6, final=1.0)  # the same rate in all steps

    def after(cfg: OptimizerConfig, gradients: list) -> list:
        """Parameters after each step."""
        optimize, seen = optimizer.build(cfg, LEARNER.model), [params]
        kept, update = optimize.init(params), jax.jit(optimize.update)
        for gradient in gradients:
            change, kept = update(gradient, kept, seen[-1])
            seen.append(optax.apply_updates(seen[-1], change))
        return seen

    got = after(dataclasses.replace(cfg, accumulate=3), gradients)
    want = after(cfg, [mean(gradients[:3]), mean(gradients[3:])])
    near = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)
    for steps, changes in ((2, 0), (3, 1), (5, 1), (6, 2)):
        near(want[changes], got[steps])

    # The rate goes by steps: it is 0 in step 0, and the warmup is over in step 3
    warm = after(dataclasses.replace(cfg, accumulate=3, warmup=2), gradients)
    near(params, warm[3])
    assert jnp.abs(warm[6].task.answer_DxA - warm[3].task.answer_DxA).max() > 0.005
