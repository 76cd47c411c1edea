"""Where the knowledge sits: which memory's loss costs the answers that no attention gives."""

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.training.learner import Learner, TrainState


def without(state: TrainState, part: str) -> TrainState:
    """The state with the output of "semantic" memory or of the "feed_forward" networks zeroed, in all layers."""
    model = state.params.model
    zero = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    if part == "semantic":
        model = model._replace(semantic=zero(model.semantic))
    elif part == "feed_forward":
        model = model._replace(feed_forward=zero(model.feed_forward))
    else:
        raise ValueError(f"part must be 'semantic' or 'feed_forward', got {part!r}")
    return state._replace(params=state.params._replace(model=model))


def share_lost(learner: Learner, state: TrainState, batches: list) -> dict[str, float]:
    """Of the recurring queries that do not attend and are answered right: the share answered wrong after a lesion.

    Attention is decided by the whole model; the lesioned one decides anew, and its answer counts however it comes.
    """

    @jax.jit
    def right_and_attended(state, batch):
        x_BxTxD, gap_BxT = learner.task.embed(state.params.task, batch)
        y_BxTxD, aux = learner.model.apply(state.params.model, state.consolidation, x_BxTxD, gap_BxT=gap_BxT)
        logits_BxTxA, _ = learner.task.read(state.params.task, y_BxTxD, batch)
        return jnp.argmax(logits_BxTxA, -1) == batch.answer_BxT, jnp.any(aux.routes.attended_BxT, axis=0)

    lost, out = {"semantic": 0, "feed_forward": 0}, {}
    asked = 0
    for batch in batches:
        right_BxT, attended_BxT = right_and_attended(state, batch)
        recurring_BxT = (batch.answer_BxT >= 0) & ~batch.is_new_BxT
        counted_BxT = np.asarray(recurring_BxT & right_BxT & ~attended_BxT)
        asked += int(counted_BxT.sum())
        for part in lost:
            right_without_BxT, _ = right_and_attended(without(state, part), batch)
            lost[part] += int((counted_BxT & ~np.asarray(right_without_BxT)).sum())
    for part, count in lost.items():
        out[f"recurring_lost_without_{part}"] = count / asked if asked else float("nan")
    return out | {"recurring_unattended_queries": asked}
