"""The benchmarks measure what they say, at sizes that take seconds."""

import dataclasses
from types import SimpleNamespace

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import results
from lib.bench import attention, measure, safety, scans, stream, training_step

from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import step as training
from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner

CFG = CRAMConfig(D=16, F=16, episodic=EpisodicConfig(heads=1, head_dim=8, memory=16, write_bias=-2.0))
LEARNER = Learner(
    task=SRCDTask(SRCDConfig(patterns=10, answers=8, new_key_ids=20)),
    model=Stack((dataclasses.replace(CFG, routing=RoutingConfig(audit_gain=0.0)),)),
)


def test_times_are_quartiles_of_calls_made_in_turn(monkeypatch):
    # Given a clock that the calls themselves move on, the first by 1, 2, 3 s and the second by ten times that
    now, order = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def call(name: str, seconds: float):
        order.append(name)
        now[0] += seconds * (order.count(name) - 1)  # the first call of each is not timed

    calls = {"a": lambda: call("a", 1.0), "b": lambda: call("b", 10.0)}
    found = measure.timed(calls, rounds=3, per=2)
    assert order == ["a", "b"] * 4
    assert found["a"] == {"ms": 1000.0, "low": 750.0, "high": 1250.0} and found["b"]["ms"] == 10_000


def test_one_share_and_all_are_compared_with_dense_attention(monkeypatch):
    monkeypatch.setattr(attention, "LENGTHS", (64,))
    monkeypatch.setattr(attention, "SHARES", (0.25, 1.0))
    out = attention.times(rounds=1)
    assert out.keys() == {"forward_64", "forward_backward_64"}
    for times in out.values():
        assert times["dense"].keys() == {"naive", "jax_nn", "ours"}
        for pattern in attention.PATTERNS:
            all_attend, some = times[f"{pattern}_1000"], times[f"{pattern}_250"]
            assert all_attend["cheaper"] == all_attend["efficiency"] == all_attend["share"] == 1
            assert some["cheaper"] == pytest.approx(all_attend["ms"] / some["ms"])
    assert float(attention.routed(64, 0.25, "random").mean()) == 0.25
    clustered = np.asarray(attention.routed(128, 0.25, "clustered"))[0]
    assert clustered.mean() == 0.25 and np.sum(np.diff(clustered.astype(int)) == 1) <= 1


def test_dense_attention_and_skipped_attention_of_all_tokens_agree():
    q, k, v = attention.inputs(64)
    everything = jnp.ones((1, 64), bool)
    ours = attention.skipping(q, k, v, everything, everything)
    for dense in (attention.naive, attention.library):
        np.testing.assert_allclose(dense(q, k, v), ours, atol=2e-5)


def test_a_part_leaves_its_result_where_it_is_told_to(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(attention, "LENGTHS", (64,))
    bench.main(SimpleNamespace(part="kept", run="", rounds=1, results=str(tmp_path)))
    result = results.load("kernels_kept", tmp_path)
    assert result["data"].keys() == {"kept_15", "kept_100"} and str(tmp_path) in capsys.readouterr().out
    committed = {results.load(part.result)["command"]: part.result for part in bench.PARTS.values()}
    assert committed[result["command"]] == "kernels_kept"
    assert {command.split("--part=")[1]: name for command, name in committed.items()} == {
        name: part.result for name, part in bench.PARTS.items()
    }


def test_a_step_needs_a_trained_run(tmp_path):
    with pytest.raises(ValueError, match="holds no finished run; this makes one: python experiments/srcd.py"):
        bench.main(SimpleNamespace(part="training_step", run=str(tmp_path), rounds=1, results=str(tmp_path)))


def test_a_stream_begins_with_full_caches(monkeypatch):
    # Given CRAM whose audits are all that attends, with a ring of 4 that "read" 32 tokens before
    cfg = dataclasses.replace(CFG, episodic=EpisodicConfig(heads=1, head_dim=8, memory=4))
    one = stream.Stream(Stack((cfg,), 2), batch=2, context=32, piece=3)
    rings = [cache.episodic for cache in one.caches[0]]
    assert len(rings) == 2 and all(np.all(np.asarray(ring.written_B) == 32) for ring in rings)
    before = one.megabytes
    assert one().shape == (2, 3, 16)
    assert int(one.caches[0][1].position) == 35 and one.megabytes == before > 0


def test_scans_of_all_kinds_compute_the_same(monkeypatch):
    for name, value in (("B", 1), ("H", 2), ("K", 4), ("V", 8), ("RATE_H", jnp.ones(2)), ("PRIOR_H", jnp.ones(2))):
        monkeypatch.setattr(scans, name, value)
    given = scans.inputs(32)
    for scan in (scans.ssd, scans.palimpsa):
        np.testing.assert_allclose(scan("xla", given), scan("reference", given), atol=1e-4)
    assert scans.floor(given).shape == (2, 8)


def test_steps_that_skip_and_steps_that_mask_agree():
    # Given a released state whose router sends nobody to attention, so that audits are all there is
    state = training.init(LEARNER, 0, 10)
    (layer,), released = state.params.model, LEARNER.model.release(state.consolidation)
    away = layer._replace(router=layer.router._replace(out_FxD=layer.router.out_FxD.at[..., 1].add(-1.0)))
    state = state._replace(consolidation=released, params=state.params._replace(model=(away,)))
    batches = [LEARNER.task.batch("train", 0, i, 256, 2) for i in range(3)]
    out = training_step.agreement(LEARNER, state, batches)
    assert out["steps"] == 3 and out["largest_relative_difference"] < 1e-4
    # ... on short lists: well below the eighth and the quarter of all tokens that they have
    assert 0 < out["attention_tokens_training"] < 0.06 and 0 < out["kept_share_training"] < 0.2


def test_the_floor_has_no_episodic_path():
    # Given one state, a step with and a step without: the latter gives the path's parameters no gradient at all
    state = training.init(LEARNER, 0, 10)
    batch = LEARNER.task.batch("train", 0, 0, 64, 2)
    mixed = lambda step: step(state, batch)[0].opt_state[1][0].mu.model[0].episodic
    with_path = mixed(training_step.compiled_step(LEARNER, state, batch))
    with training_step.no_episodic():
        without = mixed(training_step.compiled_step(LEARNER, state, batch))
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(with_path))
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(without))


def test_steps_with_and_without_checks_do_the_same_until_something_is_not_finite():
    state = training.init(LEARNER, 0, 10)
    batches = [(LEARNER.task.batch("train", 0, i, 32, 2), None) for i in range(2)]
    steps = safety.unguarded(LEARNER), lambda *given: training.train_step(LEARNER, *given)
    ours, theirs = (jax.tree.leaves(safety.after(step, state, batches).params) for step in steps)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    lost = state._replace(params=jax.tree.map(lambda a: a * jnp.nan, state.params))
    skipped = [int(safety.after(step, lost, batches).skipped) for step in steps]
    assert skipped == [0, 2]


def test_all_checks_are_shares_of_a_step(monkeypatch):
    monkeypatch.setattr(safety, "STEPS", 2)
    run = RunConfig(steps=100, length=32, batch=2, log_every=10, checkpoint_every=50)
    found = safety.measure(LEARNER, run, 0, rounds=1)
    ms = {name: one["ms"] for name, one in found["times"].items()}
    shares = found["shares"]
    assert shares["guard"] == pytest.approx(ms["guarded_step"] / ms["step"] - 1)
    assert shares["digest"] == pytest.approx(ms["digest"] / ms["step"] / 50)
    assert shares["all"] == pytest.approx(sum(one for name, one in shares.items() if name != "all"))
