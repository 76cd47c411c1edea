"""Measures skipped attention on an NVIDIA GPU: errors against float64, and time against the share of tokens routed.

python experiments/gpu.py [--rounds=7]

| part | what is measured |
|---|---|
| errors | relative errors of attention and gradients, and if results repeat, by backend, dtype and share routed |
| times_T | milliseconds by per mille of tokens routed: whole call (gpu), kernel alone (kernel), cuDNN's (dense) |
| others_T | the same, forward alone, for the backends that run where the kernel does not |

Inputs have 16 heads of 64, in bfloat16. Ten calls are issued at a time, so that the GPU does not wait for Python
between them. Result and figure are written to kernels_gpu below --results.
"""

import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from lib import gather, launch, results
from lib.bench.measure import timed
from lib.figures import kernels as figures

from cram_jax import kernels

QUESTION = "What does skipped attention gain on a GPU, and are its numbers right?"

SHARES = (0.0, 0.016, 0.05, 0.25, 1.0)
FEW = (0.016, 1.0)
WAYS = ("forward", "forward_backward")
KINDS = {"gpu": jnp.bfloat16, "xla_bfloat16": jnp.bfloat16, "xla": jnp.float32, "reference": jnp.float32}
HEADS, DIM = 16, 64
CALLS = 10  # calls issued at a time


def inputs(B: int, T: int, H: int, D: int, kind):
    """Returns random queries, keys and values, and a gradient of attention's output."""
    return [jax.random.normal(jax.random.key(i), (B, T, H, D), jnp.float32).astype(kind) for i in range(4)]


def routed(B: int, T: int, share: float):
    """Returns random marks (B T) of that share of each sequence's tokens."""
    places = np.random.default_rng(0).permuted(np.tile(np.arange(T), (B, 1)), axis=1)
    return jnp.asarray(places < round(share * T))


def skipping(backend: str, q, k, v, routed_BxT):
    """A whole call of skipped attention: making the plan, gathering, attention, scattering."""
    return kernels.skip_attention(q, k, v, kernels.make_plan(routed_BxT), backend=backend)


def gathered(backend: str, q, k, v, plan):
    """Attention alone, on rows that are already gathered."""
    return kernels.skip_attention_compact(q, k, v, plan, backend=backend)


def dense(q, k, v):
    """cuDNN's causal attention of all tokens."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")


def with_gradients(f):
    """Returns a function that gives (o, dq, dk, dv) of f(q, k, v, ...), for the gradient do of o."""

    def run(q, k, v, do, *rest):
        o, back = jax.vjp(lambda q, k, v: f(q, k, v, *rest), q, k, v)
        return o, *back(do)

    return run


def errors(T: int = 1000) -> dict:
    """Returns, by backend, dtype and share routed: the largest relative error of o, dq, dk and dv, and whether a second
    call gives the same bits.
    """
    B, H, D, out = 2, 4, 64, {}
    exact = jax.jit(with_gradients(partial(skipping, "reference")))
    programs = {name: jax.jit(with_gradients(partial(skipping, name.split("_")[0]))) for name in KINDS}
    for share in (0.016, 0.25, 1.0):
        marks = routed(B, T, share)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            rounded = {kind: [np.asarray(x, np.float64) for x in inputs(B, T, H, D, kind)] for kind in KINDS.values()}
            wanted = {kind: [np.asarray(x) for x in exact(*arrays, marks)] for kind, arrays in rounded.items()}
        for backend, kind in KINDS.items():
            once, again = (
                [np.asarray(x.astype(jnp.float32)) for x in programs[backend](*inputs(B, T, H, D, kind), marks)]
                for _ in range(2)
            )
            far = [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(once, wanted[kind], strict=True)]
            same = all(np.array_equal(x, y) for x, y in zip(once, again, strict=True))
            out[f"{backend}_{share:g}"] = {"error": float(np.max(far)), "repeats": same}
    return out


def times(B: int, T: int, rounds: int) -> dict:
    """Returns the milliseconds of each call, by direction and call."""
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
    """Returns the milliseconds of a forward call, by backend, for few routed tokens and, except "xla", for all."""
    q, k, v, _ = inputs(B, T, HEADS, DIM, jnp.bfloat16)
    calls = {}
    for backend, shares in (("xla", FEW[:1]), ("reference", FEW)):
        run = jax.jit(partial(skipping, backend))
        calls |= {f"{backend}_{1000 * share:g}": partial(run, q, k, v, routed(B, T, share)) for share in shares}
    return measured(calls, rounds)


def measured(calls: dict, rounds: int) -> dict:
    """`timed`, with CALLS calls issued at a time."""
    repeated = {name: lambda call=call: [call() for _ in range(CALLS)] for name, call in calls.items()}
    return timed(repeated, rounds, per=CALLS)


def main(args) -> None:
    if jax.default_backend() != "gpu":
        raise ValueError(f"this measures an NVIDIA GPU, and JAX runs on {jax.default_backend()!r}")
    parts = {f"times_{T}": partial(times, B, T, args.rounds) for B, T in ((2, 8192), (8, 2048))}
    parts |= {"errors": errors, "others_2048": partial(others, 8, 2048, args.rounds)}
    folder, found = Path(args.results) / "kernels_gpu", {}
    for name, measure in parts.items():
        start = time.perf_counter()
        found[name] = measure()
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        # After every part: an interruption loses only the part that is being measured.
        made = gather.made_here()
        result = gather.result("kernels_gpu", QUESTION, "python experiments/gpu.py", made, data=found)
        results.write(folder, result)
    figures.gpu(result, folder)


if __name__ == "__main__":
    launch.run(
        main,
        takes="3 minutes, an NVIDIA GPU",
        rounds=launch.Flag(7, "Number of repetitions of each measurement; the median is reported."),
        results="runs",
    )
