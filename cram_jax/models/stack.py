"""A stack of equal layers behind a layer's own contract; parameters, states and caches on a leading L axis."""

from types import ModuleType

import jax
import jax.numpy as jnp

from cram_jax.dims import Key


def init(key: Key, layer: ModuleType, cfg, depth: int):
    """Parameters of `depth` layers, stacked."""
    return jax.vmap(lambda k: layer.init(k, cfg))(jax.random.split(key, depth))


def repeat(tree, depth: int):
    """One layer's state or cache, `depth` times over."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], depth, axis=0), tree)


def apply(layer: ModuleType, params, states, x_BxTxD, *, cfg, gap_BxT=None, key=None, train=False, segment_BxT=None):
    """Layer after layer over the whole sequence; aux stacked on L. Each layer is rematerialised in backward."""
    depth = jax.tree.leaves(params)[0].shape[0]

    def one(x_BxTxD, per_layer):
        params, state, index = per_layer
        layer_key = None if key is None else jax.random.fold_in(key, index)
        return layer.apply(
            params, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=layer_key, train=train, segment_BxT=segment_BxT
        )

    return jax.lax.scan(one, x_BxTxD, (params, states, jnp.arange(depth)), unroll=True)


def step(layer: ModuleType, params, states, caches, x_BxD, *, cfg, gap_B=None, key=None):
    """Layer after layer for one token; caches and aux stacked on L."""
    depth = jax.tree.leaves(params)[0].shape[0]

    def one(x_BxD, per_layer):
        params, state, cache, index = per_layer
        layer_key = None if key is None else jax.random.fold_in(key, index)
        x_BxD, cache, aux = layer.step(params, state, cache, x_BxD, cfg=cfg, gap_B=gap_B, key=layer_key)
        return x_BxD, (cache, aux)

    x_BxD, (caches, aux) = jax.lax.scan(one, x_BxD, (params, states, caches, jnp.arange(depth)), unroll=True)
    return x_BxD, caches, aux
