"""A small posterior CRAM layer in which everything happens, and ways to run it, for several files of tests."""

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.functional import posterior_cram, two_stage
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.posterior import PosteriorConfig
from cram_jax.functional.posterior_cram import PosteriorCRAMConfig
from cram_jax.functional.stream_memory import LearningConfig

B, T, D, KEYS = 2, 48, 8, 4
CFG = PosteriorCRAMConfig(
    D=D,
    F=16,
    contradictions=3,
    episodic=EpisodicConfig(heads=2, head_dim=6, memory=5, write_bias=0.0),
    semantic=PosteriorConfig(blocks=4, features=32),
    learning=LearningConfig(shown=0.1),
    routing=two_stage.TwoStageConfig(known_below=0.06, need_bias=-1.0, audit_rate=0.1, evaluation_audit_rate=0.1),
)


def lively(cfg: PosteriorCRAMConfig = CFG, seed: int = 0):
    """Parameters with which every route, write and contradiction occurs."""
    params = posterior_cram.init(jax.random.key(seed), cfg)
    draw = np.random.default_rng(seed + 4)  # one with which all of them occur; NumPy compiles nothing
    scale = lambda leaf: 0.5 * leaf.shape[0] ** -0.5 if leaf.ndim > 1 else 0.2
    moved = jax.tree.map(lambda x: x + jnp.asarray(scale(x) * draw.standard_normal(x.shape), x.dtype), params)
    need = moved.router.need
    router = moved.router._replace(need=need._replace(out_FxD=8 * need.out_FxD), trust=jnp.asarray(0.1))
    return moved._replace(router=router)


def tokens(seed: int, rows: int = B):
    """Events about few keys, so that addresses recur: (x_BxTxD, gap_BxT)."""
    kind, noise, gap = jax.random.split(jax.random.key(seed), 3)
    key_BxT = jax.random.randint(kind, (rows, T), 0, KEYS)
    table = 2 * jax.random.normal(jax.random.key(99), (KEYS, D))
    noise_BxTxD = 0.3 * jax.random.normal(noise, (rows, T, D))
    return table[key_BxT] + noise_BxTxD, 1 + jax.random.exponential(gap, (rows, T))


def widened(tree):
    """In float64."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)


def visited(params, state, seeds, cfg=CFG, key=None):
    """The state after visits in float64, a batch of which has as many rows as there are streams, or B."""

    @jax.jit
    def one(state, x_BxTxD, gap_BxT):
        _, aux = posterior_cram.apply(params, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=key)
        return cfg.update(state, aux.stats)

    rows = len(state.memory.ridge) if state.memory.ridge.ndim > 1 else B
    for seed in seeds:
        state = one(state, *map(widened, tokens(seed, rows)))
    return state


def streamed(params, state, x_BxTxD, gap_BxT, cfg=CFG, key=None):
    """`step` over a visit: (the last cache, (outputs, aux) with time in front)."""

    def one(cache, token):
        y, cache, aux = posterior_cram.step(params, state, cache, token[0], cfg=cfg, gap_B=token[1], key=key)
        return cache, (y, aux)

    cache = widened(posterior_cram.init_cache(cfg, len(x_BxTxD)))
    return jax.lax.scan(one, cache, (jnp.swapaxes(x_BxTxD, 0, 1), gap_BxT.T))
