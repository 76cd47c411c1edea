"""Where SRCD's knowledge sits: which memory's loss costs the answers that no attention gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool
from cram_jax.training.learner import Learner, TrainState

PARTS = ("working", "episodic", "semantic", "feed_forward")


def without(state: TrainState, parts: tuple[str, ...], layer: int | slice = slice(None)) -> TrainState:
    """The state with the output of these parts zeroed, in one layer or in all.

    Raises:
      ValueError: for a part that a layer does not have.
    """
    if not set(parts) <= set(PARTS):
        raise ValueError(f"parts must be among {PARTS}, got {parts}")
    model = state.params.model
    silent = lambda part: jax.tree.map(lambda leaf: leaf.at[layer].set(0), getattr(model, part))
    model = model._replace(**{part: silent(part) for part in parts})
    return state._replace(params=state.params._replace(model=model))


def lesions(depth: int) -> dict[str, tuple[tuple[str, ...], int | slice]]:
    """What is taken out, by name. Without all layers the read-out sees the embedding, and what it memorised is left."""
    out = {"semantic": (("semantic",), slice(None)), "feed_forward": (("feed_forward",), slice(None))}
    out |= {f"semantic_layer_{i}": (("semantic",), i) for i in range(depth)}
    return out | {"layers": (PARTS, slice(None))}


@partial(jax.jit, static_argnums=0)
def answers(learner: Learner, state: TrainState, batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """(which tokens are answered right, which attend in some layer)."""
    x_BxTxD, gap_BxT = learner.task.embed(state.params.task, batch)
    # No audits, except where routes are drawn: there whole and lesioned model throw the same dice.
    key = state.key if learner.model.layer.routing.decide == "random" else None
    y_BxTxD, aux = learner.model.apply(state.params.model, state.consolidation, x_BxTxD, gap_BxT=gap_BxT, key=key)
    logits_BxTxA, _ = learner.task.read(state.params.task, y_BxTxD, batch)
    return jnp.argmax(logits_BxTxA, -1) == batch.answer_BxT, jnp.any(aux.routes.attended_BxT, axis=0)


def share_lost(learner: Learner, state: TrainState, batches: list) -> dict[str, float]:
    """What a lesion costs: `recurring_lost_without_*` and, as a control, `new_lost_without_*`.

    Counted are queries answered right by the whole model: recurring ones that do not attend, and new ones. The share
    is of those that are answered wrong after the lesion. Nothing but attention can answer a new query, so what is lost
    there was not knowledge but the way to it. The lesioned model decides anew, and its answer counts however it comes.
    `*_without_semantic_holder` is the lesion of semantic memory in the one layer where it costs most recurring answers.
    """
    damaged = {name: without(state, *lesion) for name, lesion in lesions(learner.model.depth).items()}
    asked, lost = {"recurring": 0, "new": 0}, {(g, name): 0 for g in ("recurring", "new") for name in damaged}
    for batch in batches:
        right_BxT, attended_BxT = map(np.asarray, answers(learner, state, batch))
        query_BxT, new_BxT = np.asarray(batch.answer_BxT >= 0), np.asarray(batch.is_new_BxT)
        counted = {"recurring": query_BxT & ~new_BxT & right_BxT & ~attended_BxT, "new": new_BxT & right_BxT}
        wrong = {name: ~np.asarray(answers(learner, other, batch)[0]) for name, other in damaged.items()}
        for group, among_BxT in counted.items():
            asked[group] += int(among_BxT.sum())
            for name, wrong_BxT in wrong.items():
                lost[group, name] += int((among_BxT & wrong_BxT).sum())
    share = lambda group, n: n / asked[group] if asked[group] else float("nan")
    holder = max(range(learner.model.depth), key=lambda i: lost["recurring", f"semantic_layer_{i}"])
    lost |= {(group, "semantic_holder"): lost[group, f"semantic_layer_{holder}"] for group in asked}
    shares = {f"{group}_lost_without_{name}": share(group, n) for (group, name), n in lost.items()}
    return shares | {"recurring_unattended_queries": asked["recurring"]}
