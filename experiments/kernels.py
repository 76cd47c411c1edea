"""How the time of skipped attention falls: `make bench`. JSON and figures go to experiments/results/kernels.

python experiments/kernels.py [--parts=attention,kept,stream] [--lengths=1024,4096] [--rounds=9]

| part | what is timed |
|---|---|
| attention | plan, gather, attention, scatter against utilisation; forward, and with backward; dense baselines |
| kept | the same read with 15% of the keys kept, and with all |
| stream | a CRAM model's time a token as its context grows, against dense attention with a full cache |
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cram_jax import kernels
from cram_jax.analysis import kernel_figures
from cram_jax.analysis.summary import versions
from cram_jax.analysis.timing import timed
from cram_jax.functional import consolidation
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.models.stack import Stack

PARTS = flags.DEFINE_list("parts", ["attention", "kept", "stream"], "What to measure.")
LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096"], "Sequence lengths of the attention part.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each time; the median counts.")
RESULTS = flags.DEFINE_string("results", "experiments/results/kernels", "Where JSON and figures go.")

SHARES = (0.0, 0.004, 0.016, 0.05, 0.125, 0.25, 0.5, 1.0)
HEADS, DIM = 4, 64


def inputs(T: int):
    """Queries, keys and values of one sequence."""
    return [jax.random.normal(jax.random.key(i), (1, T, HEADS, DIM)) for i in range(3)]


def routed(T: int, share: float, pattern: str):
    """(1, T) marks: "random" places, or "clustered" in runs of 32."""
    rng = np.random.default_rng(0)
    if pattern == "random":
        return jnp.asarray(rng.random((1, T)) < share)
    return jnp.asarray(np.repeat(rng.random((1, T // 32)) < share, 32, axis=1))


def naive(q, k, v):
    """Causal attention over a T x T matrix."""
    T = q.shape[1]
    logits = jnp.where(jnp.tril(jnp.ones((T, T), bool)), jnp.einsum("bthk,bshk->bhts", q, k) * DIM**-0.5, -jnp.inf)
    return jnp.einsum("bhts,bshv->bthv", jax.nn.softmax(logits), v)


def skipping(q, k, v, routed_BxT, kept_BxT):
    """All that a skipped read costs: plan, gather, attention, scatter."""
    return kernels.skip_attention(q, k, v, kernels.make_plan(routed_BxT, kept_BxT=kept_BxT))


def both_ways(f):
    """(forward, forward and backward) of f(q, k, v, ...), compiled."""
    value = lambda q, k, v, *rest: jnp.sum(f(q, k, v, *rest) ** 2)
    return jax.jit(f), jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))


def library(q, k, v):
    """What JAX offers."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def attention(rounds: int) -> dict:
    """Times against utilisation, for each length, pattern and direction."""
    out = {}
    for T in map(int, LENGTHS.value):
        qkv, everything = inputs(T), jnp.ones((1, T), bool)
        for way, name in enumerate(("forward", "forward_backward")):
            ours = both_ways(skipping)[way]
            calls = {"naive": partial(both_ways(naive)[way], *qkv), "jax.nn": partial(both_ways(library)[way], *qkv)}
            for pattern in ("random", "clustered"):
                for share in SHARES:
                    marks = routed(T, share, pattern)
                    calls[f"{pattern} {float(marks.mean()):.4f}"] = partial(ours, *qkv, marks, everything)
            out[f"{name} {T}"] = timed(calls, rounds)
    return out


def kept(rounds: int) -> dict:
    """A read at 1.6% with all keys kept, and with 15% of them."""
    T = int(LENGTHS.value[-1])
    marks, read = routed(T, 0.016, "random"), jax.jit(skipping)
    some = {share: jnp.asarray(np.random.default_rng(1).random((1, T)) < share) for share in (0.15, 1.0)}
    return timed({f"kept {share}": partial(read, *inputs(T), marks, keys) for share, keys in some.items()}, rounds)


class Stream:
    """A model that goes on reading, its caches donated: each call is a piece of 64 tokens."""

    piece = 64

    def __init__(self, stack: Stack, batch: int, context: int):
        params, states = stack.init(jax.random.key(0)), stack.init_state()
        states = consolidation.release(states) if stack.routes else states
        key = jax.random.key(1)
        self.run = jax.jit(lambda c, x: stack.rollout(params, states, c, x, key=key)[:2], donate_argnums=0)
        self.x_BxTxD = jax.random.normal(jax.random.key(2), (batch, self.piece, stack.layer.D))
        caches = stack.init_cache(batch)
        self.caches = caches._replace(position=jnp.full_like(caches.position, context))

    def __call__(self):
        y_BxTxD, self.caches = self.run(self.caches, self.x_BxTxD)
        return y_BxTxD


def stream(rounds: int) -> dict:
    """Milliseconds a token once the context is as long as named."""
    depth, M = 2, 512
    # An indifferent router attends never, so the audits are what attends: 1.6% of tokens, as a converged one would.
    routing = RoutingConfig(evaluation_audit_rate=0.016)
    cram, out = Stack(CRAMConfig(episodic=EpisodicConfig(memory=M), routing=routing), depth), {}
    for batch in (1, 16):
        for context in (1024, 4096, 16384, 32768):
            dense = Stack(AttentionConfig(context=context), depth)
            calls = {"cram": Stream(cram, batch, context), "dense": Stream(dense, batch, context)}
            scale = lambda time: {part: ms / Stream.piece for part, ms in time.items()}
            out[f"batch {batch} context {context}"] = {n: scale(t) for n, t in timed(calls, rounds).items()}
    return out | {"memory": M}


def main(_) -> None:
    folder = Path(RESULTS.value)
    folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS.value:
        result = {"attention": attention, "kept": kept, "stream": stream}[part](ROUNDS.value)
        (folder / f"{part}.json").write_text(json.dumps({"times": result, **versions()}, indent=1) + "\n")
        print(json.dumps(result, indent=1))
    kernel_figures.draw(folder)


if __name__ == "__main__":
    app.run(main)
