"""The training state, and one training step as a pure function of (state, batch)."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cram_jax.dims import Array, Bool, Float, Int, Key
from cram_jax.functional import objective
from cram_jax.functional.layer import check_inputs
from cram_jax.functional.objective import ObjectiveConfig
from cram_jax.kernels.meshes import constrained
from cram_jax.models import fsdp
from cram_jax.models.stack import Stack
from cram_jax.training import controller, optimizer, probes
from cram_jax.training.controller import PriceConfig, PriceState
from cram_jax.training.optimizer import OptimizerConfig
from cram_jax.training.task import Sums, Task

# Numbers folded into a run's key, one for each purpose. Tasks use 0 and 1 for their data.
INIT, EVALUATION = 2, 3


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Learner:
    """All static parts of a training: task, network, optimizer, loss and price."""

    task: Task
    model: Stack
    optimizer: OptimizerConfig = OptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    price: PriceConfig = PriceConfig()


class Params(NamedTuple):
    """Attributes: task, the parameters of embedding and read-out; model, those of the stack of layers between them."""

    task: NamedTuple
    model: tuple


class TrainState(NamedTuple):
    """The state of a training, which is donated and checkpointed as a whole.

    Attributes:
      step: number of batches seen.
      params, opt_state: parameters, and the state of the optimizer.
      consolidation: states of all layers, see `Stack.init_state`.
      price: state of the controller: the price of attention, and the step of the release.
      exposures_P: how often each recurring pattern was asked for; for metrics only.
      key: random key of the training. It never changes; each step folds in its number.
      skipped: number of steps in a row that were skipped because loss or gradient was not finite.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    consolidation: tuple
    price: PriceState
    exposures_P: Int[Array, "P"]
    key: Key
    skipped: Int[Array, ""]


@partial(jax.jit, static_argnums=(0, 2, 3))
def init(learner: Learner, seed: int | Int[Array, ""], patterns: int, streams: int | None = None) -> TrainState:
    """Returns a fresh state.

    Args:
      seed: decides parameters and noise.
      patterns: the number of recurring patterns.
      streams: rows of a batch, if each is a stream with a memory of its own; None if all share what they consolidate.
    """
    task, model, noise = jax.random.split(jax.random.fold_in(jax.random.key(seed), INIT), 3)
    params = Params(learner.task.init(task, learner.model.D), learner.model.init(model))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.build(learner.optimizer, learner.model).init(params),
        consolidation=learner.model.init_state(streams),
        price=controller.init_price(),
        exposures_P=jnp.zeros(patterns, jnp.int32),
        key=noise,
        skipped=jnp.zeros((), jnp.int32),
    )


def check_batch(learner: Learner, params: Params, batch) -> None:
    """Checks the values of one batch before training.

    Raises:
      ValueError, TypeError: if embedded tokens or gaps have a wrong shape or dtype, or are not finite.
    """
    x_BxTxD, gap_BxT = learner.task.embed(params.task, batch)
    check_inputs(x_BxTxD, learner.model.D, gap_BxT, None)
    if not jnp.all(jnp.isfinite(x_BxTxD)):
        raise ValueError("the first batch embeds to values that are not finite; look for NaN or infinity in the data")


def forward(learner: Learner, params: Params, states: tuple, batch, key: Key | None, train: bool):
    """Returns (task loss, metrics, aux) of a batch. The metrics include the executed operations."""
    params = params._replace(task=fsdp.gathered(params.task))
    x_BxTxD, gap_BxT = learner.task.embed(params.task, batch)
    x_BxTxD = constrained(x_BxTxD, "BTD")
    y_BxTxD, aux = learner.model.apply(params.model, states, x_BxTxD, gap_BxT=gap_BxT, key=key, train=train)
    loss, metrics = learner.task.score(params.task, constrained(y_BxTxD, "BTD"), batch)
    B, T, _ = x_BxTxD.shape
    tokens, executed = jnp.asarray(B * T, jnp.float32), learner.model.operations(aux, (B, T), train)
    metrics |= {"attention_flops": (executed.attention, tokens), "total_flops": (executed.total, tokens)}
    return loss, metrics, aux


class Proposal(NamedTuple):
    """What a step would lead to.

    Attributes:
      state: the state after it, but for the number of steps.
      loss, gradient, norm: of Eq 8, and the gradient's norm.
      metrics: as (sum, count).
    """

    state: TrainState
    loss: Float[Array, ""]
    gradient: Params
    norm: Float[Array, ""]
    metrics: Sums


def begin_streams(learner: Learner, state: TrainState, fresh_B: Bool[Array, "B"] | None) -> TrainState:
    """Empties the memories of rows that begin a stream."""
    if fresh_B is None:
        return state
    return state._replace(consolidation=learner.model.reset(state.consolidation, fresh_B))


