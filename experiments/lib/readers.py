"""How a trained model reads fresh streams, visit after visit: what it carries along, and what it did in a visit."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cram_jax.dims import Array, Bool, Float, Key, Tokens
from cram_jax.models.stack import Stack
from cram_jax.tasks.srcd import SRCDBatch
from cram_jax.training.consolidate import attentive, learn, taught_optimizer
from cram_jax.training.step import Learner, Params
from lib.controls import by_chance, never_written


class Reading(NamedTuple):
    """What a model did in a visit.

    Attributes:
      y_BxTxD: its outputs, from which the task reads answers.
      attended_BxT: tokens that attended for their answer, in some layer.
      operations: floating-point operations of all streams together.
      to_consolidate: number of retrievals whose only purpose was to teach a memory. They are attention, too.
    """

    y_BxTxD: Tokens
    attended_BxT: Bool[Array, "B T"]
    operations: Float[Array, ""]
    to_consolidate: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads each visit by itself, but for the memories of the streams. Parameters stay as they are.

    consolidates: whether the memories learn from what was retrieved; else they stay empty.
    """

    learner: Learner
    consolidates: bool = False

    def begin(self, params: Params, trained: tuple, size: int) -> Any:
        """What is carried from visit to visit, for fresh streams.

        Args:
          trained: the consolidation states at the end of training: what they hold of all streams together is kept.
        """
        return self.learner.model.for_streams(trained, size)

    def read(self, params: Params, carried: Any, batch: SRCDBatch, key: Key) -> tuple[Any, Reading]:
        """(what is carried on, what was done) in one visit of each stream. Answers are not looked at."""
        y_BxTxD, aux = _applied(self.learner, params, carried, batch, key)
        done = _reading(self.learner.model, y_BxTxD, aux)
        return self.learner.model.update(carried, aux) if self.consolidates else carried, done


@dataclasses.dataclass(frozen=True)
class Carrying(Reader):
    """Reads all visits of a stream as one sequence, token by token: a recurrent state goes on from visit to visit."""

    def begin(self, params: Params, trained: tuple, size: int):
        return self.learner.model.init_cache(size)

    def read(self, params: Params, carried: Any, batch: SRCDBatch, key: Key):
        x_BxTxD, gap_BxT = self.learner.task.embed(params.task, batch)
        states = self.learner.model.init_state()
        y_BxTxD, carried, aux = self.learner.model.rollout(params.model, states, carried, x_BxTxD, gap_BxT=gap_BxT)
        return carried, _reading(self.learner.model, y_BxTxD, aux)


@dataclasses.dataclass(frozen=True)
class Immediate(Reader):
    """Reads each visit token by token, and consolidates after each token instead of after each visit.

    So what a kept event writes (`LearningConfig.shown`) answers the queries of the same visit. As much is forgotten in
    a visit as if it were read at once.
    """

    def read(self, params: Params, carried: Any, batch: SRCDBatch, key: Key):
        model = self.learner.model
        x_BxTxD, gap_BxT = self.learner.task.embed(params.task, batch)
        B, T = gap_BxT.shape
        keep = [state.memory.keep for state in carried]

        def one(now, token):
            states, caches = now
            x_BxD, gap_B = token
            y_BxD, caches, aux = model.step(params.model, states, caches, x_BxD, gap_B=gap_B)
            return (model.update(states, aux), caches), (y_BxD, [routes for _, routes in model.routes(aux)])

        spread = [_keeping(state, by ** (1 / T)) for state, by in zip(carried, keep, strict=True)]
        over_time = x_BxTxD.swapaxes(0, 1), gap_BxT.T
        (carried, _), (y_TxBxD, routes) = jax.lax.scan(one, (tuple(spread), model.init_cache(B)), over_time)
        carried = tuple(_keeping(state, by) for state, by in zip(carried, keep, strict=True))
        attended_BxT = jnp.any(jnp.stack([one.attended_BxT for one in routes]), axis=0).T
        return carried, Reading(y_TxBxD.swapaxes(0, 1), attended_BxT, jnp.asarray(jnp.nan), jnp.zeros(()))


def _keeping(state, keep):
    return state._replace(memory=state.memory._replace(keep=keep))


