"""Bytes that a network carries from token to token. Layers count operations: see `functional/operations.py`."""

import jax


def state_bytes(caches: tuple) -> int:
    """Bytes of streaming caches (`Stack.init_cache`).

    Of a recurrent layer it counts the state, without the convolution's few inputs; of attention, keys and values of as
    many tokens as the cache holds.
    """
    carried = [getattr(cache, "state", cache) for place in caches for cache in place]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carried))