def propose(learner: Learner, state: TrainState, batch) -> Proposal:
    """One optimizer step on Eq 8, then an update of consolidation state and price; nothing is checked."""

    def total(params):
        key = jax.random.fold_in(state.key, state.step)
        task_loss, metrics, aux = forward(learner, params, state.consolidation, batch, key, train=True)
        memory_loss, parts = 0.0, {}
        if (sums := learner.model.sums(aux)) is not None:
            memory_loss, parts = objective.memory_loss(sums, state.price.price, learner.objective)
        return task_loss + memory_loss, (task_loss, metrics, aux, parts)

    (loss, (task_loss, metrics, aux, parts)), gradient = jax.value_and_grad(total, has_aux=True)(state.params)
    norm = optax.tree.norm(gradient)
    optimize = optimizer.build(learner.optimizer, learner.model)
    change, opt_state = optimize.update(gradient, state.opt_state, state.params)
    prices = controller.update(state.price, state.step, task_loss, learner.price)
    states = learner.model.release(learner.model.update(state.consolidation, aux), prices.released)
    asked_BxT, exposures_P = learner.task.asked(batch), state.exposures_P
    metrics |= probes.routed(learner.model, aux, {}) | probes.exposed(learner.model, aux, asked_BxT, exposures_P)
    report: dict[str, Any] = {"loss": loss, "task_loss": task_loss, "gradient_norm": norm} | parts
    if learner.model.consolidates:
        report |= {"price": prices.price, "released": prices.released.astype(jnp.float32)}
    metrics |= {name: (value, jnp.ones(())) for name, value in report.items()}
    moved = state._replace(
        params=optax.apply_updates(state.params, change),
        opt_state=opt_state,
        consolidation=states,
        price=prices,
        exposures_P=exposures_P.at[jnp.where(asked_BxT < 0, exposures_P.size, asked_BxT)].add(1, mode="drop"),
        skipped=jnp.zeros((), jnp.int32),
    )
    return Proposal(moved, loss, gradient, norm, metrics)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def train_step(
    learner: Learner, state: TrainState, batch, fresh_B: Bool[Array, "B"] | None = None
) -> tuple[TrainState, Sums]:
    """Does the step of `propose`, unless it must be skipped.

    A step is skipped if loss, gradient, or what would come out of it is not finite, or if the batch embeds to values
    that are not finite or to negative gaps. Then only `step` and `skipped` change, and metrics have no part of it.

    Args:
      fresh_B: rows that begin a stream: their memory is reset before the step.

    Returns:
      The new state, and the step's metrics as (sum, count). `skipped` is the number of steps skipped in a row,
      `skipped_share` 1 if this one was.
    """
    state = begin_streams(learner, state, fresh_B)
    moved, loss, _, norm, metrics = propose(learner, state, batch)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & _fits(learner, state.params, batch)
    finite &= all_finite((moved.params, moved.opt_state, moved.consolidation))
    held, nothing = state._replace(skipped=state.skipped + 1), jax.tree.map(jnp.zeros_like, metrics)
    # A conditional, and not a choice for each array: XLA would compile, and compute, all the checks for each of them.
    after, metrics = jax.lax.cond(finite, lambda: (moved, metrics), lambda: (held, nothing))
    metrics |= {"skipped": (after.skipped, jnp.ones(())), "skipped_share": (~finite, jnp.ones(()))}
    return after._replace(step=state.step + 1), metrics


def _fits(learner: Learner, params: Params, batch) -> Bool[Array, ""]:
    """Whether a batch is one that can be learned from, as `check_batch` says of the first."""
    x_BxTxD, gap_BxT = learner.task.embed(fsdp.gathered(params.task), batch)
    gaps = jnp.zeros(()) if gap_BxT is None else gap_BxT
    return all_finite((x_BxTxD, gaps)) & jnp.all(gaps >= 0)


def all_finite(tree) -> Bool[Array, ""]:
    """Whether all floating-point numbers of a tree are finite."""
    parts = [jnp.all(jnp.isfinite(a)) for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return jnp.all(jnp.stack(parts)) if parts else jnp.asarray(True)


@partial(jax.jit, static_argnums=0)
def evaluate_step(learner: Learner, state: TrainState, batch, key: Key) -> Sums:
    """Returns the metrics of a batch. Decisions are hard and without noise. Evaluation audits count as attention."""
    _, metrics, aux = forward(learner, state.params, state.consolidation, batch, key, train=False)
    return metrics | probes.routed(learner.model, aux, learner.task.groups(batch))


@partial(jax.jit, static_argnums=0)
def visit_step(learner: Learner, params: Params, states: tuple, batch, key: Key) -> tuple[tuple, Sums]:
    """Evaluates a visit of each stream and consolidates what it retrieved: no label, no gradient, fixed parameters.

    Returns:
      The consolidation states after the visit, and the metrics of `evaluate_step`.
    """
    _, metrics, aux = forward(learner, params, states, batch, key, train=False)
    return learner.model.update(states, aux), metrics | probes.routed(learner.model, aux, learner.task.groups(batch))


@partial(jax.jit, static_argnums=0)
def probe_step(learner: Learner, state: TrainState, batch, key: Key) -> Sums:
    """Returns quality and familiarity (`probes.quality`). Every token retrieves; this does not count as attention."""
    audited = dataclasses.replace(learner, model=learner.model.replace(lambda layer: layer.audited()))
    _, _, aux = forward(audited, state.params, state.consolidation, batch, key, train=False)
    return probes.quality(audited.model, aux, learner.task.groups(batch))
