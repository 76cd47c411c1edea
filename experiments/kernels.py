"""How the time of skipped attention falls: `make bench`. Results and figures go to --results/kernels_PART.

python experiments/kernels.py [--parts=attention,kept,memory,stream] [--lengths=1024,4096] [--rounds=9]

| part | what is measured |
|---|---|
| attention | time of plan, gather, attention, scatter against utilisation; forward, and with backward; dense too |
| kept | the same read with 15% of the keys kept, and with all |
| memory | working memory of the compiled programs as sequences grow, skipping and dense |
| stream | a CRAM model's time a token as its context grows, against dense attention with a full cache |
"""

import itertools
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from lib import gather, results
from lib.figures import kernels as figures

from cram_jax import kernels
from cram_jax.analysis.timing import timed
from cram_jax.functional import consolidation
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.models.stack import Stack
from cram_jax.training import experiment

PARTS = flags.DEFINE_list("parts", ["attention", "kept", "memory", "stream"], "What to measure.")
LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096"], "Sequence lengths of the attention part.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each time; the median counts.")
RESULTS = flags.DEFINE_string("results", "runs", "Where kernels_PART goes, with result and figure.")

QUESTIONS = {
    "attention": "How does the time of skipped attention fall with the share of tokens that attend?",
    "kept": "What does skipped attention gain where few keys are kept?",
    "memory": "How much memory does skipped attention need beside dense attention?",
    "stream": "Does a token cost the same however long the context is?",
}

SHARES = (0.0, 0.004, 0.016, 0.05, 0.125, 0.25, 0.5, 1.0)
HEADS, DIM = 4, 64
PATTERNS = ("random", "clustered")
WAYS = ("forward", "forward_backward")


def inputs(T: int):
    """Queries, keys and values of one sequence."""
    return [jax.random.normal(jax.random.key(i), (1, T, HEADS, DIM)) for i in range(3)]