@dataclasses.dataclass(frozen=True)
class Descending(Reader):
    """Each stream has a copy of the layers, whose `taught` parameters descend on its own retrievals (Eq 5).

    A visit is answered first, and then taught: every token retrieves, and Adam does some steps. Its state is carried
    on. Operations include these retrievals, but not the backward pass, which goes through the adapter alone.

    rate: Adam's learning rate. steps: of Adam, in a visit.
    """

    rate: float = 2e-3
    steps: int = 1

    def begin(self, params: Params, trained: tuple, size: int):
        optimizer = taught_optimizer(self.learner, self.rate)
        copies = lambda tree: jax.tree.map(lambda leaf: jnp.repeat(leaf[None], size, axis=0), tree)
        return copies((params.model, trained, optimizer.init(params.model)))

    def read(self, params: Params, carried: Any, batch: SRCDBatch, key: Key):
        looking = attentive(self.learner, batch.kind_BxT.shape[1])

        def of_stream(carried, visit):
            model, states, opt_state = carried
            own, visit = params._replace(model=model), jax.tree.map(lambda leaf: leaf[None], visit)
            y_BxTxD, aux = _applied(self.learner, own, states, visit, None)
            answered = _reading(self.learner.model, y_BxTxD, aux)
            _, aux = _applied(looking, own, states, visit, key)
            retrieved = _reading(looking.model, y_BxTxD, aux)

            def step(_, now):
                return learn(looking, self.rate, *now, visit, key)[:-1]

            own, states, opt_state = jax.lax.fori_loop(0, self.steps, step, (own, states, opt_state))
            operations = answered.operations + retrieved.operations
            attended = jnp.sum(retrieved.attended_BxT, dtype=jnp.float32)
            return (own.model, states, opt_state), answered._replace(operations=operations, to_consolidate=attended)

        carried, done = jax.vmap(of_stream)(carried, batch)
        return carried, Reading(
            done.y_BxTxD[:, 0], done.attended_BxT[:, 0], jnp.sum(done.operations), jnp.sum(done.to_consolidate)
        )


def _applied(learner: Learner, params: Params, states: tuple, batch: SRCDBatch, key: Key | None):
    x_BxTxD, gap_BxT = learner.task.embed(params.task, batch)
    return learner.model.apply(params.model, states, x_BxTxD, gap_BxT=gap_BxT, key=key)


def _reading(model: Stack, y_BxTxD: Tokens, aux) -> Reading:
    """Without a router every token attends if there is attention at all."""
    shape = y_BxTxD.shape[:2]
    executed = model.operations(aux, shape, False)
    routes = [one.attended_BxT for _, one in model.routes(aux)]
    attended_BxT = jnp.any(jnp.stack(routes), axis=0) if routes else jnp.broadcast_to(executed.attention > 0, shape)
    return Reading(y_BxTxD, attended_BxT, executed.total, jnp.zeros(()))


# What an entry names as its reader: functions of (learner, settings of the deployment)


def fixed(learner: Learner, settings: ConfigDict) -> Reader:
    """Memories stay empty, if the model has any. Then the event alone decides who attends.

    An empty memory need not be asked, compared with or solved, so no operations are counted for it.
    """
    return Reader(dataclasses.replace(learner, model=learner.model.replace(never_written)))


def learning(learner: Learner, settings: ConfigDict) -> Reader:
    """Memories learn from what was retrieved."""
    return Reader(learner, consolidates=True)


def immediate(learner: Learner, settings: ConfigDict) -> Reader:
    """Memories learn after each token."""
    return Immediate(learner)


def chance(learner: Learner, settings: ConfigDict) -> Reader:
    """As `fixed`; of the tokens that would attend, chance picks the share `budget`."""
    model = learner.model.replace(lambda layer: by_chance(layer, settings.budget))
    return Reader(dataclasses.replace(learner, model=model))


def carrying(learner: Learner, settings: ConfigDict) -> Reader:
    """A recurrent state is carried from visit to visit."""
    return Carrying(learner)


def descending(learner: Learner, settings: ConfigDict) -> Reader:
    """Each stream has an adapter of its own, which learns by gradients."""
    return Descending(learner, rate=settings.descent.rate, steps=settings.descent.steps)
