"""Jamba (Lieber et al. 2024, arXiv 2403.19887) as a block: one layer of attention among several of Mamba-2.

Without its mixture of experts, and with a feed-forward network after the attention only.
"""

import dataclasses
from typing import NamedTuple

import jax

from cram_jax.dims import Gap, Gaps, Key, Segments, Token, Tokens
from cram_jax.functional import attention, mamba2
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.common import at_least_one
from cram_jax.functional.mamba2 import Mamba2Config


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class JambaConfig:
    """mamba, attention: of the layers. recurrent: how many of Mamba-2 there are to the one of attention.
    before: how many of them stand before it.
    """

    mamba: Mamba2Config = Mamba2Config()
    attention: AttentionConfig = AttentionConfig()
    recurrent: int = 7
    before: int = 4

    def __post_init__(self):
        at_least_one(self, "recurrent")
        if self.mamba.D != self.attention.D:
            raise ValueError(f"mamba.D and attention.D must agree, got {self.mamba.D} and {self.attention.D}")
        if not 0 <= self.before <= self.recurrent:
            raise ValueError(f"before must be from 0 to recurrent={self.recurrent}, got {self.before}")

    @property
    def D(self) -> int:
        return self.mamba.D


class JambaParams(NamedTuple):
    """Attributes: the Mamba-2 layers' parameters with a leading axis, and the attention layer's."""

    mamba: mamba2.Mamba2Params
    attention: attention.AttentionParams


class JambaCache(NamedTuple):
    """Attributes: the caches of the Mamba-2 layers, in order, and the attention layer's."""

    mamba: tuple[mamba2.Mamba2Cache, ...]
    attention: attention.AttentionCache

    @property
    def state(self):
        """What is carried from token to token, the convolutions' few inputs apart."""
        return tuple(cache.state for cache in self.mamba), self.attention


def init(key: Key, cfg: JambaConfig) -> JambaParams:
    """As the layers' own."""
    recurrent, attends = jax.random.split(key)
    keys = jax.random.split(recurrent, cfg.recurrent)
    return JambaParams(jax.vmap(lambda k: mamba2.init(k, cfg.mamba))(keys), attention.init(attends, cfg.attention))


def init_state(cfg: JambaConfig) -> tuple[()]:
    """Nothing is learned outside the parameters."""
    return ()


def init_cache(cfg: JambaConfig, batch: int) -> JambaCache:
    """Nothing seen yet."""
    recurrent = tuple(mamba2.init_cache(cfg.mamba, batch) for _ in range(cfg.recurrent))
    return JambaCache(recurrent, attention.init_cache(cfg.attention, batch))


def _layer(params: JambaParams, i: int) -> mamba2.Mamba2Params:
    return jax.tree.map(lambda leaf: leaf[i], params.mamba)


def apply(
    params: JambaParams,
    state: tuple[()],
    x_BxTxD: Tokens,
    *,
    cfg: JambaConfig,
    gap_BxT: Gaps | None = None,
    key: Key | None = None,
    train: bool = False,
    segment_BxT: Segments | None = None,
) -> tuple[Tokens, tuple[()]]:
    """A whole sequence. `state`, `key` and `train` are of the shared contract and change nothing here."""
    del state, key, train
    more = dict(gap_BxT=gap_BxT, segment_BxT=segment_BxT)
    for i in range(cfg.recurrent + 1):
        if i == cfg.before:
            x_BxTxD, _ = attention.apply(params.attention, (), x_BxTxD, cfg=cfg.attention, **more)
        if i < cfg.recurrent:
            x_BxTxD, _ = mamba2.apply(_layer(params, i), (), x_BxTxD, cfg=cfg.mamba, **more)
    return x_BxTxD, ()


def step(
    params: JambaParams,
    state: tuple[()],
    cache: JambaCache,
    x_BxD: Token,
    *,
    cfg: JambaConfig,
    gap_B: Gap | None = None,
    key: Key | None = None,
) -> tuple[Token, JambaCache, tuple[()]]:
    """One token, streaming; equals `apply` at that position, as far as the attention's cache reaches back."""
    del state, key
    recurrent, attends = list(cache.mamba), cache.attention
    for i in range(cfg.recurrent + 1):
        if i == cfg.before:
            x_BxD, attends, _ = attention.step(params.attention, (), attends, x_BxD, cfg=cfg.attention, gap_B=gap_B)
        if i < cfg.recurrent:
            x_BxD, recurrent[i], _ = mamba2.step(_layer(params, i), (), recurrent[i], x_BxD, cfg=cfg.mamba, gap_B=gap_B)
    return x_BxD, JambaCache(tuple(recurrent), attends), ()
