"""Consolidation after training: what a trained model retrieves today becomes what it recalls tomorrow.

Never a part of inference: it changes parameters, so it is a call of its own. It needs no answers. For every token it
retrieves, from a buffer that keeps every event, and teaches the semantic memory (Eq 5) and the familiarity head
what came of it. The router, attention and all else stay as they are.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from cram_jax.dims import Array, Key
from cram_jax.functional import consolidation
from cram_jax.training import learner as learning
from cram_jax.training.learner import Learner, TrainState

OPEN = 1e3  # added to the write gate's logit: nothing is dropped


TAUGHT = ("semantic", "familiarity")  # all other parameters stay


def attentive(learner: Learner, length: int) -> Learner:
    """The same learner, whose every token retrieves, from all events so far. Who is routed where does not change."""
    learner = learning.auditing_all(learner)
    layer = learner.model.layer
    write_bias = layer.episodic.write_bias + OPEN
    opened = dataclasses.replace(layer.episodic, memory=max(length, layer.episodic.memory), write_bias=write_bias)
    model = dataclasses.replace(learner.model, layer=dataclasses.replace(layer, episodic=opened))
    return dataclasses.replace(learner, model=model)


@partial(jax.jit, static_argnums=(0, 1))
def _step(learner: Learner, rate: float, state: TrainState, taught: dict, opt_state: optax.OptState, batch, key: Key):
    """One batch: (parts, optimizer state, statistics of what was retrieved, loss)."""

    def loss(taught):
        params = state.params._replace(model=state.params.model._replace(**taught))
        _, _, aux = learning.forward(learner, params, state.consolidation, batch, key, train=False)
        retrieved = jnp.maximum(jnp.sum(aux.sums.retrieved), 1)
        return jnp.sum(aux.sums.distillation + aux.sums.familiarity) / retrieved, aux.stats

    (value, stats), gradient = jax.value_and_grad(loss, has_aux=True)(taught)
    change, opt_state = optax.adam(rate).update(gradient, opt_state)
    return optax.apply_updates(taught, change), opt_state, stats, value


def consolidate(learner: Learner, state: TrainState, batches, key: Key, rate: float = 2e-3) -> tuple[TrainState, Array]:
    """A trained state whose semantic memory and familiarity have learned from what it retrieves in new data.

    Args:
      learner: of a model that consolidates.
      batches: of the learner's task, in any number; their answers are not looked at.
      key: of audits.
      rate: Adam's.

    Returns:
      The state, equal to the one given but for the two parts' parameters and the running statistics of retrievals; and
      the loss of each batch.

    Raises:
      ValueError: for a model without semantic memory, or without batches.
    """
    if not learner.model.consolidates:
        raise ValueError(f"consolidate needs a model with a semantic memory, got {learner.model.layer}")
    taught, losses = {name: getattr(state.params.model, name) for name in TAUGHT}, []
    opt_state = optax.adam(rate).init(taught)
    for index, batch in enumerate(batches):
        x_BxTxD, _ = jax.eval_shape(learner.task.embed, state.params.task, batch)
        looking = attentive(learner, x_BxTxD.shape[1])
        taught, opt_state, stats, loss = _step(
            looking, rate, state, taught, opt_state, batch, jax.random.fold_in(key, index)
        )
        state = state._replace(consolidation=consolidation.update(state.consolidation, stats))
        losses.append(loss)
    if not losses:
        raise ValueError("consolidate needs at least one batch, got none")
    params = state.params._replace(model=state.params.model._replace(**taught))
    return state._replace(params=params), jnp.stack(losses)
