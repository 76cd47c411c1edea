"""Skipped attention on an NVIDIA GPU: how far its numbers are from float64, and how its time falls.

python experiments/gpu.py [--rounds=9] [--results=experiments/results/kernels]

| part | what is measured |
|---|---|
| errors | relative errors (of norms) of attention and its gradients, by backend and dtype, and whether results repeat |
| bfloat16_T | milliseconds of plan, gather, attention and scatter against utilisation, forward and with backward; of the kernel by itself on gathered rows (kernel); of JAX's dense attention (dense_...) |
| float32_2048 | the same for the backends that run float32, at the size of SRCD's model |

Calls are issued ten at a time, so that a GPU does not wait for Python between them.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from cram_jax import kernels
from cram_jax.analysis.summary import versions
from cram_jax.analysis.timing import timed
from cram_jax.training import experiment

ROUNDS = flags.DEFINE_integer("rounds", 9, "Measurements of each time; the median counts.")
RESULTS = flags.DEFINE_string("results", "experiments/results/kernels", "Where the JSON goes.")

SHARES = (0.0, 0.016, 0.05, 0.25, 1.0)
FEW = (0.016, 1.0)
WAYS = ("forward", "forward_backward")
KINDS = {"gpu": jnp.bfloat16, "xla_bfloat16": jnp.bfloat16, "xla": jnp.float32, "reference": jnp.float32}
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


def dense(implementation: str, q, k, v):
    """What JAX offers."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)


def with_gradients(f):
    """(o, dq, dk, dv) of f(q, k, v, ...) for the gradient do of o."""

    def run(q, k, v, do, *rest):
        o, back = jax.vjp(lambda q, k, v: f(q, k, v, *rest), q, k, v)
        return o, *back(do)

    return run


def errors() -> dict:
    """By backend, dtype and share: the largest error of o, dq, dk and dv over the norm, and whether twice is alike."""
    B, T, H, D, out = 2, 1000, 4, 64, {}
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


def times(B: int, T: int, H: int, D: int, kind, backends: dict[str, tuple], library: tuple, rounds: int) -> dict:
    """Milliseconds a call: for each direction and call, by backend and per mille of places routed.

    Args:
      backends: shares to time, by backend. library: implementations of JAX's dense attention to time beside them.
    """
    arrays, out = inputs(B, T, H, D, kind), {}
    for way in WAYS:
        dressed = (lambda f: jax.jit(f)) if way == "forward" else (lambda f: jax.jit(with_gradients(f)))
        given = arrays[:3] if way == "forward" else arrays
        calls = {}
        for backend, shares in backends.items():
            whole, alone = dressed(partial(skipping, backend)), dressed(partial(gathered, backend))
            for share in shares:
                marks = routed(B, T, share)
                calls[f"{backend}_{1000 * share:g}"] = partial(whole, *given, marks)
                if backend == "gpu" and share in FEW:
                    plan = kernels.make_plan(marks, capacity=max(64, round(share * T)))
                    q, k, v, *do = given
                    compact = plan.gather_queries(q), k, v, *map(plan.gather_queries, do)
                    calls[f"kernel_{1000 * share:g}"] = partial(alone, *compact, plan)
        for implementation in library:
            calls[f"dense_{implementation}"] = partial(dressed(partial(dense, implementation)), *given)
        out[way] = timed({name: partial(_several, call) for name, call in calls.items()}, rounds)
        for time in out[way].values():
            time |= {part: ms / CALLS for part, ms in time.items()}
        print(way, B, T, H, D, {name: round(time["ms"], 4) for name, time in out[way].items()}, flush=True)
    return out


def _several(call):
    return [call() for _ in range(CALLS)]


def main(_) -> None:
    experiment.quiet()
    if jax.default_backend() != "gpu":
        raise SystemExit(f"this measures an NVIDIA GPU, and JAX runs on {jax.default_backend()!r}")
    out = {"errors": errors()}
    print(json.dumps(out), flush=True)
    for B, T in ((8, 2048), (2, 8192)):
        # The loops of "xla" start kernels for each tile, and "reference" holds T x T matrices: not at full length
        backends = {"gpu": SHARES} | ({"xla": FEW[:1], "reference": SHARES} if T == 2048 else {})
        out[f"bfloat16_{T}"] = times(B, T, 16, 64, jnp.bfloat16, backends, ("cudnn",), ROUNDS.value)
    out["float32_2048"] = times(2, 2048, 2, 32, jnp.float32, {"reference": SHARES, "xla": FEW}, ("xla",), ROUNDS.value)
    folder = Path(RESULTS.value)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps({"result": out, **versions()}, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
