"""Measures what a run pays for its safety, beside the training step at the demo's size.

| name | what | how often |
|---|---|---|
| step | a training step without any check | |
| guarded_step | `train_step`, which skips steps whose batch, loss, gradient or result is not finite | each step |
| digest | looks for NaN in the state, and forms the digest of a save and of its facts | each checkpoint |
| line | checks the end of `metrics.jsonl`, and appends a line with its check sum | each logged line |
| plain_line | appends the same line without | |
| lock | takes the lock of the directory and gives it back | once |
"""

import json
import tempfile
from pathlib import Path

import jax

from cram_jax.training import checkpoints, digests, files, loop
from cram_jax.training import step as training
from cram_jax.training.loop import RunConfig
from cram_jax.training.step import Learner
from lib.bench.measure import timed

STEPS, REPEATS = 20, 20  # steps, and other calls, that are timed at once


def unguarded(learner: Learner):
    """Returns a training step that does what `train_step` does, but for its checks."""

    def step(state, batch, fresh_B):
        moved, _, _, _, metrics = training.propose(learner, training.begin_streams(learner, state, fresh_B), batch)
        return moved._replace(step=state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def after(step, state, batches):
    """Returns the state after all these batches. The given one is copied, because steps donate theirs."""
    state = jax.tree.map(lambda a: a.copy(), state)
    for batch in batches:
        state, _ = step(state, *batch)
    return state


def verified(state) -> str:
    """What a save does to be verified: no NaN, and a digest of arrays and facts."""
    arrays = checkpoints.to_host(state)
    assert not any(checkpoints.has_nan(array) for array in arrays.values())
    facts = {"digest": digests.digest(arrays), "shapes": checkpoints.shapes(arrays)}
    return checkpoints.check_sum(facts)


def lines(directory: Path, line: dict) -> dict:
    """Returns the calls that write a line with a check sum and without, and that hold the lock."""

    def plain():
        with (directory / "plain.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def lock():
        with files.held(directory / "run"):
            pass

    many = lambda call: lambda: [call() for _ in range(REPEATS)] and None
    checked = lambda: files.append(directory / "metrics.jsonl", line)
    return {"line": many(checked), "plain_line": many(plain), "lock": many(lock)}


def measure(learner: Learner, run: RunConfig, seed: int, rounds: int) -> dict:
    """Returns the milliseconds of each row of the table, and all checks as a share of the steps of a whole run."""
    state = training.init(learner, seed, 0, loop.streams(learner, run))
    batches = [loop.given(learner, run, seed, i) for i in range(STEPS)]
    guarded = lambda now, *batch: training.train_step(learner, now, *batch)
    plain = unguarded(learner)
    steps = {
        "guarded_step": lambda: after(guarded, state, batches),
        "step": lambda: after(plain, state, batches),
    }
    times = timed(steps, rounds, per=STEPS)
    times |= timed({"digest": lambda: verified(state) and None}, rounds)
    line = {f"held_out/metric_{i}": i / 7 for i in range(60)}
    with tempfile.TemporaryDirectory() as directory:
        times |= timed(lines(Path(directory), line), rounds, per=REPEATS)
    ms = {name: one["ms"] for name, one in times.items()}
    once = {
        "guard": ms["guarded_step"] - ms["step"],
        "digest": ms["digest"] / run.checkpoint_every,
        "line": (ms["line"] - ms["plain_line"]) / run.log_every,
        "lock": ms["lock"] / run.steps,
    }
    shares = {name: one / ms["step"] for name, one in once.items()}
    return {"length": run.length, "batch": run.batch, "times": times, "shares": shares | {"all": sum(shares.values())}}
