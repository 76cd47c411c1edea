"""Skipped attention on an NVIDIA GPU: how far its numbers are from float64, and how its time falls.

python experiments/gpu.py [--rounds=7] [--results=runs/kernels_gpu]

| part | what is measured |
|---|---|
| errors | by backend, dtype and share: relative errors of attention and its gradients, and whether results repeat |
| times_T | milliseconds against the per mille of places routed: of plan, gather, attention and scatter (gpu), of the \
attention alone on gathered rows (kernel), and of cuDNN's for all places (dense) |
| others_T | the same, forward alone, for what runs where the kernel does not |

16 heads of 64, bfloat16. Calls are issued ten at a time, so that a GPU does not wait for Python between them.
"""

import time
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
from cram_jax.training import experiment

ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of each time; the median counts.")
RESULTS = flags.DEFINE_string("results", "runs/kernels_gpu", "Where result and figure go.")

QUESTION = "What does skipped attention gain on a GPU, and are its numbers right?"

SHARES = (0.0, 0.016, 0.05, 0.25, 1.0)
FEW = (0.016, 1.0)
WAYS = ("forward", "forward_backward")
KINDS = {"gpu": jnp.bfloat16, "xla_bfloat16": jnp.bfloat16, "xla": jnp.float32, "reference": jnp.float32}
HEADS, DIM = 16, 64
CALLS = 10  # issued at a time


def inputs(B: int, T: int, H: int, D: int, kind):
    """Queries, keys, values and a gradient of what attention answers."""
    return [jax.random.normal(jax.random.key(i), (B, T, H, D), jnp.float32).astype(kind) for i in range(4)]


def routed(B: int, T: int, share: float):
    """(B, T) marks of that share of each sequence's places."""
    places = np.random.default_rng(0).permuted(np.tile(np.arange(T), (B, 1)), axis=1)
    return jnp.asarray(places < round(share * T))


def skipping(backend: str, q, k, v, routed_BxT):
    """All that a skipped read costs."""
    return kernels.skip_attention(q, k, v, kernels.make_plan(routed_BxT), backend=backend)


def gathered(backend: str, q, k, v, plan):
    """Attention alone."""
    return kernels.skip_attention_compact(q, k, v, plan, backend=backend)


def dense(q, k, v):
    """cuDNN's attention, of which every query sees all keys before it."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def with_gradients(f):
    """(o, dq, dk, dv) of f(q, k, v, ...) for the gradient do of o."""

    def run(q, k, v, do, *rest):
        o, back = jax.vjp(lambda q, k, v: f(q, k, v, *rest), q, k, v)
        return o, *back(do)

    return run


def errors(T: int = 1000) -> dict:
    """By backend, dtype and share: the largest error of o, dq, dk and dv over the norm, and whether twice is alike."""
    B, H, D, out = 2, 4, 64, {}
    for share in (0.016, 0.25, 1.0):
        marks = routed(B, T, share)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            rounded = {kind: [np.asarray(x, np.float64) for x in inputs(B, T, H, D, kind)] for kind in KINDS.values()}
            exact = jax.jit(with_gradients(partial(skipping, "reference")))
            wanted = {kind: [np.asarray(x) for x in exact(*arrays, marks)] for kind, arrays in rounded.items()}
        for backend, kind in KINDS.items():
            run = jax.jit(with_gradients(partial(skipping, backend.split("_")[0])))
            once, again = (
                [np.asarray(x.astype(jnp.float32)) for x in run(*inputs(B, T, H, D, kind), marks)] for _ in range(2)
            )
            far = [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(once, wanted[kind], strict=True)]
            same = all(np.array_equal(x, y) for x, y in zip(once, again, strict=True))
            out[f"{backend}_{share:g}"] = {"error": float(np.max(far)), "repeats": same}
    return out


def times(B: int, T: int, rounds: int) -> dict:
    """Milliseconds a call, by direction and call."""
    arrays, out = inputs(B, T, HEADS, DIM, jnp.bfloat16), {}
    for way in WAYS:
        dressed = jax.jit if way == "forward" else lambda f: jax.jit(with_gradients(f))
        given = arrays[:3] if way == "forward" else arrays
        whole, alone = (dressed(partial(f, "gpu")) for f in (skipping, gathered))
        calls = {"dense": partial(dressed(dense), *given)}
        for share in SHARES:
            marks = routed(B, T, share)
            calls[f"gpu_{1000 * share:g}"] = partial(whole, *given, marks)
            if share in FEW:
                plan = kernels.make_plan(marks, capacity=max(64, round(share * T)))
                q, k, v, *do = given
                compact = plan.gather_queries(q), k, v, *map(plan.gather_queries, do)
                calls[f"kernel_{1000 * share:g}"] = partial(alone, *compact, plan)
        out[way] = measured(calls, rounds)
        for found in out[way].values():
            found["cheaper_than_dense"] = out[way]["dense"]["ms"] / found["ms"]
    return out


def others(B: int, T: int, rounds: int) -> dict:
    """Milliseconds of a forward call by backend, for few places and for all; the loops of "xla" for few alone."""
    q, k, v, _ = inputs(B, T, HEADS, DIM, jnp.bfloat16)
    calls = {}
    for backend, shares in (("xla", FEW[:1]), ("reference", FEW)):
        run = jax.jit(partial(skipping, backend))
        calls |= {f"{backend}_{1000 * share:g}": partial(run, q, k, v, routed(B, T, share)) for share in shares}
    return measured(calls, rounds)


def measured(calls: dict, rounds: int) -> dict:
    """`timed`, by the call."""
    found = timed({name: lambda call=call: [call() for _ in range(CALLS)] for name, call in calls.items()}, rounds)
    return {name: {part: ms / CALLS for part, ms in each.items()} for name, each in found.items()}


def main(_) -> None:
    experiment.quiet()
    if jax.default_backend() != "gpu":
        raise SystemExit(f"this measures an NVIDIA GPU, and JAX runs on {jax.default_backend()!r}")
    parts = {"times_8192": partial(times, 2, 8192, ROUNDS.value), "times_2048": partial(times, 8, 2048, ROUNDS.value)}
    parts |= {"errors": errors, "others_2048": partial(others, 8, 2048, ROUNDS.value)}
    folder, found = Path(RESULTS.value), {}
    for name, measure in parts.items():
        start = time.perf_counter()
        found[name] = measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        # After every part: what was measured before an interruption is kept.
        made = gather.made_here()
        result = gather.result("kernels_gpu", QUESTION, "python experiments/gpu.py", made, data=found)
        results.write(folder, result)
    figures.gpu(result, folder)


if __name__ == "__main__":
    app.run(main)
