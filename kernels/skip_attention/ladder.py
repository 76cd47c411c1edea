"""Work over a plan in the shortest of a few lists of static length that hold it.

A plan's lists are as long as they might ever have to be. Gathers, projections and whatever else is done row by row
would be done for every place; on a ladder it is done for the places of the lowest rung that is long enough, chosen at
run time. Plain autodiff of a choice keeps what every branch would need; here a gradient chooses again and recomputes.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from .plan import SkipPlan

RUNGS = ((8, 4), (8, 1), (1, 1))  # lengths of (rows, slots), as parts of the plan's own; the last one always holds
# A rung's lists are whole tiles, and in xla.py tiles are those of the whole plan: other shapes are added up in other
# orders, while a token's result may not depend, to the last bit, on how many others attend. (On a TPU it may: there
# the tile of keys follows the rung.)
ROWS = 32  # in a tile; a list shorter than one saves less than its compilation costs


def keys_in_tile(slots: int) -> int:
    """Of a plan with so many slots; the same for its rungs."""
    return min(128 if slots < 512 else 512, slots)


def on_ladder(f: Callable, plan: SkipPlan, *arrays, rungs: tuple = RUNGS):
    """f(plan, *arrays) with a shorter plan of the same meaning.

    Args:
      f: a function without traced closures, whose results do not depend on the lengths of the plan's lists.
      arrays: floating-point pytrees; gradients go to them.
      rungs: lengths of (rows, slots) as parts of the plan's, the shortest first; the last must be (1, 1).
    """
    return _call(f, rungs, plan, arrays)


def _worthwhile(plan: SkipPlan, rungs: tuple) -> tuple:
    return tuple(rung for rung in rungs if rung == (1, 1) or plan.rows_BxC.shape[1] // rung[0] >= ROWS)


def _narrow(plan: SkipPlan, rung: tuple[int, int]) -> SkipPlan:
    """The plan with shorter lists, right where it fits them."""
    whole = lambda places, part, tile: min(-(-places // (part * tile)) * tile, places)
    rows, slots = plan.rows_BxC.shape[1], plan.slots_BxS.shape[1]
    C, S = whole(rows, rung[0], min(ROWS, rows)), whole(slots, rung[1], keys_in_tile(slots))
    return plan._replace(
        rows_BxC=plan.rows_BxC[:, :C],
        start_BxC=plan.start_BxC[:, :C],
        end_BxC=plan.end_BxC[:, :C],
        slots_BxS=plan.slots_BxS[:, :S],
    )


@jax.custom_batching.custom_vmap
def _largest(count):
    return jnp.max(count)


@_largest.def_vmap
def _(size, batched, count):
    """One answer for all of a mapped axis, so that a choice made by it stays a choice; of an outer one, too."""
    return _largest(count), False


def switch(f: Callable, plan: SkipPlan, *arrays, rungs=RUNGS):
    """f(plan, *arrays) on the lowest rung that holds every row that sees something and every key that is seen."""
    rungs = _worthwhile(plan, rungs)
    on = lambda rung: lambda plan, arrays: f(_narrow(plan, rung), *arrays)
    return jax.lax.switch(_rung(plan, rungs), [on(rung) for rung in rungs], plan, arrays)


def _rung(plan: SkipPlan, rungs):
    rows_C = jnp.arange(1, plan.rows_BxC.shape[1] + 1)
    rows = _largest(jnp.where(plan.end_BxC > plan.start_BxC, rows_C, 0))
    keys = _largest(plan.end_BxC)
    sizes = [_narrow(plan, rung) for rung in rungs]
    fits = [(rows <= p.rows_BxC.shape[1]) & (keys <= p.slots_BxS.shape[1]) for p in sizes]
    return jnp.argmax(jnp.stack(fits))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _call(f, rungs, plan, arrays):
    return switch(f, plan, *arrays, rungs=rungs)


def _back(f, plan, arrays, d):
    return jax.vjp(lambda arrays: f(plan, *arrays), arrays)[1](d)[0]


_call.defvjp(
    lambda f, rungs, plan, arrays: (_call(f, rungs, plan, arrays), (plan, arrays)),
    lambda f, rungs, kept, d: (None, switch(partial(_back, f), *kept, d, rungs=rungs)),
)
