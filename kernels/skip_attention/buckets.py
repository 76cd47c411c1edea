"""Runs work over a plan in the smallest of a few buckets, which are static lengths of the plan's lists.

The lists of a plan have room for the largest possible plan. Work on every row, such as gathers and projections, would
be done for all of that room. A bucket has shorter lists. At run time the smallest bucket that holds the plan is chosen.
Autodiff of this choice would keep the residuals of every branch, so the gradient is written here: it chooses again and
recomputes.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from ..meshes import parts
from .plan import SkipPlan

SIZES = ((1 / 8, 1 / 4), (1 / 8, 1), (1, 1))  # shares of the plan's (rows, slots)
# A bucket's lists are whole tiles, and xla.py uses the tiles of the whole plan in every bucket. Other tiles would add
# up in another order, and a token's result must not depend, to the last bit, on how many others attend. (On a TPU it
# may: there the tile of keys follows the bucket.)
ROWS = 32  # rows in a tile; a bucket of fewer rows would save less than its compilation costs


def keys_in_tile(slots: int) -> int:
    """Returns the number of keys in a tile, for a plan with so many slots. It is the same in all buckets."""
    return min(128 if slots < 512 else 512, max(slots, 1))


def in_buckets(f: Callable, plan: SkipPlan, *arrays, sizes: tuple = SIZES):
    """Returns f(plan, *arrays), computed with an equivalent plan that has shorter lists.

    Args:
      f: function without traced closures. Its results must not depend on the lengths of the plan's lists.
      arrays: floating-point pytrees, which get gradients.
      sizes: shares of the plan's (rows, slots) in each bucket, the smallest bucket first. The last one is (1, 1).

    Raises:
      ValueError: unless the last bucket is the whole plan.
    """
    if sizes[-1] != (1, 1):
        raise ValueError(f"the last of sizes must be (1, 1), so that some bucket holds every plan, got {sizes}")
    return _in_buckets(f, sizes, plan, arrays)


def in_smallest(f: Callable, plan: SkipPlan, *arrays, sizes: tuple = SIZES):
    """f(plan, *arrays) in the smallest bucket with room for all rows that see something and all keys that are seen."""
    rows = plan.rows_BxC.shape[1] // parts(plan.rows_BxC.shape[1])
    sizes = [size for size in sizes if size == (1, 1) or int(rows * size[0]) >= ROWS]
    shortened = [partial(_shorten, size=size) for size in sizes]
    branch = lambda shorten: lambda plan, arrays: f(shorten(plan), *arrays)
    return jax.lax.switch(_first_that_holds(plan, shortened), list(map(branch, shortened)), plan, arrays)


def _shorten(plan: SkipPlan, size: tuple) -> SkipPlan:
    """The plan with shorter lists. It is equivalent if they have room for it."""
    whole_tiles = lambda places, share, tile: min(math.ceil(places * share / tile) * tile, places)
    number = parts(plan.rows_BxC.shape[1])  # each part of the rows becomes as short
    rows, slots = plan.rows_BxC.shape[1] // number, plan.slots_BxS.shape[1]
    C, S = whole_tiles(rows, size[0], min(ROWS, max(rows, 1))), whole_tiles(slots, size[1], keys_in_tile(slots))
    cut = lambda x_BxC: x_BxC.reshape(len(x_BxC), number, rows)[..., :C].reshape(len(x_BxC), number * C)
    return plan._replace(
        rows_BxC=cut(plan.rows_BxC),
        start_BxC=cut(plan.start_BxC),
        end_BxC=cut(plan.end_BxC),
        slots_BxS=plan.slots_BxS[:, :S],
    )


@jax.custom_batching.custom_vmap
def _largest(count):
    return jnp.max(count, initial=0)


@_largest.def_vmap
def _(size, batched, count):
    """Under vmap: one choice for the whole mapped axis, so that only one branch runs. Nested maps repeat this."""
    return _largest(count), False


def _first_that_holds(plan: SkipPlan, shortened: list):
    number = parts(plan.rows_BxC.shape[1])
    rows_C = jnp.tile(jnp.arange(1, plan.rows_BxC.shape[1] // number + 1), number)
    rows = _largest(jnp.where(plan.end_BxC > plan.start_BxC, rows_C, 0))
    keys = _largest(plan.end_BxC)
    lengths = [(p.rows_BxC.shape[1] // number, p.slots_BxS.shape[1]) for p in (shorten(plan) for shorten in shortened)]
    return jnp.argmax(jnp.stack([(rows <= C) & (keys <= S) for C, S in lengths]))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _in_buckets(f, sizes, plan, arrays):
    return in_smallest(f, plan, *arrays, sizes=sizes)


def _gradient(f, plan, arrays, d):
    return jax.vjp(lambda arrays: f(plan, *arrays), arrays)[1](d)[0]


_in_buckets.defvjp(
    lambda f, sizes, plan, arrays: (_in_buckets(f, sizes, plan, arrays), (plan, arrays)),
    lambda f, sizes, kept, d: (None, in_smallest(partial(_gradient, f), *kept, d, sizes=sizes)),
)
