"""Gives a trained model metaplasticity without changing, at first, what it computes."""

import dataclasses
from typing import TypeVar

import jax
import jax.numpy as jnp

from cram_jax.dims import Key
from cram_jax.functional.mamba2 import Mamba2Config, Mamba2Params
from cram_jax.functional.palimpsa import PalimpsaConfig, PalimpsaParams
from cram_jax.functional.recurrence import init_importance

Params = TypeVar("Params", Mamba2Params, PalimpsaParams)
Config = TypeVar("Config", Mamba2Config, PalimpsaConfig)


def make_metaplastic(params: Params, cfg: Config, *, rank: int = 8, key: Key | None = None) -> tuple[Params, Config]:
    """The metaplastic twin of a layer, or of the stacked layers of a network: (params, cfg).

    Importance starts at exactly 0 in every head, so with the prior at 1 the twin is the same function; only rounding
    differs, since another scan computes it. The gradient of each head's scale is not 0 (`recurrence.importance`). The
    paper's own conversion changes the mixers' outputs, because it starts with importance above 0.

    Args:
      params: of one layer, or with leading axes of layers (`models/stack.py`).
      rank: hidden units of the networks that tell importance.
      key: for those networks, which nothing was learned of yet; a fixed one by default.

    Raises:
      ValueError: for a rank below 1, or a model that is metaplastic already.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    if cfg.rank:
        raise ValueError(f"the model is metaplastic already: {type(cfg).__name__}.rank is {cfg.rank}")
    values = cfg.head_dim if isinstance(cfg, Mamba2Config) else cfg.value_dim
    layers = params.norm_D.shape[:-1]
    one = lambda key: init_importance(key, cfg.D, rank, cfg.heads, values, scale=0.0)
    keys = jax.random.split(jax.random.key(0) if key is None else key, layers)
    for _ in layers:
        one = jax.vmap(one)
    added = jax.tree.map(lambda x: x.astype(jnp.float32), one(keys))
    return params._replace(importance=added), dataclasses.replace(cfg, rank=rank)
