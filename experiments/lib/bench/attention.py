"""Time and memory of skipped attention, beside dense attention."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax import kernels
from lib.bench.measure import megabytes, timed

LENGTHS = (1024, 4096)
SHARES = (0.0, 0.004, 0.016, 0.05, 0.125, 0.25, 0.5, 1.0)
HEADS, DIM = 4, 64
PATTERNS = ("random", "clustered")
WAYS = ("forward", "forward_backward")


def inputs(T: int):
    """Returns random queries, keys and values of one sequence."""
    return [jax.random.normal(jax.random.key(i), (1, T, HEADS, DIM)) for i in range(3)]


def routed(T: int, share: float, pattern: str):
    """Returns marks (1 T) of that share of the tokens: "random" ones, or "clustered" in runs of 32."""
    run = 1 if pattern == "random" else 32
    order = np.random.default_rng(0).permutation(T // run)
    return jnp.asarray(np.repeat(order < round(share * T / run), run)[None])


def naive(q, k, v):
    """Causal attention over a T x T matrix."""
    T = q.shape[1]
    logits = jnp.where(jnp.tril(jnp.ones((T, T), bool)), jnp.einsum("bthk,bshk->bhts", q, k) * DIM**-0.5, -jnp.inf)
    return jnp.einsum("bhts,bshv->bthv", jax.nn.softmax(logits), v)


def skipping(q, k, v, routed_BxT, kept_BxT):
    """A whole call of skipped attention: plan, gather, attention, scatter."""
    return kernels.skip_attention(q, k, v, kernels.make_plan(routed_BxT, kept_BxT=kept_BxT))


def both_ways(f):
    """Returns two compiled functions of f(q, k, v, ...): forward, and forward with backward."""
    value = lambda q, k, v, *rest: jnp.sum(f(q, k, v, *rest) ** 2)
    return jax.jit(f), jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))


def library(q, k, v):
    """JAX's own dense attention."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def times(rounds: int) -> dict:
    """Returns times by share of tokens that attend, for each length, pattern and direction.

    `cheaper` is the time with all tokens attending, divided by the time. `efficiency` is the share times `cheaper`; it
    is 1 if time is proportional to the share. Dense attention is timed in separate rounds, together with ours with all
    tokens attending, because its T x T matrices empty the caches and would slow the small calls.
    """
    out = {}
    for T in LENGTHS:
        qkv, everything = inputs(T), jnp.ones((1, T), bool)
        for way, name in enumerate(WAYS):
            ours, calls, shares = both_ways(skipping)[way], {}, {}
            for pattern, share in itertools.product(PATTERNS, SHARES):
                marks, call = routed(T, share, pattern), f"{pattern}_{1000 * share:.0f}"  # per mille
                calls[call], shares[call] = partial(ours, *qkv, marks, everything), float(marks.mean())
            dense = {"naive": partial(both_ways(naive)[way], *qkv), "jax_nn": partial(both_ways(library)[way], *qkv)}
            dense["ours"] = calls["random_1000"]
            found, full = timed(calls, rounds), timed(dense, rounds)
            for call, time in found.items():
                cheaper = found[f"{call.split('_')[0]}_1000"]["ms"] / time["ms"]
                time |= {"share": shares[call], "cheaper": cheaper, "efficiency": shares[call] * cheaper}
            out[f"{name}_{T}"] = found | {"dense": full}
    return out


def kept(rounds: int) -> dict:
    """Returns times with 1.6% of the tokens attending, to all keys and to 15% of the keys."""
    T = LENGTHS[-1]
    marks, read = routed(T, 0.016, "random"), jax.jit(skipping)
    some = {share: jnp.asarray(np.random.default_rng(1).random((1, T)) < share) for share in (0.15, 1.0)}
    calls = {f"kept_{100 * share:.0f}": partial(read, *inputs(T), marks, keys) for share, keys in some.items()}
    return timed(calls, rounds)


def memory() -> dict:
    """Returns the megabytes of working memory of the compiled programs, by length. It runs nothing."""
    out = {}
    for T in (1024, 2048, 4096, 8192):
        qkv = jax.eval_shape(partial(inputs, T))
        marks = jax.ShapeDtypeStruct((1, T), bool)
        for way, name in enumerate(WAYS):
            programs = {"skipping": both_ways(skipping)[way].lower(*qkv, marks, marks)}
            programs |= {"naive": both_ways(naive)[way].lower(*qkv), "jax_nn": both_ways(library)[way].lower(*qkv)}
            out[f"{name}_{T}"] = {called: megabytes(program.compile()) for called, program in programs.items()}
    return out
