"""What a layer had to compute: floating-point operations, counted from the plans it executed.

A multiply-add is two operations; only products of matrices are counted: of the rows, slots and pairs in a plan. A
backend multiplies more, because it takes whole tiles, and lists that hold the longest of a batch: the shorter the
sequences, the more. What is left of the saving, clocks tell. Nothing is asked of a compiler, whose own count takes a
loop's body once and a branch's cost whether it was taken or not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax import kernels
from cram_jax.dims import Array, Scalar, Segments
from cram_jax.functional import matrix_memory, uncertainty
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig, CRAMRoutes
from cram_jax.functional.jamba import JambaConfig
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.routing import feature_width
from cram_jax.functional.seqboat import SeqBoatConfig, SeqBoatRoutes
from cram_jax.functional.working_memory import WorkingConfig


class Work(NamedTuple):
    """Attributes: counts over a batch, of one layer or with a leading L axis.
    tokens: all of them.
    rows: queries projected and answered.
    slots: keys and values projected.
    pairs: (query, key) pairs.
    """

    tokens: Scalar
    rows: Scalar
    slots: Scalar
    pairs: Scalar


def work(
    routes: CRAMRoutes | SeqBoatRoutes, cfg: CRAMConfig | SeqBoatConfig, segment_BxT: Segments | None = None
) -> Work:
    """The work of one layer's plan, which its attended and kept tokens decide."""
    kept_BxT = routes.kept_BxT
    memory = cfg.memory if isinstance(cfg, SeqBoatConfig) else cfg.episodic.memory
    plan = kernels.make_plan(routes.attended_BxT, kept_BxT=kept_BxT, memory=memory, segment_BxT=segment_BxT)
    seen_BxC = jnp.maximum(plan.end_BxC - plan.start_BxC, 0)
    total = lambda x: jnp.sum(x, dtype=jnp.float32)
    tokens, slots = jnp.asarray(kept_BxT.size, jnp.float32), total(jnp.max(plan.end_BxC, axis=1))
    return Work(tokens, total(seen_BxC > 0), slots, total(seen_BxC))


def dense_work(batch: int, length: int) -> Work:
    """The work of a layer in which every token attends to all before it."""
    tokens = float(batch * length)
    return Work(*(jnp.asarray(x) for x in (tokens, tokens, tokens, tokens * (length + 1) / 2)))


def flops(cfg: CRAMConfig | AttentionConfig | SeqBoatConfig, work: Work, *, train: bool = False) -> tuple[Array, Array]:
    """(attention_flops, total_flops) of a layer.

    Args:
      train: forward, backward and what the backward pass computes again; else forward alone.
    """
    if isinstance(cfg, AttentionConfig):
        H, K, V, again = cfg.heads, cfg.head_dim, cfg.head_dim, 0
        beside = 4 * cfg.D * cfg.F
    elif isinstance(cfg, SeqBoatConfig):
        H, K, V, again = cfg.attention.heads, cfg.attention.head_dim, cfg.attention.head_dim, 1
        beside = _working(cfg.D, cfg.working) + 4 * cfg.D + 4 * cfg.D * cfg.attention.F
    else:
        H, K, V, again = cfg.episodic.heads, cfg.episodic.head_dim, cfg.episodic.head_dim, 1
        beside = _beside(cfg)
    row, slot, pair = 2 * cfg.D * H * (K + V), 2 * cfg.D * H * (K + V), 2 * H * (K + V)
    # The gradient of a product is two; attention's weights are computed once more: 5 products for 2. Where lists
    # are as long as needed, the backward pass repeats the forward one for the rows of the plan.
    projections, pairs = (3 + again, 3.5 + again) if train else (1, 1)
    attention = projections * (row * work.rows + slot * work.slots) + pairs * pair * work.pairs
    lessons = 0.0
    if train and isinstance(cfg, CRAMConfig):  # distillation: forward, again, and the gradient of the parameters
        lessons = 3 * 4 * cfg.D * cfg.semantic.rank * work.rows
    return attention, attention + lessons + (3 if train else 1) * beside * work.tokens


