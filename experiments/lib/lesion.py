"""Where a CRAM model holds what it knows of SRCD: the answers without attention that are lost with each memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool
from cram_jax.training.step import Learner, TrainState

PARTS = ("working", "episodic", "semantic", "feed_forward")


def without(state: TrainState, parts: tuple[str, ...], layer: int | None = None) -> TrainState:
    """The state with the output of these parts zeroed, in one layer (by its number in the network) or in all.

    Raises:
      ValueError: for a part that is none of PARTS.
    """
    if not set(parts) <= set(PARTS):
        raise ValueError(f"parts must be among {PARTS}, got {parts}")
    repeat, only = (slice(None), None) if layer is None else divmod(layer, len(state.params.model))

    def silenced(place: int, params):
        if only not in (None, place):
            return params
        return params._replace(
            **{part: jax.tree.map(lambda leaf: leaf.at[repeat].set(0), getattr(params, part)) for part in parts}
        )

    model = tuple(silenced(place, params) for place, params in enumerate(state.params.model))
    return state._replace(params=state.params._replace(model=model))


def lesions(depth: int) -> dict[str, tuple[tuple[str, ...], int | None]]:
    """What is removed, by name. Without all layers the read-out sees the embedding, and what it memorised is left."""
    out = {"semantic": (("semantic",), None), "feed_forward": (("feed_forward",), None)}
    out |= {f"semantic_layer_{i}": (("semantic",), i) for i in range(depth)}
    return out | {"layers": (PARTS, None)}


@partial(jax.jit, static_argnums=0)
def answers(learner: Learner, state: TrainState, batch) -> tuple[Bool[Array, "B T"], Bool[Array, "B T"]]:
    """(which tokens are answered right, which attend in some layer)."""
    x_BxTxD, gap_BxT = learner.task.embed(state.params.task, batch)
    # No audits. Random routes need a key, which is the same for the whole and the lesioned model.
    random = any(layer.routing.decide == "random" for layer in learner.model.layers)
    key = state.key if random else None
    y_BxTxD, aux = learner.model.apply(state.params.model, state.consolidation, x_BxTxD, gap_BxT=gap_BxT, key=key)
    logits_BxTxA, _ = learner.task.read(state.params.task, y_BxTxD, batch)
    attended_LxBxT = jnp.stack([routes.attended_BxT for _, routes in learner.model.routes(aux)])
    return jnp.argmax(logits_BxTxA, -1) == batch.answer_BxT, jnp.any(attended_LxBxT, axis=0)


def share_lost(learner: Learner, state: TrainState, batches: list) -> dict[str, float]:
    """What a lesion costs: `recurring_lost_without_*` and, as a control, `new_lost_without_*`.

    Each is a share of the queries that the whole model answers right: of the recurring ones that do not attend, and of
    the new ones. It is the share that is answered wrong after the lesion. Only attention can answer a new query, so
    what is lost there is not knowledge but the way to it. The lesioned model routes anew, and its answer counts whether
    it attends or not. `*_without_semantic_holder` is the lesion of semantic memory in the one layer where it costs most
    recurring answers.

    Args:
      learner: all of whose layers are CRAM layers.
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
