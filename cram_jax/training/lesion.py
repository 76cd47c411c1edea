"""Where the knowledge sits: which memory's loss costs the answers that no attention gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool
from cram_jax.training.learner import Learner, TrainState

PARTS = ("semantic", "feed_forward")


def without(state: TrainState, part: str) -> TrainState:
    """The state with the output of "semantic" memory or of the "feed_forward" networks zeroed, in all layers."""
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}, got {part!r}")
    model = state.params.model
    model = model._replace(**{part: jax.tree.map(jnp.zeros_like, getattr(model, part))})
    return state._replace(params=state.params._replace(model=model))


@partial(jax.jit, static_argnums=0)
def answers(learner: Learner, state: TrainState, batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """(which tokens are answered right, which attend in some layer)."""
    x_BxTxD, gap_BxT = learner.task.embed(state.params.task, batch)
    y_BxTxD, aux = learner.model.apply(state.params.model, state.consolidation, x_BxTxD, gap_BxT=gap_BxT)
    logits_BxTxA, _ = learner.task.read(state.params.task, y_BxTxD, batch)
    return jnp.argmax(logits_BxTxA, -1) == batch.answer_BxT, jnp.any(aux.routes.attended_BxT, axis=0)


def share_lost(learner: Learner, state: TrainState, batches: list) -> dict[str, float]:
    """Of the recurring queries that do not attend and are answered right: the share answered wrong after a lesion.

    Attention is decided by the whole model; the lesioned one decides anew, and its answer counts however it comes.
    """
    asked, lost = 0, dict.fromkeys(PARTS, 0)
    for batch in batches:
        right_BxT, attended_BxT = map(np.asarray, answers(learner, state, batch))
        recurring_BxT = np.asarray((batch.answer_BxT >= 0) & ~batch.is_new_BxT)
        counted_BxT = recurring_BxT & right_BxT & ~attended_BxT
        asked += int(counted_BxT.sum())
        for part in PARTS:
            right_without_BxT, _ = answers(learner, without(state, part), batch)
            lost[part] += int((counted_BxT & ~np.asarray(right_without_BxT)).sum())
    shares = {f"recurring_lost_without_{part}": n / asked if asked else float("nan") for part, n in lost.items()}
    return shares | {"recurring_unattended_queries": asked}
