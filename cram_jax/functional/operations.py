"""Floating-point operations, counted from the plans that were executed.

A multiply-add is two operations, and only matrix products are counted: of the rows, slots and pairs in a plan. A
backend multiplies more than that, because it takes whole tiles and lists as long as the longest of a batch; the shorter
the sequences, the more. Wall clocks tell what is left of the saving. A compiler's own count is no evidence: it takes a
loop's body once, and a branch's cost whether or not it was taken.
"""

from typing import NamedTuple

import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Scalar
from cram_jax.functional.layer import Operations

# The gradient of a matrix product is two products; attention's weights are computed once more, which makes 5 products
# for 2. In buckets, the backward pass also repeats the forward pass for the rows of the plan.
BACKWARD, ATTENTION_BACKWARD, REPEATED = 3, 3.5, 1


class Work(NamedTuple):
    """What attention computes for a batch, in one layer or with a leading L axis.

    Attributes:
      tokens: all of them.
      rows: queries projected and answered.
      slots: keys and values projected.
      pairs: (query, key) pairs.
    """

    tokens: Scalar
    rows: Scalar
    slots: Scalar
    pairs: Scalar


def plan_work(plan: kernels.SkipPlan, shape: tuple[int, int]) -> Work:
    """The work of a plan over sequences of that (batch, length)."""
    seen_BxC = jnp.maximum(plan.end_BxC - plan.start_BxC, 0)
    total = lambda x: jnp.sum(x, dtype=jnp.float32)
    tokens = jnp.asarray(shape[0] * shape[1], jnp.float32)
    return Work(tokens, total(seen_BxC > 0), total(jnp.max(plan.end_BxC, axis=1)), total(seen_BxC))


def dense_work(shape: tuple[int, int]) -> Work:
    """The work of a layer in which every token attends to all before it."""
    batch, length = shape
    tokens = float(batch * length)
    return Work(*(jnp.asarray(x) for x in (tokens, tokens, tokens, tokens * (length + 1) / 2)))


def attention(work: Work, D: int, heads: int, head_dim: int, *, train: bool, in_buckets: bool) -> Array:
    """Operations of attention: projections of rows and slots, and products of pairs.

    Args:
      in_buckets: whether it runs in buckets of a plan, which adds a repeated forward pass in training.
    """
    pair = 4 * heads * head_dim  # a key and a value of `head_dim`
    repeated = REPEATED if in_buckets else 0
    projections, pairs = (BACKWARD + repeated, ATTENTION_BACKWARD + repeated) if train else (1, 1)
    return projections * (pair * D * work.rows + pair * D * work.slots) + pairs * pair * work.pairs


def network(inputs: int, hidden: int, outputs: int) -> int:
    """Operations a token of a network with one hidden layer, forward."""
    return 2 * hidden * (inputs + outputs)


def per_token(count: int, tokens: Array | float, train: bool) -> Array | float:
    """Operations of all tokens, from those of one forward."""
    return (BACKWARD if train else 1) * count * tokens


def recurrent(weights: int, state: int, metaplastic: bool, shape: tuple[int, int], train: bool) -> Operations:
    """Operations of a layer without attention: its weights, and its state decayed, written and read.

    A number of the state takes 5 operations. It takes 10 with an importance, which is decayed, written and divided by
    too. Training is taken as three times that; matrix products inside a chunk, which do more, are not counted.

    Args:
      weights: multiply-adds a token with parameters.
      state: numbers in the state of one sequence.
    """
    forward = 2 * weights + (10 if metaplastic else 5) * state
    return Operations(0.0, per_token(forward, float(shape[0] * shape[1]), train))
