"""Consolidation after training: semantic memory learns what a trained model retrieves in new data.

It changes parameters, so it is a separate call and never part of inference. It needs no answers. Every token retrieves,
from a buffer that keeps every event. The layers' `taught` parameters learn from the retrievals: in CRAM the semantic
memory, by Eq 5, and the familiarity head. All other parameters stay the same.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from cram_jax.dims import Array, Key
from cram_jax.training import optimizer, step
from cram_jax.training.step import Learner, Params, TrainState


def attentive(learner: Learner, length: int) -> Learner:
    """Returns the learner with every token audited, over all events so far. Its routes do not change."""
    return dataclasses.replace(learner, model=learner.model.replace(lambda layer: layer.attentive(length)))


@partial(jax.jit, static_argnums=(0, 1))
def learn(
    looking: Learner, rate: float, params: Params, states: tuple, opt_state: optax.OptState, batch, key: Key
) -> tuple[Params, tuple, optax.OptState, Array]:
    """Learns from one batch.

    Args:
      looking: the learner as `attentive` returns it.
      rate, opt_state: of `taught_optimizer`.

    Returns:
      (parameters, consolidation states, state of the optimizer, loss).
    """

    def loss(model):
        _, _, aux = step.forward(looking, params._replace(model=model), states, batch, key, train=False)
        sums = looking.model.sums(aux)
        return jnp.sum(sums.distillation + sums.familiarity) / jnp.maximum(jnp.sum(sums.retrieved), 1), aux

    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(params.model)
    change, opt_state = taught_optimizer(looking, rate).update(gradient, opt_state)
    params = params._replace(model=optax.apply_updates(params.model, change))
    return params, looking.model.update(states, aux), opt_state, value


def taught_optimizer(learner: Learner, rate: float) -> optax.GradientTransformation:
    """Adam for the taught parameters of the model; the others do not change."""
    labels = lambda model: jax.tree.map(
        lambda taught: "taught" if taught else "kept", optimizer.matches(learner.model.patterns("taught"), model)
    )
    return optax.multi_transform({"taught": optax.adam(rate), "kept": optax.set_to_zero()}, labels)


def consolidate(learner: Learner, state: TrainState, batches, key: Key, rate: float = 2e-3) -> tuple[TrainState, Array]:
    """Teaches a trained model's semantic memory what the model retrieves in these batches.

    Args:
      learner: its model must have layers that consolidate.
      state: the trained state.
      batches: batches of the learner's task, at least one. Their answers are not used.
      key: random key of the audits.
      rate: Adam's learning rate.

    Returns:
      (state, losses): the state with new `taught` parameters and new running statistics of retrievals, and the loss of
      each batch.

    Raises:
      ValueError: if no layer of the model consolidates, or there is no batch.
    """
    if not learner.model.consolidates:
        raise ValueError(f"consolidate needs a model with a semantic memory, got {learner.model.layers}")
    losses, params, states = [], state.params, state.consolidation
    opt_state = taught_optimizer(learner, rate).init(params.model)
    for index, batch in enumerate(batches):
        x_BxTxD, _ = jax.eval_shape(learner.task.embed, params.task, batch)
        looking, drawn = attentive(learner, x_BxTxD.shape[1]), jax.random.fold_in(key, index)
        params, states, opt_state, loss = learn(looking, rate, params, states, opt_state, batch, drawn)
        losses.append(loss)
    if not losses:
        raise ValueError("consolidate needs at least one batch, got none")
    return state._replace(params=params, consolidation=states), jnp.stack(losses)
