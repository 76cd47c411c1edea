"""The plan: sorted lists that say which query rows attend to which kept keys. All backends execute the same plan.

A plan never holds a T x T mask. Kept keys are numbered 0, 1, ... in order of position; these numbers are "slots". A
routed query sees one contiguous range of slots. The range ends at the last key kept at or before the query. It starts
where the memory (last M kept), the window (positions back) or the query's segment starts, whichever is latest.

Where the tokens of a sequence are divided among P devices (`meshes.parts`), the list of rows has P parts of equal
length, one for the tokens of each device, with unused places at the end of each. A device then takes its rows from its
own tokens. Which keys are kept, and the keys themselves, all devices get to know.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from ..checks import check_kinds, check_shapes, check_whole
from ..common import segment_firsts
from ..meshes import SEQUENCE, automatic, constrained, divided, in_parts, parts


class SkipPlan(NamedTuple):
    """Attributes:
    rows_BxC: positions of routed queries, ascending; T in unused places. In parts: see above.
    slots_BxS: positions of kept keys, ascending; T in unused places.
    start_BxC: first slot that the row sees.
    end_BxC: one past the last slot that the row sees; `end <= start` if it sees nothing.
    dropped_B: number of routed queries dropped because of `capacity`, lowest score first; their result is 0.
    dropped_kept_B: number of kept keys dropped because of `kept_capacity`, oldest first; no query sees them.
    """

    rows_BxC: Int[Array, "B C"]
    slots_BxS: Int[Array, "B S"]
    start_BxC: Int[Array, "B C"]
    end_BxC: Int[Array, "B C"]
    dropped_B: Int[Array, "B"]
    dropped_kept_B: Int[Array, "B"]

    def gather_queries(self, x_BxTxX: Float[Array, "B T ..."]) -> Float[Array, "B C ..."]:
        """Returns the rows of routed queries; 0 in unused places."""
        local, cut, joined = self._in_parts(x_BxTxX.shape[1])
        return joined(_take(cut(x_BxTxX), local))

    def gather_keys(self, x_BxTxX: Float[Array, "B T ..."]) -> Float[Array, "B S ..."]:
        """Returns the rows of kept keys; 0 in unused places."""
        return (_take if parts(x_BxTxX.shape[1]) == 1 else _take_from_all)(x_BxTxX, self.slots_BxS)

    def scatter(self, x_BxCxX: Shaped[Array, "B C ..."], T: int) -> Shaped[Array, "B T ..."]:
        """Puts compact rows back at their positions; exactly 0 elsewhere."""
        local, cut, joined = self._in_parts(T)
        return joined(_put(T // parts(T), cut(x_BxCxX), local))

    def scatter_keys(self, x_BxSxX: Shaped[Array, "B S ..."], T: int) -> Shaped[Array, "B T ..."]:
        """Puts compact slots back at their positions; exactly 0 elsewhere."""
        return _put_to_all(T, x_BxSxX, self.slots_BxS)

    def _in_parts(self, T: int):
        """(positions of the rows in their part of the tokens, a function that cuts an axis 1 in parts, its inverse)."""
        if (number := parts(T)) == 1:
            return self.rows_BxC, lambda x: x, lambda x: x
        joined = lambda x: constrained(x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:]), "BT")
        local = in_parts(self.rows_BxC, number) - jnp.arange(number)[:, None] * (T // number)
        return local, partial(in_parts, number=number), joined


def _gather(x_BxTxX, index_BxC):
    one = lambda x, i: x.at[i].get(mode="fill", fill_value=0)
    for _ in range(index_BxC.ndim - 1):
        one = jax.vmap(one)
    return one(x_BxTxX, index_BxC)


# Positions do not repeat. So taking rows and putting them back are each other's transpose, and both are gathers. Plain
# autodiff would use a scatter-add, which takes a CPU ten times as long.
@jax.custom_vjp
def _take(x_BxTxX, index_BxC):
    """Rows of x at ascending positions; 0 for position T."""
    return _gather(x_BxTxX, index_BxC)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _put(T: int, x_BxCxX, index_BxC):
    """(B T ...) with the rows of x at their positions, 0 elsewhere."""
    C = index_BxC.shape[-1]
    inverse = lambda index_C: jnp.full(T, C).at[index_C].set(jnp.arange(C), mode="drop")
    for _ in range(index_BxC.ndim - 1):
        inverse = jax.vmap(inverse)
    return _gather(x_BxCxX, inverse(index_BxC))


_take.defvjp(
    lambda x, index_BxC: (_gather(x, index_BxC), (index_BxC, jnp.zeros((x.shape[index_BxC.ndim - 1], 0)))),
    lambda kept, d_BxCxX: (_put(kept[1].shape[0], d_BxCxX, kept[0]), None),
)
_put.defvjp(
    lambda T, x_BxCxX, index_BxC: (_put(T, x_BxCxX, index_BxC), index_BxC),
    lambda T, index_BxC, d_BxTxX: (_gather(d_BxTxX, index_BxC), None),
)


@jax.custom_vjp
def _take_from_all(x_BxTxX, index_BxS):
    """`_take` of tokens that are divided among devices: each adds those that it has, and 0 for others."""

    def own(x_BxTxX, index_BxS):
        T = x_BxTxX.shape[1]
        local_BxS = index_BxS - jax.lax.axis_index(SEQUENCE) * T
        return jax.lax.psum(_gather(x_BxTxX, jnp.where(local_BxS < 0, T, local_BxS)), SEQUENCE)

    return divided(own, (x_BxTxX, index_BxS), ("BT", "BS"), "BS")


def _put_to_all(T: int, x_BxSxX, index_BxS):
    return constrained(_put(T, constrained(x_BxSxX, "BS"), index_BxS), "BT")


_take_from_all.defvjp(
    lambda x_BxTxX, index_BxS: (_take_from_all(x_BxTxX, index_BxS), (index_BxS, jnp.zeros((x_BxTxX.shape[1], 0)))),
    lambda kept, d_BxSxX: (_put_to_all(kept[1].shape[0], d_BxSxX, kept[0]), None),
)


def _positions(marked_BxT, capacity: int):
    """The first `capacity` positions of marked places, ascending, padded with T."""
    T = marked_BxT.shape[1]
    return jnp.sort(jnp.where(marked_BxT, jnp.arange(T), T), axis=1)[:, :capacity].astype(jnp.int32)


def _strongest(marked_BxT, score_BxT, capacity: int):
    """The marks of the `capacity` highest scores; of equal scores the earlier position stays."""
    # Unmarked places come last, whatever their score. NaN counts as the lowest score.
    lowest_BxT = jnp.where(jnp.isnan(score_BxT), -jnp.inf, score_BxT)
    order_TxB = jnp.lexsort((-lowest_BxT.T, ~marked_BxT.T), axis=0)
    rank_BxT = jnp.argsort(order_TxB, axis=0).T
    return marked_BxT & (rank_BxT < capacity)


def _positions_in_parts(marked_BxT, number: int):
    """`_positions` of each part, one after the other, with room for all."""
    B, T = marked_BxT.shape
    place_BxT = jnp.where(marked_BxT, jnp.arange(T), T)
    return jnp.sort(in_parts(place_BxT, number), axis=2).reshape(B, T).astype(jnp.int32)


def make_plan(
    routed_BxT: Bool[Array, "B T"],
    *,
    kept_BxT: Bool[Array, "B T"] | None = None,
    score_BxT: Float[Array, "B T"] | None = None,
    window: int | None = None,
    memory: int | None = None,
    capacity: int | None = None,
    kept_capacity: int | None = None,
    segment_BxT: Int[Array, "B T"] | None = None,
) -> SkipPlan:
    """Returns the plan of an attention call.

    Args:
      routed_BxT: marks of the queries that attend.
      kept_BxT: marks of the keys that may be seen; all by default. A query also sees a key kept at its own position.
      score_BxT: if there are more routed queries than `capacity`, those with the highest scores stay; by default the
        earliest.
      window: a query sees at most this many positions, its own included.
      memory: a query sees at most the last `memory` kept keys (first in, first out).
      capacity: largest number of routed queries in a sequence; T by default. Others are dropped and counted. Which
        ones depends on later tokens, too, so use a capacity below T only in training.
      kept_capacity: largest number of kept keys in a sequence; T by default. The latest ones stay. So early queries
        lose keys to later ones: use a capacity below T only in training.
      segment_BxT: a query sees only keys of its own segment, which begins where the number changes.

    Raises:
      ValueError: if shapes do not match, or a window, memory or capacity is below 1.
      TypeError: if marks are not marks, scores not floating point, or segments not integers.
    """
    check_shapes(routed_BxT=routed_BxT, kept_BxT=kept_BxT, score_BxT=score_BxT, segment_BxT=segment_BxT)
    T = routed_BxT.shape[1]
    check_kinds(jnp.bool_, routed_BxT=routed_BxT, kept_BxT=kept_BxT)
    check_kinds(jnp.floating, score_BxT=score_BxT)
    check_kinds(jnp.integer, segment_BxT=segment_BxT)
    check_whole(window=window, memory=memory, capacity=capacity, kept_capacity=kept_capacity)

    lists = min(capacity or T, T), min(kept_capacity or T, T)
    return automatic(partial(_plan, lists, window, memory), routed_BxT, kept_BxT, score_BxT, segment_BxT)


def _plan(lists: tuple[int, int], window, memory, routed_BxT, kept_BxT, score_BxT, segment_BxT) -> SkipPlan:
    (B, T), (C, S) = routed_BxT.shape, lists
    number = parts(T)
    kept_BxT = jnp.ones((B, T), bool) if kept_BxT is None else kept_BxT
    seen_BxT = kept_BxT
    if S < T:
        newest_BxT = jnp.cumsum(kept_BxT[:, ::-1], axis=1)[:, ::-1] <= S
        seen_BxT = kept_BxT & newest_BxT
    attends_BxT = routed_BxT
    if C < T:
        score_BxT = -jnp.broadcast_to(jnp.arange(T, dtype=jnp.float32), (B, T)) if score_BxT is None else score_BxT
        attends_BxT = _strongest(routed_BxT, score_BxT, C)

    seen_BxT = constrained(seen_BxT, "BS")
    count_BxT = jnp.cumsum(seen_BxT, axis=1, dtype=jnp.int32)  # keys seen so far, this position included
    before = lambda position_BxT: jnp.where(  # number of seen keys before a position
        position_BxT > 0, jnp.take_along_axis(count_BxT, jnp.maximum(position_BxT - 1, 0), axis=1), 0
    )
    start_BxT = jnp.zeros((B, T), jnp.int32)
    if memory is not None:
        start_BxT = jnp.maximum(start_BxT, count_BxT - memory)
    if window is not None:
        start_BxT = jnp.maximum(start_BxT, before(jnp.broadcast_to(jnp.arange(T) - window + 1, (B, T))))
    if segment_BxT is not None:
        start_BxT = jnp.maximum(start_BxT, before(segment_firsts(segment_BxT)))

    rows_BxC = _positions(attends_BxT, C) if number == 1 else _positions_in_parts(attends_BxT, number)
    total = lambda marked_BxT: jnp.sum(marked_BxT, axis=1, dtype=jnp.int32)
    return SkipPlan(
        rows_BxC,
        _positions(seen_BxT, S),
        _gather(start_BxT, rows_BxC),
        _gather(count_BxT, rows_BxC),  # 0 in unused places: they see nothing
        total(routed_BxT) - total(attends_BxT),
        total(kept_BxT) - total(seen_BxT),
    )
