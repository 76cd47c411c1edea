"""Random arguments of both scans, and how close results have to be, for several files of tests."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.kernels import PalimpsaState, palimpsa_scan, ssd_scan

B, H, G, K, V = 2, 4, 2, 3, 5


def softplus(x):
    return np.log1p(np.exp(x))


def arguments(name: str, T: int, dtype=np.float64, seed: int = 0) -> dict:
    """Random arguments of a scan by name, a carried state included."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(size=shape)
    out = {"q_BxTxGxK": draw(B, T, G, K), "k_BxTxGxK": draw(B, T, G, K), "v_BxTxHxV": draw(B, T, H, V)}
    if name == "ssd":
        out |= {"log_decay_BxTxH": -softplus(draw(B, T, H)), "state": draw(B, H, V, K)}
    else:
        out |= {"beta_BxTxHxV": softplus(draw(B, T, H, V)), "dt_BxTxH": softplus(draw(B, T, H))}
        out |= {"rate_H": softplus(draw(H)), "prior_H": 0.3 + softplus(draw(H))}
        out |= {"state": PalimpsaState(draw(B, H, V, K), softplus(draw(B, H, V, K)))}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), out)


def scan(name: str):
    return {"ssd": ssd_scan, "palimpsa": palimpsa_scan}[name]


@cache
def compiled(name: str):
    """The scan, compiled as a whole, which takes less time than its parts one by one."""
    return jax.jit(scan(name), static_argnames=("scale", "chunk", "backend"))


def assert_close(got, want, tolerance: float):
    """Every array within the tolerance, relative to its largest entry.

    In float64, which rounds at 1e-16: 1e-14 for the same sums, 1e-13 for those of some ten tokens in another order,
    1e-12 where quotients or a hundred tokens are among them.
    """
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=tolerance * max(np.max(np.abs(w)), 1e-300))
