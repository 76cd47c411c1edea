"""Small configurations of every layer, for the batteries that all layers pass. A new layer joins by being listed."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import INPUTS

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.layer import Layer, apply, step
from cram_jax.functional.mamba2 import Mamba2Config
from cram_jax.functional.palimpsa import PalimpsaConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.functional.seqboat import SeqBoatConfig
from cram_jax.functional.two_stage import TwoStageConfig
from cram_jax.functional.working import WorkingConfig

B, T, D = 2, 24, 8
ATTENTION = AttentionConfig(D=D, F=16, heads=2, head_dim=4, context=T)
LAYERS = {
    "cram": CRAMConfig(
        D=D,
        F=16,
        working=WorkingConfig(body="gated_scan", width=8),  # a body that carries a state
        episodic=EpisodicConfig(heads=2, head_dim=4, memory=6, write_bias=0.0),
        routing=RoutingConfig(features=INPUTS, evaluation_audit_rate=0.3),  # so that 48 tokens show some audits
    ),
    "posterior cram": PosteriorCRAMConfig(
        D=D,
        F=16,
        working=WorkingConfig(body="gated_scan", width=8),
        episodic=EpisodicConfig(heads=2, head_dim=4, memory=6, write_bias=0.0),
        semantic=PosteriorConfig(blocks=4, features=16),
        routing=TwoStageConfig(need_bias=0.0, evaluation_audit_rate=0.3),
    ),
    "attention": ATTENTION,
    "rotary attention": AttentionConfig(D=D, F=16, heads=2, head_dim=4, context=T, rotary=True),
    "mamba2": Mamba2Config(D=D, heads=4, head_dim=4, state=3, groups=2),
    "metamamba2": Mamba2Config(D=D, heads=2, head_dim=4, state=3, groups=2, rank=2, norm_groups=2),
    "gated linear": PalimpsaConfig(D=D, heads=2, key_dim=3, value_dim=4, rank=0),
    "gated delta": PalimpsaConfig(D=D, heads=2, key_dim=3, value_dim=4, rank=0, delta=True),
    "palimpsa": PalimpsaConfig(D=D, F=16, heads=2, key_dim=3, value_dim=4, rank=2),
    "seqboat": SeqBoatConfig(ATTENTION, memory=5, working=WorkingConfig(body="gated_scan", width=8)),
}
EACH = pytest.mark.parametrize("cfg", LAYERS.values(), ids=LAYERS)


def moved(params, repeats: int = 0, seed: int = 1):
    """Parameters far from their initial values, so that every route and decision occurs.

    Args:
      repeats: leading axes of each parameter that are none of the layer's own.
    """
    draw = np.random.default_rng(seed)  # compiles nothing
    scale = lambda x: 0.5 * x.shape[repeats] ** -0.5 if x.ndim > repeats + 1 else 0.2
    return jax.tree.map(lambda x: x + jnp.asarray(scale(x) * draw.standard_normal(x.shape), x.dtype), params)


def layer(cfg: Layer, seed: int = 0):
    """(parameters, state) of one layer that decides by itself."""
    return _layer(cfg, seed, jax.config.jax_enable_x64)


@cache
def _layer(cfg: Layer, seed: int, wide: bool):
    return moved(jax.jit(cfg.init)(jax.random.key(seed))), cfg.release(cfg.init_state())


def sequence(seed: int = 2):
    """(x_BxTxD, gap_BxT)."""
    x, gap = jax.random.split(jax.random.key(seed))
    return jax.random.normal(x, (B, T, D)), 1 + jax.random.exponential(gap, (B, T))


def whole(cfg: Layer, **more):
    """`apply`, compiled, as a function of (params, state, x_BxTxD, gap_BxT, key)."""
    return jax.jit(lambda p, s, x, g, key: apply(p, s, x, cfg=cfg, gap_BxT=g, key=key, **more))


def streamed(cfg: Layer):
    """`step` over whole sequences, compiled, as a function of the same: (tokens, aux), batch first."""

    def run(params, state, x_BxTxD, gap_BxT, key):
        def one(cache, now):
            y_BxD, cache, aux = step(params, state, cache, now[0], cfg=cfg, gap_B=now[1], key=key)
            return cache, (y_BxD, aux._replace(stats=()))  # sums, which have no axis of tokens

        _, out = jax.lax.scan(one, cfg.init_cache(B), (x_BxTxD.swapaxes(0, 1), gap_BxT.T))
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), out)

    return jax.jit(run)
