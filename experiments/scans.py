"""How fast the recurrent scans are, and how much memory they need: the second half of `make bench`.

python experiments/scans.py [--rounds=7] [--results=runs/kernels_scans]

| call | what |
|---|---|
| ssd, palimpsa | what a user gets |
| ..._tokens | the same, token after token in `lax.scan`, its gradient by JAX |
| ssd_mamba2_jax_N | the PyPI package mamba2-jax in chunks of N, where it is installed; it has one group a head here |
| palimpsa_floor | decay, write, divide, multiply and add of states that stay where they are: nothing else |

Each forward alone and with backward, at batch 4, 2048 tokens, 8 heads, K 32, V 64, float32. Memory is what the compiled
gradient needs beside arguments and results, by length.
"""

import importlib.util
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import app, flags
from lib import gather, results

from cram_jax import kernels
from cram_jax.analysis.timing import timed
from cram_jax.training import experiment

ROUNDS = flags.DEFINE_integer("rounds", 7, "Measurements of each time; the median counts.")
RESULTS = flags.DEFINE_string("results", "runs/kernels_scans", "Where the result goes.")

QUESTION = "How fast are the recurrent scans, and how much memory do they need?"

B, T, H, K, V = 4, 2048, 8, 32, 64
LENGTHS = (1024, 2048, 4096, 8192)
CHUNKS = (32, 64, 128, 256)  # of mamba2-jax


NAMES = ("q_BxTxGxK", "k_BxTxGxK", "v_BxTxHxV", "dt_BxTxH")  # what they share


def inputs(T: int) -> dict:
    """Arguments of `palimpsa_scan` by name."""
    keys = jax.random.split(jax.random.key(0), 5)
    normal = lambda i, *shape: jax.random.normal(keys[i], (B, T, H, *shape))
    return {
        "q_BxTxGxK": normal(0, K),
        "k_BxTxGxK": normal(1, K) * K**-0.5,
        "v_BxTxHxV": normal(2, V),
        "beta_BxTxHxV": jax.nn.softplus(normal(3, V)),
        "dt_BxTxH": jnp.exp(jax.random.uniform(keys[4], (B, T, H), minval=jnp.log(1e-3), maxval=jnp.log(0.1))),
    }


RATE_H, PRIOR_H = jnp.linspace(1, 16, H), jnp.ones(H)


def palimpsa(backend: str, given: dict):
    return kernels.palimpsa_scan(**given, rate_H=RATE_H, prior_H=PRIOR_H, backend=backend)[0]


def ssd(backend: str, given: dict):
    q, k, v, dt = (given[name] for name in NAMES)
    return kernels.ssd_scan(q, k, v, -dt * RATE_H, scale=1.0, backend=backend)[0]


def for_mamba2_jax(given: dict) -> dict:
    """Values come undiscretised there, and dt before its softplus."""
    v, dt = given["v_BxTxHxV"], given["dt_BxTxH"]
    return given | {"v_BxTxHxV": v / dt[..., None], "dt_BxTxH": jnp.log(jnp.expm1(dt))}


def mamba2_jax(chunk: int, given: dict):
    """The package's scan, on arguments of its own."""
    from mamba2_jax.modeling import ssd_forward

    q, k, v, dt = (given[name] for name in NAMES)
    zeros = jnp.zeros(H)
    return ssd_forward(v, dt, -RATE_H, k, q, chunk, zeros, zeros, 0.0, jnp.inf)[0]


def floor(given: dict):
    """The least a Palimpsa state costs: both decayed and written, one divided by the other, read; no token is looked
    up, and nothing is summed over keys but what the read needs."""
    shape = (H, K, V)
    k_HxKx1, v_HxV, q_HxK = given["k_BxTxGxK"][0, 0][..., None], given["v_BxTxHxV"][0, 0], given["q_BxTxGxK"][0, 0]

    def token(_, carry):
        M, J, o = carry
        M, J = 0.9 * M + k_HxKx1 * v_HxV[:, None], 0.9 * J + k_HxKx1**2 * v_HxV[:, None] ** 2
        return M, J, o + sum(M[:, j] / (J[:, j] + 1) * q_HxK[:, j, None] for j in range(K))

    return jax.lax.fori_loop(0, B * T, token, (jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((H, V))))[2]


def with_gradient(f):
    """Value and gradient of f's squared output, for all arguments."""
    return jax.value_and_grad(lambda given: jnp.sum(f(given) ** 2))


def main(_) -> None:
    experiment.quiet()
    scans = {"ssd": partial(ssd, "xla"), "ssd_tokens": partial(ssd, "reference")}
    scans |= {"palimpsa": partial(palimpsa, "xla"), "palimpsa_tokens": partial(palimpsa, "reference")}
    theirs = {}
    if importlib.util.find_spec("mamba2_jax"):
        theirs = {f"ssd_mamba2_jax_{chunk}": partial(mamba2_jax, chunk) for chunk in CHUNKS}
        given = inputs(256)
        difference = jnp.linalg.norm(mamba2_jax(64, for_mamba2_jax(given)) - ssd("xla", given))
        assert difference < 1e-4 * jnp.linalg.norm(ssd("xla", given)), "mamba2-jax computes something else"
    given, out, calls = inputs(T), {}, {}
    for name, f in (scans | theirs).items():
        own = for_mamba2_jax(given) if name in theirs else given
        calls |= {
            f"{name}_forward": partial(jax.jit(f), own),
            f"{name}_forward_backward": partial(jax.jit(with_gradient(f)), own),
        }
    calls["palimpsa_floor"] = partial(jax.jit(floor), given)
    out["ms"] = timed(calls, ROUNDS.value)
    median = lambda name: out["ms"][name]["ms"]
    for way in ("forward", "forward_backward"):
        for name in ("ssd", "palimpsa"):
            out[f"{name}_{way}_faster_than_tokens"] = median(f"{name}_tokens_{way}") / median(f"{name}_{way}")
        if theirs:  # at the chunk that suits it best
            out[f"ssd_{way}_faster_than_mamba2_jax"] = min(median(f"{n}_{way}") for n in theirs) / median(f"ssd_{way}")
    out["palimpsa_forward_share_of_floor"] = median("palimpsa_floor") / median("palimpsa_forward")
    out["gradient_megabytes"] = {
        name: {
            length: jax.jit(with_gradient(f)).lower(jax.eval_shape(partial(inputs, length))).compile()
            .memory_analysis().temp_size_in_bytes / 1e6
            for length in LENGTHS
        }
        for name, f in scans.items()
        if name in ("ssd", "palimpsa")
    }  # fmt: skip
    made = gather.made_here()
    results.write(
        Path(RESULTS.value), gather.result("kernels_scans", QUESTION, "python experiments/scans.py", made, data=out)
    )
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    app.run(main)
