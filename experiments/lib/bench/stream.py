"""Measures the time of a token in a stream against the length of its context."""

import jax
import jax.numpy as jnp

from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.cram import CRAMConfig
from cram_jax.functional.episodic import EpisodicConfig
from cram_jax.functional.routing import RoutingConfig
from cram_jax.models.stack import Stack
from lib.bench.measure import megabytes, timed

DEPTH, MEMORY = 2, 512
BATCHES, CONTEXTS = (1, 16), (1024, 4096, 16384, 32768)
PIECES = {"cram": 64, "dense": 8}  # tokens a call


class Stream:
    """A model that reads a stream. Its caches are full, and donated. Each call reads the next `piece` tokens."""

    def __init__(self, stack: Stack, batch: int, context: int, piece: int):
        params, states = stack.init(jax.random.key(0)), stack.release(stack.init_state())
        self.x_BxTxD = jax.random.normal(jax.random.key(2), (batch, piece, stack.D))
        self.caches = tuple(tuple(_after(cache, context) for cache in place) for place in stack.init_cache(batch))
        run = jax.jit(lambda c, x: stack.rollout(params, states, c, x, key=jax.random.key(1))[:2], donate_argnums=0)
        self.run = run.lower(self.caches, self.x_BxTxD).compile()

    def __call__(self):
        y_BxTxD, self.caches = self.run(self.caches, self.x_BxTxD)
        return y_BxTxD

    @property
    def megabytes(self) -> float:
        """Returns the megabytes of the caches, and of the program's other memory."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.caches)) / 1e6 + megabytes(self.run)


def _after(cache, context: int):
    """Returns the cache as if `context` tokens had been read and all of them kept, so that a read uses all of it."""
    cache = cache._replace(position=jnp.asarray(context, jnp.int32))
    if hasattr(cache, "episodic"):
        ring = cache.episodic
        cache = cache._replace(episodic=ring._replace(written_B=jnp.full_like(ring.written_B, context)))
    return cache


def stream(rounds: int) -> dict:
    """Returns milliseconds per token, and megabytes, by batch and length of the context.

    All contexts of one model and batch are timed in turn. The dense model is timed separately: its caches of half a
    gigabyte would empty the processor's caches between two calls of CRAM.
    """
    # An untrained router never attends, so only audits do: 1.6% of the tokens, as many as after training.
    routing = RoutingConfig(evaluation_audit_rate=0.016)
    layer, out = CRAMConfig(episodic=EpisodicConfig(memory=MEMORY), routing=routing), {}
    for batch in BATCHES:
        for name, piece in PIECES.items():
            of = lambda context, name=name: layer if name == "cram" else AttentionConfig(context=context)
            calls = {context: Stream(Stack((of(context),), DEPTH), batch, context, piece) for context in CONTEXTS}
            for context, time in timed(calls, rounds, per=piece).items():
                here = out.setdefault(f"batch_{batch}_context_{context}", {})
                here[name] = time | {"megabytes": calls[context].megabytes}
    for here in out.values():
        here["cheaper"] = here["dense"]["ms"] / here["cram"]["ms"]
    return out | {"memory": MEMORY}
