"""The training loop reports losses that are not finite, and handles signals."""

import dataclasses
import os
import re
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lib import summary

from cram_jax.functional.attention import AttentionConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import loop, metrics, replay, step
from cram_jax.training.loop import RunConfig
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.step import Learner

RUN = RunConfig(steps=20, length=16, batch=2, log_every=20, checkpoint_every=20, held_out_tokens=32)


@dataclasses.dataclass(frozen=True)
class Broken(SRCDTask):
    """A task in which some training batches, from step 2 on, are bad."""

    bad: int = 0
    field: str = "target_BxT"
    value: float = np.nan

    def batch(self, split: str, seed: int, index: int, length: int, size: int):
        batch = super().batch(split, seed, index, length, size)
        if split == "train" and 2 <= index < 2 + self.bad:
            batch = batch._replace(**{self.field: jnp.full_like(getattr(batch, self.field), self.value)})
        return batch


def broken(bad: int, **how) -> Learner:
    task = Broken(SRCDConfig(patterns=5, answers=4), bad=bad, **how)
    return Learner(task=task, model=Stack((AttentionConfig(D=8, F=8),)))


def train(bad: int, workdir, **how):
    return loop.train(broken(bad, **how), RUN, 0, workdir, 5)


def test_ten_bad_steps_in_a_row_end_a_run_though_good_ones_follow(tmp_path):
    state, lines = train(9, tmp_path / "nine")
    assert state.step == 20 and state.skipped == 0 and len(lines) == 2
    # It says which parameters each group holds
    (decayed,) = (tmp_path / "nine" / "parameters.txt").read_text().splitlines()
    assert decayed.startswith("weight decay 0.7: ") and "model.0.qkv_Dx3xHxK" in decayed
    with pytest.raises(FloatingPointError, match="10 steps in a row up to step 20 were skipped.*; lower"):
        train(10, tmp_path / "ten")


def test_skipped_steps_are_counted_named_and_no_part_of_the_means(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        _, lines = train(9, tmp_path)
    assert lines[-1]["train/skipped_share"] == 9 / 20
    assert np.isfinite(lines[-1]["train/loss"]) and np.isfinite(lines[-1]["train/gradient_norm"])
    assert "9 steps were skipped, because something was not finite: [3, 4, 5, 6, 7, 8, 9, 10, 11]" in caplog.text
    assert summary.skipped_steps(lines) == 9


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("gap_BxT", -0.5, "batch: 32 gaps are negative"),
        ("gap_BxT", np.inf, r"batch.gap_BxT: 32 of 32 numbers are not finite, the first at \[0, 0\]"),
        ("previous_BxT", np.nan, "batch.previous_BxT: 32 of 32"),
        ("target_BxT", np.nan, r"gradient.model\[0\].qkv_Dx3xHxK: \d+ of"),
    ],
)
def test_a_bad_batch_in_mid_training_is_no_step_and_can_be_looked_at(tmp_path, field, value, said, caplog):
    _, lines = train(3, tmp_path, field=field, value=value)
    assert lines[-1]["train/skipped_share"] == 3 / 20 and np.isfinite(lines[-1]["train/loss"])
    # The first bad step can be repeated: all that was not finite in it is named
    assert "--replay=3 repeats step 3" in caplog.text
    learner = broken(3, field=field, value=value)
    found = replay.repeat(learner, RUN, 0, tmp_path, 3, 5)
    assert any(re.match(said, line) for line in found), found
    with pytest.raises(ValueError, match=r"holds nothing of step 2; steps that can be repeated: \[3\]"):
        replay.repeat(learner, RUN, 0, tmp_path, 2, 5)


def test_lines_that_are_lost_are_missing_and_not_made_up(tmp_path):
    # Given a run whose lines are lost, and then its last checkpoint
    run = dataclasses.replace(RUN, log_every=10, checkpoint_every=10)
    _, lines = loop.train(broken(0), run, 0, tmp_path, 5)
    (tmp_path / "metrics.jsonl").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "20")
    # Then the step it goes on from has no line again: one without its training would not be what was there
    _, found = loop.train(broken(0), run, 0, tmp_path, 5)
    (line,) = found
    clockless = lambda line: {n: v for n, v in line.items() if n not in metrics.CLOCK}
    assert line["step"] == 20 and clockless(line) == clockless(lines[-1])


