"""Repeats a step that was skipped, and says what was not finite in it.

A batch and the noise of a step are functions of the seed and the step. So the newest checkpoint before the step, which
the loop keeps (`Checkpoints.keep`), is enough: the steps from there on are repeated.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.training import loop
from cram_jax.training import step as training
from cram_jax.training.checkpoints import Checkpoints
from cram_jax.training.files import Folder
from cram_jax.training.loop import BAD_STEPS, RunConfig
from cram_jax.training.step import Learner, TrainState


def repeat(learner: Learner, run: RunConfig, seed: int, workdir: Folder, number: int, patterns: int = 0) -> list[str]:
    """Returns what was not finite in a step, a line each; [] if nothing was.

    Args:
      number: of the step, as the log names it: 1 is the first.

    Raises:
      ValueError: if nothing was kept of this step. The message lists the steps that can be repeated.
    """
    kept = workdir / BAD_STEPS
    found = sorted(int(folder.name) for folder in kept.glob("*") if folder.name.isdigit())
    if number not in found:
        raise ValueError(f"{kept} holds nothing of step {number}; steps that can be repeated: {found}")
    state = training.init(learner, seed, patterns, loop.streams(learner, run))
    saves = Checkpoints(kept / str(number))
    restored = saves.restore(state)
    saves.close()
    layout = run.layout()
    state = layout.state(learner.model, state if restored is None else restored[1])
    train_step = layout.step(learner, state)
    for before in range(int(state.step), number - 1):
        state, _ = train_step(state, *loop.placed(learner, run, seed, before))
    with layout.told():
        return _not_finite(learner, state, *loop.placed(learner, run, seed, number - 1))


def _not_finite(learner: Learner, state: TrainState, batch, fresh_B) -> list[str]:
    gap_BxT = learner.task.embed(state.params.task, batch)[1]
    propose = jax.jit(lambda state, batch: training.propose(learner, state, batch))
    after = propose(training.begin_streams(learner, state, fresh_B), batch)
    looked = {"batch": batch, "loss": after.loss, "gradient": after.gradient, "after the step": after.state}
    found = [f"{name}{path}: {said}" for name, tree in looked.items() for path, said in _bad(tree)]
    negative = 0 if gap_BxT is None else int(jnp.sum(gap_BxT < 0))
    return found + ([f"batch: {negative} gaps are negative"] if negative else [])


def _bad(tree):
    """(path, what is wrong) of each array with numbers that are not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and (count := int(jnp.sum(~jnp.isfinite(leaf)))):
            first = [int(i) for i in np.argwhere(~np.isfinite(np.asarray(leaf, np.float32)))[0]]
            yield jax.tree_util.keystr(path), f"{count} of {leaf.size} numbers are not finite, the first at {first}"
