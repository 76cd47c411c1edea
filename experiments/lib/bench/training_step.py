"""Measures a training step of a trained model with and without skipping: its time, and whether the loss is the same.

| name | what |
|---|---|
| skipping | CRAM's usual training step, with audits and sampled writes |
| all_attend | the same step with every token attending, as before the release, to the events that the gate keeps |
| no_episodic | the same step without buffer, write gate, retrieval and its losses: a lower bound for skipping |
| transformer | a dense model of the same width, depth, data and loss |
| agreement | difference of the losses of 20 steps with skipping and 20 steps without, from one state |

`beside` times a training step and an evaluation of several trained models in turn.
"""

import contextlib
import dataclasses
from functools import partial
from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.functional import consolidation, cram, episodic
from cram_jax.training import step as training
from cram_jax.training.metrics import means
from cram_jax.training.step import Learner
from lib.bench.measure import timed
from lib.trained import Trained

STEPS, TIMED = 20, 4  # compared for agreement; timed in one call


def compiled_step(learner: Learner, state, batch):
    """Returns a compiled training step that does not donate its argument."""
    return jax.jit(partial(training.train_step.__wrapped__, learner)).lower(state, batch).compile()


@contextlib.contextmanager
def no_episodic():
    """Inside, models are compiled without their episodic memory."""

    def decide_writes(gate, x, novelty, uniform, *, cfg):
        zero = jnp.zeros_like(novelty)
        return episodic.Writes(zero, zero > 0, zero)

    def plan_reads(writes, attends_BxT, segment_BxT, *, cfg):
        nothing = jnp.zeros(attends_BxT.shape, bool)
        return SimpleNamespace(scatter=lambda x, T: nothing, end_BxC=0, start_BxC=0)

    def read(params, plan, x_BxTxD, read_weight_BxT, *, cfg):
        return jnp.zeros_like(x_BxTxD), jnp.zeros_like(read_weight_BxT)

    def distill(f, plan, params, z_BxTxD, retrieved_BxTxD, sigma2, *, sizes):
        zero = jnp.zeros(())
        return zero, consolidation.ConsolidationStats(jnp.zeros(z_BxTxD.shape[-1]), zero, zero)

    with contextlib.ExitStack() as stack:
        for module, f in ((episodic, decide_writes), (episodic, plan_reads), (episodic, read)):
            stack.enter_context(mock.patch.object(module, f.__name__, f))
        stack.enter_context(mock.patch.object(cram.kernels, "in_buckets", distill))
        yield


def step_times(learner: Learner, dense: Learner, seed: int, state, batches, rounds: int) -> dict:
    """Returns the milliseconds of each kind of step, and their ratios."""
    dense_state = training.init(dense, seed, state.exposures_P.shape[0])
    unreleased = tuple(one._replace(released=jnp.zeros_like(one.released)) for one in state.consolidation)
    step = compiled_step(learner, state, batches[0])
    steps = {"skipping": (step, state), "all_attend": (step, state._replace(consolidation=unreleased))}
    with no_episodic():
        steps["no_episodic"] = (compiled_step(learner, state, batches[0]), state)
    steps["transformer"] = (compiled_step(dense, dense_state, batches[0]), dense_state)
    all_batches = lambda step, start: [step(start, batch) for batch in batches]
    times = timed({name: partial(all_batches, *step) for name, step in steps.items()}, rounds, per=len(batches))
    ratio = lambda over, under: times[over]["ms"] / times[under]["ms"]
    return times | {
        "over_no_episodic": ratio("skipping", "no_episodic"),
        "faster_than_transformer": ratio("transformer", "skipping"),
        "faster_than_all_attend": ratio("all_attend", "skipping"),
    }


def agreement(learner: Learner, state, batches) -> dict:
    """Returns the largest relative difference between the losses of steps with and without skipping.

    Also returns the shares of tokens that attended and that were kept in these steps, audits included.
    """
    plain = lambda layer: dataclasses.replace(layer, episodic=dataclasses.replace(layer.episodic, backend="reference"))
    masking = dataclasses.replace(learner, model=learner.model.replace(plain))
    steps = {"skipping": compiled_step(learner, state, batches[0])}
    with mock.patch.object(episodic, "BUCKET_SIZES", ((1, 1),)):  # lists as long as the sequence
        steps["everything"] = compiled_step(masking, state, batches[0])
    seen = {name: [] for name in steps}
    for name, step in steps.items():
        now = state
        for batch in batches:
            now, report = step(now, batch)
            seen[name].append(jax.device_get(report))
    loss = {name: np.array([report["loss"][0] for report in reports]) for name, reports in seen.items()}
    shares = means(seen["skipping"])
    return {
        "steps": len(batches),
        "largest_relative_difference": float(np.max(np.abs(loss["skipping"] / loss["everything"] - 1))),
        "attention_tokens_training": shares["attention_tokens"],
        "kept_share_training": shares["kept_share"],
    }


def beside(runs: dict[str, Trained], rounds: int) -> dict:
    """Returns milliseconds of a training step and of an evaluation, in turn, for the last states of several runs."""
    calls = {"training_step": {}, "evaluation": {}}
    for name, (_, config, learner, run, step, state) in runs.items():
        key = jax.random.key(config.seed)
        batches = [learner.task.batch("train", config.seed, step + i, run.length, run.batch) for i in range(TIMED)]
        train, evaluate = compiled_step(learner, state, batches[0]), partial(training.evaluate_step, learner)
        calls["training_step"][name] = partial(map_list, partial(train, state), batches)
        calls["evaluation"][name] = partial(map_list, partial(evaluate, state, key=key), batches)
    return {kind: timed(each, rounds, per=TIMED) for kind, each in calls.items()}


def map_list(f, batches: list) -> list:
    return [f(batch) for batch in batches]


def measure(trained: Trained, dense: Learner, rounds: int) -> dict:
    """Returns all numbers of the table above, for the last state of a run.

    Args:
      dense: the transformer, on the same task.
    """
    learner, run, seed = trained.learner, trained.run, trained.config.seed
    batches = [learner.task.batch("train", seed, run.steps + i, run.length, run.batch) for i in range(STEPS)]
    out = {"seed": seed, "step_of_run": trained.step, "length": run.length, "batch": run.batch}
    out["step"] = step_times(learner, dense, seed, trained.state, batches[:TIMED], rounds)
    return out | {"agreement": agreement(learner, trained.state, batches)}
