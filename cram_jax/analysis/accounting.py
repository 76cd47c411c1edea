"""Counts the bytes that a network carries from token to token. For operations see `functional/operations.py`."""

import jax


def state_bytes(caches: tuple) -> int:
    """Returns the number of bytes of streaming caches (`Stack.init_cache`).

    A recurrent layer counts with its state, without the few inputs that its convolution keeps. Attention counts with
    the keys and values of a full cache.
    """
    carried = [getattr(cache, "state", cache) for place in caches for cache in place]
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(carried))
