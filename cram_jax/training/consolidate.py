"""Consolidation after training: what a trained model retrieves today becomes what it recalls tomorrow.

It changes parameters, so it is a call of its own and never part of inference. It needs no answers. Every token
retrieves, from a buffer that keeps every event; the layers' `taught` parameters (in CRAM the semantic memory, by Eq 5,
and the familiarity head) learn from what was retrieved. The router, attention and all else stay as they are.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from cram_jax.dims import Array, Key
from cram_jax.training import optimizer, step
from cram_jax.training.step import Learner, TrainState


def attentive(learner: Learner, length: int) -> Learner:
    """The same learner with every token audited, over all events so far. Its routes do not change."""
    return dataclasses.replace(learner, model=learner.model.replace(lambda layer: layer.attentive(length)))


@partial(jax.jit, static_argnums=(0, 1))
def _step(learner: Learner, rate: float, state: TrainState, opt_state: optax.OptState, batch, key: Key):
    """One batch: (state, optimizer state, loss)."""

    def loss(model):
        params = state.params._replace(model=model)
        _, _, aux = step.forward(learner, params, state.consolidation, batch, key, train=False)
        sums = learner.model.sums(aux)
        return jnp.sum(sums.distillation + sums.familiarity) / jnp.maximum(jnp.sum(sums.retrieved), 1), aux

    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(state.params.model)
    change, opt_state = _optimizer(learner, rate).update(gradient, opt_state)
    params = state.params._replace(model=optax.apply_updates(state.params.model, change))
    states = learner.model.update(state.consolidation, aux)
    return state._replace(params=params, consolidation=states), opt_state, value


def _optimizer(learner: Learner, rate: float) -> optax.GradientTransformation:
    """Adam on the taught parameters; the others get no change."""
    labels = lambda model: jax.tree.map(
        lambda taught: "taught" if taught else "kept", optimizer.matches(learner.model.patterns("taught"), model)
    )
    return optax.multi_transform({"taught": optax.adam(rate), "kept": optax.set_to_zero()}, labels)


def consolidate(learner: Learner, state: TrainState, batches, key: Key, rate: float = 2e-3) -> tuple[TrainState, Array]:
    """(state, losses): a trained state whose semantic memory has learned from what the model retrieves in new data.

    Args:
      learner: of a model that consolidates.
      batches: of the learner's task, any number; their answers are not used.
      key: of audits.
      rate: Adam's.

    Returns:
      The given state with other `taught` parameters and other running statistics of retrievals, and the loss of each
      batch.

    Raises:
      ValueError: for a model without layers that consolidate, or without batches.
    """
    if not learner.model.consolidates:
        raise ValueError(f"consolidate needs a model with a semantic memory, got {learner.model.layers}")
    losses = []
    opt_state = _optimizer(learner, rate).init(state.params.model)
    for index, batch in enumerate(batches):
        x_BxTxD, _ = jax.eval_shape(learner.task.embed, state.params.task, batch)
        looking = attentive(learner, x_BxTxD.shape[1])
        state, opt_state, loss = _step(looking, rate, state, opt_state, batch, jax.random.fold_in(key, index))
        losses.append(loss)
    if not losses:
        raise ValueError("consolidate needs at least one batch, got none")
    return state, jnp.stack(losses)