def test_a_step_is_repeated_from_the_checkpoint_before_it(tmp_path):
    # Given a run with a checkpoint after its second step, and a bad third one
    run, learner = dataclasses.replace(RUN, log_every=2, checkpoint_every=2), broken(1)
    loop.train(learner, run, 0, tmp_path, 5)
    kept = tmp_path / loop.BAD_STEPS / "3"
    assert [folder.name for folder in kept.iterdir()] == ["2"]
    # Then its gradient is repeated from there, and steps before it are not taken again
    batch = type(learner.task).batch
    with pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr(type(learner.task), "batch", lambda *args: made.append(args[1:4]) or batch(*args))
        found = replay.repeat(learner, run, 0, tmp_path, 3, 5)
    assert made == [("train", 0, 2)] and any(line.startswith("gradient") for line in found)


def test_what_an_optimizer_makes_infinite_is_no_step():
    # Given finite gradients, and a learning rate at which parameters overflow
    task = SRCDTask(SRCDConfig(patterns=5, answers=4))
    learner = Learner(
        task=task, model=Stack((AttentionConfig(D=8, F=8),)), optimizer=OptimizerConfig(learning_rate=3e38, warmup=0)
    )
    before = step.init(learner, 0, 5)
    kept = jax.tree.map(np.asarray, before.params)
    state, metrics = step.train_step(learner, before, task.batch("train", 0, 0, 16, 2))
    jax.tree.map(np.testing.assert_array_equal, state.params, kept)
    assert state.step == 1 and state.skipped == 1 and metrics["loss"] == (0, 0)


@dataclasses.dataclass(frozen=True)
class Signalled(SRCDTask):
    """A task that sends signals to the process while batch 7 is made."""

    number: int = 0
    times: int = 0

    def batch(self, split: str, seed: int, index: int, length: int, size: int):
        if split == "train" and index == 7:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(0.05)  # two at once are one
        return super().batch(split, seed, index, length, size)


@pytest.fixture
def heard():
    """Lets SIGINT arrive as in the foreground, even if the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_under_way_and_the_rest_is_as_if_none_had_come(number, tmp_path, heard):
    def run(workdir, times):
        task = Signalled(SRCDConfig(patterns=5, answers=4), number=number, times=times)
        return loop.train(Learner(task=task, model=Stack((AttentionConfig(D=8, F=8),))), RUN, 0, workdir, 5)

    handler = signal.getsignal(number)
    with pytest.raises(loop.Interrupted, match=f"stopped by {signal.Signals(number).name} at step 8; the same"):
        run(tmp_path / "stopped", 1)
    assert signal.getsignal(number) is handler
    (state, lines), (whole, wanted) = run(tmp_path / "stopped", 0), run(tmp_path / "whole", 0)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), (whole.params, whole.opt_state))
    assert [line["step"] for line in lines] == [line["step"] for line in wanted] == [0, 20]
    timeless = lambda line: {name: line[name] for name in line if name not in metrics.CLOCK}
    np.testing.assert_equal(timeless(lines[-1]), timeless(wanted[-1]))  # the mean of all 20 steps


def test_a_second_signal_ends_at_once_and_one_that_was_ignored_is(tmp_path, heard):
    task = Signalled(SRCDConfig(patterns=5, answers=4), number=signal.SIGINT, times=2)
    learner = Learner(task=task, model=Stack((AttentionConfig(D=8, F=8),)))
    with pytest.raises(KeyboardInterrupt):
        loop.train(learner, RUN, 0, tmp_path / "heard", 5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    state, _ = loop.train(learner, RUN, 0, tmp_path / "ignored", 5)
    assert state.step == 20 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
