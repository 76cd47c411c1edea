"""Conversion: gives a trained layer metaplasticity without changing what it computes at first."""

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
    """(params, cfg) of a metaplastic layer that computes the same function as this one.

    Importance starts at exactly 0 in every head, so with a prior of 1 the function is the same; only rounding differs,
    because another scan computes it. The gradient of each head's scale is not 0 (`recurrence.importance`). The paper's
    own conversion changes the mixers' outputs, because it starts with importance above 0.

    Args:
      params: of one layer, or of several with leading axes (`models/stack.py`).
      rank: hidden units of the new networks for importance.
      key: for their initial weights; a fixed key by default.

    Raises:
      ValueError: for a rank below 1, or a layer that is metaplastic already.
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