def routed(T: int, share: float, pattern: str):
    """(1, T) marks of that share of all places: "random" ones, or "clustered" in runs of 32."""
    run = 1 if pattern == "random" else 32
    order = np.random.default_rng(0).permutation(T // run)
    return jnp.asarray(np.repeat(order < round(share * T / run), run)[None])


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
    """Times against utilisation, for each length, pattern and direction.

    cheaper: time at full use over the time. efficiency: share times that, 1 where time follows use. Dense attention
    is timed in rounds of its own, beside ours at full use: what it does to caches and to the allocator with its T x T
    matrices is not to be charged to the small calls.
    """
    out = {}
    for T in map(int, LENGTHS.value):
        qkv, everything = inputs(T), jnp.ones((1, T), bool)
        for way, name in enumerate(WAYS):
            ours, calls, shares = both_ways(skipping)[way], {}, {}
            for pattern, share in itertools.product(PATTERNS, SHARES):
                marks, call = routed(T, share, pattern), f"{pattern}_{1000 * share:.0f}"  # per mille
                calls[call], shares[call] = partial(ours, *qkv, marks, everything), float(marks.mean())
            dense = {"naive": partial(both_ways(naive)[way], *qkv), "jax_nn": partial(both_ways(library)[way], *qkv)}
            dense["ours"] = calls["random_1000"]
            times, full = timed(calls, rounds), timed(dense, rounds)
            for call, time in times.items():
                cheaper = times[f"{call.split('_')[0]}_1000"]["ms"] / time["ms"]
                time |= {"share": shares[call], "cheaper": cheaper, "efficiency": shares[call] * cheaper}
            out[f"{name}_{T}"] = times | {"dense": full}
    return out


def kept(rounds: int) -> dict:
    """A read at 1.6% with all keys kept, and with 15% of them."""
    T = int(LENGTHS.value[-1])
    marks, read = routed(T, 0.016, "random"), jax.jit(skipping)
    some = {share: jnp.asarray(np.random.default_rng(1).random((1, T)) < share) for share in (0.15, 1.0)}
    calls = {f"kept_{100 * share:.0f}": partial(read, *inputs(T), marks, keys) for share, keys in some.items()}
    return timed(calls, rounds)


def memory(rounds: int) -> dict:
    """Megabytes that the compiled programs need beside their arguments and results, by length; nothing is run."""
    del rounds
    out = {}
    for T in (1024, 2048, 4096, 8192):
        qkv = jax.eval_shape(partial(inputs, T))
        marks = jax.ShapeDtypeStruct((1, T), bool)
        for way, name in enumerate(WAYS):
            programs = {"skipping": both_ways(skipping)[way].lower(*qkv, marks, marks)}
            programs |= {"naive": both_ways(naive)[way].lower(*qkv), "jax_nn": both_ways(library)[way].lower(*qkv)}
            used = {n: p.compile().memory_analysis().temp_size_in_bytes / 1e6 for n, p in programs.items()}
            out[f"{name}_{T}"] = used
    return out


class Stream:
    """A model that goes on reading, its caches full and donated: each call is a piece of so many tokens."""

    def __init__(self, stack: Stack, batch: int, context: int, piece: int):
        params, states = stack.init(jax.random.key(0)), stack.init_state()
        states = consolidation.release(states) if stack.consolidates else states
        self.x_BxTxD = jax.random.normal(jax.random.key(2), (batch, piece, stack.layer.D))
        self.caches = tuple(_after(cache, context) for cache in stack.init_cache(batch))
        run = jax.jit(lambda c, x: stack.rollout(params, states, c, x, key=jax.random.key(1))[:2], donate_argnums=0)
        self.run = run.lower(self.caches, self.x_BxTxD).compile()

    def __call__(self):
        y_BxTxD, self.caches = self.run(self.caches, self.x_BxTxD)
        return y_BxTxD

    @property
    def megabytes(self) -> float:
        """Of the caches and of what the program needs beside them."""
        caches = sum(leaf.nbytes for leaf in jax.tree.leaves(self.caches))
        return (caches + self.run.memory_analysis().temp_size_in_bytes) / 1e6


def _after(cache, context: int):
    """The cache as if so many tokens had been read, all of them kept: what a read has to go through is full."""
    cache = cache._replace(position=jnp.asarray(context, jnp.int32))
    if hasattr(cache, "episodic"):
        ring = cache.episodic
        cache = cache._replace(episodic=ring._replace(written_B=jnp.full_like(ring.written_B, context)))
    return cache


def stream(rounds: int) -> dict:
    """Milliseconds a token once the context is as long as named, and the memory that takes.

    All contexts of one model and batch are timed in turn, the dense model by itself: its caches, of half a gigabyte,
    would empty the processor's between two calls of the other.
    """
    depth, M = 2, 512
    # An indifferent router attends never, so the audits are what attends: 1.6% of tokens, as a converged one would.
    routing = RoutingConfig(evaluation_audit_rate=0.016)
    cram, out = Stack(CRAMConfig(episodic=EpisodicConfig(memory=M), routing=routing), depth), {}
    contexts, pieces = (1024, 4096, 16384, 32768), {"cram": 64, "dense": 8}  # tokens a call
    for batch in (1, 16):
        for name, piece in pieces.items():
            stack = lambda context, name=name: (
                cram if name == "cram" else Stack(AttentionConfig(context=context), depth)
            )
            calls = {context: Stream(stack(context), batch, context, piece) for context in contexts}
            for context, time in timed(calls, rounds).items():
                here = out.setdefault(f"batch_{batch}_context_{context}", {})
                here[name] = {part: ms / piece for part, ms in time.items()} | {"megabytes": calls[context].megabytes}
    for here in out.values():
        here["cheaper"] = here["dense"]["ms"] / here["cram"]["ms"]
    return out | {"memory": M}


def main(_) -> None:
    experiment.quiet()
    for part in PARTS.value:
        found = {"attention": attention, "kept": kept, "memory": memory, "stream": stream}[part](ROUNDS.value)
        name, command = f"kernels_{part}", f"python experiments/kernels.py --parts={part}"
        result = gather.result(name, QUESTIONS[part], command, gather.made_here(), data=found)
        results.write(Path(RESULTS.value) / name, result)
        print(json.dumps(found, indent=1))
        if part in figures.BENCHMARKS:
            figures.BENCHMARKS[part](result, Path(RESULTS.value) / name)


if __name__ == "__main__":
    app.run(main)
