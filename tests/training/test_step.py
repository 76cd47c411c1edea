"""One training step: what it reads, what it changes, and what it leaves unchanged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import episodic
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.layer import LayerAux, Routes
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import probes, step
from cram_jax.training.controller import PriceConfig
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.step import Learner

LEARNER = Learner(
    task=SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20)),
    model=Stack((CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=8)),), 2),
    optimizer=OptimizerConfig(warmup=1, steps=20),
    price=PriceConfig(start=2, plateau=1.0),
)


def batch(index: int):
    return LEARNER.task.batch("train", 0, index, 32, 4)


def run(batches, learner=LEARNER):
    state = step.init(learner, 0, 10)
    for one in batches:
        state, report = step.train_step(learner, state, one)
    return state, report


@pytest.fixture(scope="module")
def trained():
    return run([batch(i) for i in range(5)])


def test_fields_for_counting_do_not_touch_training(trained):
    # Given the same batches with is_new and pattern scrambled
    def scramble(one):
        roll = lambda a: jnp.roll(a, 7, axis=1)
        return one._replace(is_new_BxT=~roll(one.is_new_BxT), pattern_BxT=roll(one.pattern_BxT))

    state, _ = run([scramble(batch(i)) for i in range(5)])
    # Then all that is learned is the same bit for bit; only the exposure counts differ
    learned = lambda s: s._replace(exposures_P=0, key=0)
    jax.tree.map(np.testing.assert_array_equal, learned(state), learned(trained[0]))
    assert not np.array_equal(state.exposures_P, trained[0].exposures_P)


def test_the_router_is_released_by_the_price(trained):
    state, _ = trained
    assert np.all(state.consolidation[0].released) and state.price.released_step == 2
    assert np.all(state.consolidation[0].weight > 0)


def test_exposures_count_recurring_queries(trained):
    asked = np.zeros(10, int)
    for i in range(5):
        one = batch(i)
        counted = np.asarray((one.answer_BxT >= 0) & ~one.is_new_BxT)
        np.add.at(asked, np.asarray(one.key_BxT)[counted], 1)
    np.testing.assert_array_equal(trained[0].exposures_P, asked)


def test_a_batch_that_is_not_finite_changes_nothing(trained):
    state = jax.tree.map(jnp.copy, trained[0])
    before = jax.tree.map(lambda leaf: np.asarray(leaf), state._replace(key=0))
    broken = batch(9)._replace(target_BxT=jnp.full((4, 32), jnp.nan))
    after, _ = step.train_step(LEARNER, state, broken)
    assert after.step == before.step + 1 and after.skipped == 1
    put_back = after._replace(step=before.step, skipped=before.skipped, key=0)
    jax.tree.map(np.testing.assert_array_equal, put_back, before)
    # and a good one clears the count
    again, _ = step.train_step(LEARNER, after, batch(10))
    assert again.skipped == 0


def test_auditing_all_shows_quality_everywhere_and_changes_no_answer(trained):
    state, _ = trained
    one = LEARNER.task.batch("held_out", 0, 0, 32, 4)
    _, plain, _ = step.forward(LEARNER, state.params, state.consolidation, one, None, False)
    audited = dataclasses.replace(LEARNER, model=LEARNER.model.replace(lambda layer: layer.audited()))
    _, all_, aux = step.forward(audited, state.params, state.consolidation, one, jax.random.key(0), False)
    assert np.all(aux[0].routes.attended_BxT)
    work = {"attention_flops", "total_flops"}  # what it costs does change
    answers = lambda metrics: {name: value for name, value in metrics.items() if name not in work}
    jax.tree.map(np.testing.assert_array_equal, answers(plain), answers(all_))
    assert all_["attention_flops"][0] > plain["attention_flops"][0]


@pytest.mark.parametrize("gap", [np.nan, -1.0, np.inf])
def test_a_first_batch_with_wrong_gaps_is_refused(gap):
    state = step.init(LEARNER, 0, 10)
    wrong = batch(0)._replace(gap_BxT=batch(0).gap_BxT.at[1, 5].set(gap))
    with pytest.raises(ValueError, match=f"gap_BxT must be finite and at least 0, got {gap} at sequence 1, position 5"):
        step.check_batch(LEARNER, state.params, wrong)
    step.check_batch(LEARNER, state.params, batch(0))


def test_metrics_agree_with_a_count_by_hand(trained):
    state, _ = trained
    one = LEARNER.task.batch("held_out", 0, 3, 32, 4)
    sums = step.evaluate_step(LEARNER, state, one, jax.random.key(1))
    _, _, aux = step.forward(LEARNER, state.params, state.consolidation, one, jax.random.key(1), False)
    attended_LxBxT = np.asarray(aux[0].routes.attended_BxT)
    assert sums["attention_tokens"] == (attended_LxBxT.any(0).sum(), 4 * 32)
    assert sums["attention_utilisation"] == (attended_LxBxT.sum(), 2 * 4 * 32)
    new_BxT = np.asarray(one.is_new_BxT)
    assert sums["attention_query_new"] == ((attended_LxBxT.any(0) & new_BxT).sum(), new_BxT.sum())
    assert sums["realised_new_share"] == (new_BxT.sum(), 4 * 32)


def test_steps_and_evaluations_compile_once():
    for f in (step.train_step, step.evaluate_step):
        f.clear_cache()
    state = step.init(LEARNER, 0, 10)
    for i in range(3):
        step.evaluate_step(LEARNER, state, batch(i), jax.random.key(i))
        state, _ = step.train_step(LEARNER, state, batch(i))
    assert step.train_step._cache_size() == step.evaluate_step._cache_size() == 1


def test_a_transformer_takes_the_same_step():
    plain = dataclasses.replace(LEARNER, model=Stack((AttentionConfig(D=16, F=16, heads=1, head_dim=8),), 2))
    state, report = run([batch(0), batch(1)], plain)
    assert np.isfinite(report["loss"][0]) and not {"attention_tokens", "price", "released"} & report.keys()
    assert state.consolidation == ((),)


def test_twenty_steps_with_and_without_skipping_agree(monkeypatch):
    # Given one state after the release
    long = lambda i: LEARNER.task.batch("train", 0, i, 256, 2)
    start, _ = run([long(i) for i in range(4)])
    assert np.all(start.consolidation[0].released)
    # ... with a router that sends a few tokens to attention, and a gate that keeps a few: the short lists hold them
    (model,) = start.params.model
    out_LxFx3 = jax.random.normal(jax.random.key(1), model.router.out_FxD.shape).at[..., 1].add(-0.4)
    start = start._replace(
        params=start.params._replace(model=(model._replace(router=model.router._replace(out_FxD=out_LxFx3)),))
    )

    def twenty(backend):
        (layer,) = LEARNER.model.layers
        few_audits = dataclasses.replace(layer.routing, audit_gain=0.0)
        few_writes = dataclasses.replace(layer.episodic, backend=backend, write_bias=-2.0, write_audit_rate=0.15)
        layer = dataclasses.replace(layer, routing=few_audits, episodic=few_writes)
        learner = dataclasses.replace(LEARNER, model=Stack((layer,), 2))
        state, reports = jax.tree.map(jnp.copy, start), []
        for i in range(4, 24):
            state, report = step.train_step(learner, state, long(i))
            reports.append(report)
        return reports

    # When 20 steps are trained from it, with lists as long as needed, and with everything computed
    skipping = twenty("xla")
    monkeypatch.setattr(episodic, "BUCKET_SIZES", ((1, 1),))
    dense = twenty("reference")
    # Then they agree; sums are ordered differently, and 20 steps let that grow
    losses = [[report["loss"][0] for report in reports] for reports in (skipping, dense)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert skipping[-1]["attention_tokens"] == dense[-1]["attention_tokens"]
    # ... and there was something to skip: means well below what a sequence may have on the short lists (32 and 128)
    for report in skipping:
        for layer in (0, 1):
            attended, kept = (report[f"{what}_layer_{layer}"] for what in ("attention", "kept_share"))
            assert 2 < attended[0] / 2 < 24 and 16 < kept[0] / 2 < 100, (attended, kept)


def test_queries_are_counted_by_pattern_and_by_how_often_it_was_asked_for_before():
    # Given some batches, in which some queries choose attention
    exposures_P, totals = np.zeros(10, int), np.zeros((2, probes.OCTAVE * probes.OCTAVES))
    want, by_pattern, want_by_pattern = np.zeros_like(totals), np.zeros((2, 10)), np.zeros((2, 10))
    for i in range(12):
        one = batch(i)
        asked_BxT = np.asarray(LEARNER.task.asked(one))
        chose_LxBxT = np.random.default_rng(i).random((2, *asked_BxT.shape)) < 1 / 3
        aux = (LayerAux(routes=Routes(*[jnp.asarray(chose_LxBxT)] * 3)),)
        found = probes.exposed(LEARNER.model, aux, jnp.asarray(asked_BxT), jnp.asarray(exposures_P))
        totals += [found["exposed"][0], found["exposed_episodic"][0]]
        by_pattern += [found["asked_by_pattern"][0], found["asked_by_pattern_episodic"][0]]
        for b, t in np.argwhere(asked_BxT >= 0):
            place = int(np.floor(2 * np.log2(exposures_P[asked_BxT[b, t]] + 1)))
            counted = 1, np.any(chose_LxBxT[:, b, t])
            want[:, place] += counted
            want_by_pattern[:, asked_BxT[b, t]] += counted
        np.add.at(exposures_P, asked_BxT[asked_BxT >= 0], 1)
    assert want[0].sum() > 20 and np.count_nonzero(want[0]) > 3
    np.testing.assert_array_equal(totals, want)
    np.testing.assert_array_equal(by_pattern, want_by_pattern)
