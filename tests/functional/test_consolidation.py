"""The running state of consolidation, and what familiarity learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import consolidation, semantic
from cram_jax.functional.consolidation import ConsolidationConfig

D = 6
CFG = ConsolidationConfig(decay=0.9)


def retrievals(seed: int, count: int = 4000, mean: float = 30.0):
    """Retrievals with a large constant part and variance 1 a coordinate."""
    return mean + jax.random.normal(jax.random.key(seed), (2, count // 2, D))


def test_the_variance_is_centred():
    # With mean 30 an uncentred variance would be 5406; the centred one is D = 6
    state = consolidation.init_state(D, CFG.decay)
    for seed in range(60):
        r_BxTxD = retrievals(seed)
        state = consolidation.update(state, consolidation.statistics(r_BxTxD, jnp.ones(r_BxTxD.shape[:2], bool)))
    # standard error of the mean of 4000 chi-square(6) is 0.05; float32 of 5406 loses 1e-3
    np.testing.assert_allclose(consolidation.variance(state), D, atol=0.2)


def test_before_any_retrieval_the_variance_is_one_and_nothing_moves():
    state = consolidation.init_state(D, CFG.decay)
    none = consolidation.statistics(jnp.full((1, 3, D), jnp.nan), jnp.zeros((1, 3), bool))
    after = consolidation.update(state, none)
    assert consolidation.variance(after) == 1
    jax.tree.map(np.testing.assert_array_equal, state, after)


def test_sums_over_devices_equal_one_big_batch():
    r_BxTxD = retrievals(0, count=64)
    marks_BxT = jax.random.bernoulli(jax.random.key(1), 0.5, r_BxTxD.shape[:2])
    state = consolidation.init_state(D, CFG.decay)
    whole = consolidation.update(state, consolidation.statistics(r_BxTxD, marks_BxT))

    def part(r_TxD, marks_T):
        stats = consolidation.statistics(r_TxD[None], marks_T[None])
        return consolidation.update(state, stats, axis_name="devices")

    parts = jax.vmap(part, axis_name="devices")(r_BxTxD, marks_BxT)
    for name in ("mean_D", "square", "weight"):  # float32 sums in another order
        split = getattr(parts, name)
        np.testing.assert_allclose(split[0], getattr(whole, name), rtol=1e-5)
        np.testing.assert_array_equal(split[0], split[1])


def test_sums_over_bfloat16_tokens_are_exact_enough():
    # bfloat16 counts 256, 258, 260: a sum in it would lose every odd token
    r_BxTxD = jnp.ones((3, 101, D), jnp.bfloat16)
    stats = consolidation.statistics(r_BxTxD, jnp.ones((3, 101), bool))
    assert stats.count == 303 and stats.square == 303 * D and {leaf.dtype for leaf in stats} == {jnp.dtype("float32")}


def test_quality_is_one_for_a_perfect_recall_and_known_only_where_retrieved():
    r_BxTxD = retrievals(3, count=8)
    marks_BxT = jnp.array([[True, False, True, False]] * 2)
    poisoned_BxTxD = jnp.where(marks_BxT[..., None], r_BxTxD, jnp.nan)
    quality_BxT = consolidation.quality(r_BxTxD, poisoned_BxTxD, marks_BxT, jnp.asarray(2.0))
    np.testing.assert_array_equal(quality_BxT, marks_BxT.astype(float))


def test_equation_6_by_hand():
    # Errors whose squares are not sigma^2, where other powers of the error would give the same
    retrieved_BxTxD, sigma2 = jnp.zeros((1, 4, D)), 2.0
    squared_error_T = np.array([0.0, 0.5, 2.0, 6.0])
    recalled_BxTxD = retrieved_BxTxD.at[0, :, 0].set(np.sqrt(squared_error_T))
    q_BxT = consolidation.quality(recalled_BxTxD, retrieved_BxTxD, jnp.ones((1, 4), bool), jnp.asarray(sigma2))
    np.testing.assert_allclose(q_BxT[0], np.exp(-squared_error_T / sigma2), rtol=1e-5)


def test_familiarity_is_least_wrong_when_it_equals_quality():
    # d/d logit of the cross-entropy is sigmoid(logit) - q: zero at the calibrated estimate
    quality_BxT = jnp.array([[0.1, 0.5, 0.9]])
    logit_BxT = jnp.log(quality_BxT / (1 - quality_BxT))
    marks_BxT = jnp.ones((1, 3), bool)
    slope = jax.grad(consolidation.familiarity_loss)(logit_BxT, quality_BxT, marks_BxT)
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    slope = jax.grad(consolidation.familiarity_loss)(logit_BxT + 1, quality_BxT, marks_BxT)
    assert np.all(slope > 0.05)


@pytest.mark.parametrize("poison", [0.0, np.nan])
def test_only_retrievals_teach_the_semantic_memory(poison):
    params = semantic.init(jax.random.key(0), D, semantic.SemanticConfig(rank=4))
    params = params._replace(up_RxD=jax.random.normal(jax.random.key(1), (4, D)))
    x_BxTxD, r_BxTxD = retrievals(1, count=8, mean=0.0), retrievals(2, count=8, mean=0.0)
    marks_BxT = jnp.array([[True, False, True, False]] * 2)
    target_BxTxD = jnp.where(marks_BxT[..., None], r_BxTxD, poison)

    def lesson(params, target_BxTxD):
        return semantic.distillation(semantic.recall(params, x_BxTxD), target_BxTxD, marks_BxT, jnp.asarray(3.0))

    # Eq 5 by hand, in numpy, over the four tokens that retrieved
    recalled = np.asarray(semantic.recall(params, x_BxTxD))[np.asarray(marks_BxT)]
    by_hand = np.sum((recalled - np.asarray(r_BxTxD)[np.asarray(marks_BxT)]) ** 2) / 3
    np.testing.assert_allclose(lesson(params, target_BxTxD), by_hand, rtol=1e-5)
    lessons, teacher = jax.grad(lesson, argnums=(0, 1))(params, target_BxTxD)
    np.testing.assert_array_equal(teacher, 0)  # the teacher gets no gradient
    assert np.all(np.isfinite(lessons.up_RxD)) and np.any(lessons.up_RxD != 0)


def test_a_layer_that_stopped_attending_does_not_own_the_gradient():
    # Retrievals that hardly differ (1e-4 a coordinate): their own variance would make the lesson 1e6 times as large
    state = consolidation.init_state(D, CFG.decay)
    for seed in range(30):
        r_BxTxD = 1e-4 * retrievals(seed, count=100, mean=0.0)
        state = consolidation.update(state, consolidation.statistics(r_BxTxD, jnp.ones(r_BxTxD.shape[:2], bool)))
    assert consolidation.variance(state) == np.float32(consolidation.LEAST_VARIANCE)
