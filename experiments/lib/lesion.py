"""Lesions: which right answers of a CRAM model on SRCD are lost when one of its parts is removed."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool
from cram_jax.training.step import Learner, TrainState

PARTS = ("working", "episodic", "semantic", "feed_forward")


def without(state: TrainState, parts: tuple[str, ...], layer: int | None = None) -> TrainState:
    """Returns the state with the parameters of these parts set to 0, so that the parts output 0.

    A semantic memory that is a posterior has no parameters. It recalls 0, but is as sure of it as before.

    Args:
      state: the trained state.
      parts: names in PARTS.
      layer: number of one layer in the network; None for all layers.

    Raises:
      ValueError: if a part is not in PARTS.
    """
    if not set(parts) <= set(PARTS):
        raise ValueError(f"parts must be among {PARTS}, got {parts}")
    repeat, only = (slice(None), None) if layer is None else divmod(layer, len(state.params.model))

    zero = partial(jax.tree.map, lambda leaf: leaf.at[repeat].set(0))

    def silenced(params):
        return params._replace(**{part: zero(getattr(params, part)) for part in parts if hasattr(params, part)})

    def recalls_nothing(params, held):
        solved = "semantic" in parts and not hasattr(params, "semantic")
        return held._replace(memory=held.memory._replace(up_SxFxD=zero(held.memory.up_SxFxD))) if solved else held

    model, consolidation = list(state.params.model), list(state.consolidation)
    for place, params in enumerate(model):
        if only in (None, place):
            model[place], consolidation[place] = silenced(params), recalls_nothing(params, consolidation[place])
    return state._replace(params=state.params._replace(model=tuple(model)), consolidation=tuple(consolidation))


def lesions(depth: int) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """Returns (parts, layer) of each lesion, by name. "layers" leaves only the embedding and the read-out."""
    out = {"semantic": (("semantic",), None), "feed_forward": (("feed_forward",), None)}
    out |= {f"semantic_layer_{i}": (("semantic",), i) for i in range(depth)}
    return out | {"layers": (PARTS, None)}


@partial(jax.jit, static_argnums=0)
def answers(learner: Learner, state: TrainState, batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """Returns marks of the tokens that are answered right, and of those that attend in some layer."""
    x_BxTxD, gap_BxT = learner.task.embed(state.params.task, batch)
    # There are no audits. Random routes need a key: the same one for the whole and for the lesioned model.
    random = any(getattr(layer.routing, "decide", None) == "random" for layer in learner.model.layers)
    key = state.key if random else None
    y_BxTxD, aux = learner.model.apply(state.params.model, state.consolidation, x_BxTxD, gap_BxT=gap_BxT, key=key)
    logits_BxTxA, _ = learner.task.read(state.params.task, y_BxTxD, batch)
    attended_LxBxT = jnp.stack([routes.attended_BxT for _, routes in learner.model.routes(aux)])
    return jnp.argmax(logits_BxTxA, -1) == batch.answer_BxT, jnp.any(attended_LxBxT, axis=0)


def share_lost(learner: Learner, state: TrainState, batches: list) -> dict[str, float]:
    """Returns the share of right answers that each lesion loses: `recurring_lost_without_*`, `new_lost_without_*`.

    - Recurring: of the recurring queries that the whole model answers right without attention, the share that the
      lesioned model answers wrong.
    - New, a control: of the new queries that the whole model answers right, the share that the lesioned model answers
      wrong. Only attention can answer them, so such a loss shows damage to attention, not to stored knowledge.

    The lesioned model makes its own routes, and its answers count whether they attend or not.
    `*_without_semantic_holder` removes semantic memory in the single layer where that loses most recurring answers.

    Args:
      learner: all its layers must be CRAM layers.
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