def _matrix_memory(D: int, W: int, metaplastic: bool) -> int:
    H, K = W // matrix_memory.VALUES, matrix_memory.KEYS
    projections = D * (2 * H + 2 * H * K + W) + 2 * D * W
    importance = matrix_memory.RANK * (D + W) if metaplastic else 0
    return 2 * (projections + importance) + (10 if metaplastic else 5) * W * K


def _working(D: int, cfg: WorkingConfig) -> int:
    W = cfg.width
    if cfg.body == "ct_ode":
        return 2 * D * W + 2 * W * W * (cfg.steps - 1) + 2 * W * D
    if cfg.body == "gated_scan":
        return 3 * 2 * D * W + 2 * W * D
    return _matrix_memory(D, W, cfg.body == "palimpsa")


def _beside(cfg: CRAMConfig) -> int:
    """Operations a token that no route saves."""
    D = cfg.D
    network = lambda inputs, hidden, outputs: 2 * hidden * (inputs + outputs)
    return (
        _working(D, cfg.working)
        + network(D, cfg.semantic.rank, D)
        + network(D, cfg.consolidation.width, 1)
        + network(feature_width(D, cfg.routing), cfg.routing.width, 3)
        + network(D + 1, cfg.episodic.width, 1)
        + network(D, cfg.F, D)
        + 2 * D * uncertainty.CODES
    )


def recurrent_flops(cfg: Mamba2Config | PalimpsaConfig, *, train: bool = False) -> int:
    """Operations a token of a layer without attention: its projections, and its state decayed, written and read.

    A number of the state takes 5, and 10 where it has an importance, which is decayed, written and divided by too.
    Training is taken as three times that; matrix products inside a chunk, which do more, are not counted.
    """
    if isinstance(cfg, Mamba2Config):
        state, values = cfg.inner * cfg.state, cfg.inner
        projected = cfg.D * (2 * cfg.inner + cfg.convolved + cfg.heads)
    else:
        state, values = cfg.heads * cfg.key_dim * cfg.value_dim, cfg.heads * cfg.value_dim
        projected = cfg.D * (cfg.convolved + 2 * cfg.heads + 2 * values + 3 * cfg.F)
    importance = cfg.rank * (cfg.D + values)
    forward = 2 * (projected + importance + cfg.conv * cfg.convolved) + (10 if cfg.rank else 5) * state
    return (3 if train else 1) * forward


def state_bytes(caches: tuple) -> int:
    """What layers carry from token to token, from their caches (`Stack.init_cache`): a recurrent layer's state, its
    convolution's few inputs apart; keys and values of as many tokens as a cache has room for."""
    carried = [getattr(cache, "state", cache) for cache in caches]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carried))


def executed(
    cfg: CRAMConfig | AttentionConfig | Mamba2Config | PalimpsaConfig | JambaConfig | SeqBoatConfig,
    depth: int,
    routes: CRAMRoutes | SeqBoatRoutes | tuple[()],
    shape: tuple[int, int],
    train: bool,
) -> dict[str, tuple[Scalar, Scalar]]:
    """{"attention_flops", "total_flops"} of all layers, as (sum, tokens): their mean is a token's.

    Args:
      routes: of all layers, with a leading L axis; not looked at for layers that do not route.
      shape: (batch, length).
    """
    tokens = jnp.asarray(shape[0] * shape[1], jnp.float32)
    if isinstance(cfg, CRAMConfig | SeqBoatConfig):
        attention_L, total_L = flops(cfg, jax.vmap(lambda one: work(one, cfg))(routes), train=train)
        attention, total = jnp.sum(attention_L), jnp.sum(total_L)
    else:
        attention, total = (depth * jnp.asarray(x, jnp.float32) for x in _fixed(cfg, shape, train))
    return {"attention_flops": (attention, tokens), "total_flops": (total, tokens)}


def _fixed(cfg, shape: tuple[int, int], train: bool) -> tuple[Array | float, Array | float]:
    """(attention, total) of a layer whose work does not depend on what it reads."""
    if isinstance(cfg, JambaConfig):
        attention, total = _fixed(cfg.attention, shape, train)
        return attention, total + cfg.recurrent * _fixed(cfg.mamba, shape, train)[1]
    if isinstance(cfg, AttentionConfig):
        return flops(cfg, dense_work(*shape), train=train)
    return 0.0, float(shape[0] * shape[1] * recurrent_flops(cfg, train=train))
