"""The loop notices what a person would want to know of."""

import dataclasses

import jax.numpy as jnp
import pytest

from cram_jax.functional.attention import AttentionConfig
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDConfig
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.training import loop
from cram_jax.training.learner import Learner
from cram_jax.training.loop import RunConfig

RUN = RunConfig(steps=20, length=16, batch=2, log_every=20, checkpoint_every=20, held_out_tokens=32)


@dataclasses.dataclass(frozen=True)
class Broken(SRCDTask):
    """Training batches from step 2 on are not finite, so many of them."""

    bad: int = 0

    def batch(self, split: str, seed: int, index: int, length: int, size: int):
        batch = super().batch(split, seed, index, length, size)
        if split == "train" and 2 <= index < 2 + self.bad:
            batch = batch._replace(target_BxT=jnp.full_like(batch.target_BxT, jnp.nan))
        return batch


def train(bad: int, workdir):
    task = Broken(SRCDConfig(patterns=5, answers=4), bad=bad)
    return loop.train(Learner(task=task, model=Stack(AttentionConfig(D=8, F=8), 1)), RUN, 0, workdir, 5)


def test_ten_bad_steps_in_a_row_end_a_run_though_good_ones_follow(tmp_path):
    state, lines = train(9, tmp_path / "nine")
    assert state.step == 20 and state.skipped == 0 and len(lines) == 2
    with pytest.raises(FloatingPointError, match="not finite for 10 steps up to step 20; lower"):
        train(10, tmp_path / "ten")
