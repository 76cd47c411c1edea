"""Time and memory of the recurrent scans, in float32.

| call | what |
|---|---|
| ssd, palimpsa | the library's scans with the backend "auto" |
| ..._tokens | the same scan token by token in `lax.scan`, with JAX's gradient |
| ssd_mamba2_jax_N | the PyPI package mamba2-jax in chunks of N, if it is installed; here with one group for each head |
| palimpsa_floor | only the arithmetic on the state of Palimpsa, a lower bound of its time |

Each call is timed forward, and forward with backward.
"""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax import kernels
from lib.bench.measure import megabytes, timed

B, T, H, K, V = 4, 2048, 8, 32, 64
LENGTHS = (1024, 2048, 4096, 8192)
CHUNKS = (32, 64, 128, 256)  # of mamba2-jax
NAMES = ("q_BxTxGxK", "k_BxTxGxK", "v_BxTxHxV", "dt_BxTxH")  # what both scans take
RATE_H, PRIOR_H = np.linspace(1, 16, H, dtype=np.float32), np.ones(H, np.float32)  # no device is taken on import


def inputs(T: int) -> dict:
    """Returns random arguments of `palimpsa_scan`, by name."""
    keys = jax.random.split(jax.random.key(0), 5)
    normal = lambda i, *shape: jax.random.normal(keys[i], (B, T, H, *shape))
    return {
        "q_BxTxGxK": normal(0, K),
        "k_BxTxGxK": normal(1, K) * K**-0.5,
        "v_BxTxHxV": normal(2, V),
        "beta_BxTxHxV": jax.nn.softplus(normal(3, V)),
        "dt_BxTxH": jnp.exp(jax.random.uniform(keys[4], (B, T, H), minval=jnp.log(1e-3), maxval=jnp.log(0.1))),
    }


def palimpsa(backend: str, given: dict):
    return kernels.palimpsa_scan(**given, rate_H=jnp.asarray(RATE_H), prior_H=jnp.asarray(PRIOR_H), backend=backend)[0]


def ssd(backend: str, given: dict):
    q, k, v, dt = (given[name] for name in NAMES)
    return kernels.ssd_scan(q, k, v, -dt * RATE_H, scale=1.0, backend=backend)[0]


def for_mamba2_jax(given: dict) -> dict:
    """Returns the arguments for mamba2-jax: values before discretisation, and dt before its softplus."""
    v, dt = given["v_BxTxHxV"], given["dt_BxTxH"]
    return given | {"v_BxTxHxV": v / dt[..., None], "dt_BxTxH": jnp.log(jnp.expm1(dt))}


def mamba2_jax(chunk: int, given: dict):
    """The scan of mamba2-jax, given what `for_mamba2_jax` returns."""
    from mamba2_jax.modeling import ssd_forward

    q, k, v, dt = (given[name] for name in NAMES)
    zeros = jnp.zeros(H)
    return ssd_forward(v, dt, -RATE_H, k, q, chunk, zeros, zeros, 0.0, jnp.inf)[0]


def floor(given: dict):
    """The least that a Palimpsa state costs: M and J decayed and written, M divided by J, and read. Tokens are not
    looked up, and the only sum over keys is the read's."""
    shape = (H, K, V)
    k_HxKx1, v_HxV, q_HxK = given["k_BxTxGxK"][0, 0][..., None], given["v_BxTxHxV"][0, 0], given["q_BxTxGxK"][0, 0]

    def token(_, carry):
        M, J, o = carry
        M, J = 0.9 * M + k_HxKx1 * v_HxV[:, None], 0.9 * J + k_HxKx1**2 * v_HxV[:, None] ** 2
        return M, J, o + sum(M[:, j] / (J[:, j] + 1) * q_HxK[:, j, None] for j in range(K))

    return jax.lax.fori_loop(0, B * T, token, (jnp.zeros(shape), jnp.zeros(shape), jnp.zeros((H, V))))[2]


def with_gradient(f):
    """Returns a function that gives the value and all gradients of f's squared output."""
    return jax.value_and_grad(lambda given: jnp.sum(f(given) ** 2))


def scans(rounds: int) -> dict:
    """Returns, by length: times of the calls, their ratios, and the megabytes that compiled gradients need.

    Raises:
      ValueError: if mamba2-jax and our scan give different outputs.
    """
    ours = {"ssd": partial(ssd, "xla"), "ssd_tokens": partial(ssd, "reference")}
    ours |= {"palimpsa": partial(palimpsa, "xla"), "palimpsa_tokens": partial(palimpsa, "reference")}
    theirs = {}
    if importlib.util.find_spec("mamba2_jax"):
        theirs = {f"ssd_mamba2_jax_{chunk}": partial(mamba2_jax, chunk) for chunk in CHUNKS}
        given = inputs(256)
        wanted = ssd("xla", given)
        far = float(jnp.linalg.norm(mamba2_jax(64, for_mamba2_jax(given)) - wanted) / jnp.linalg.norm(wanted))
        if not far < 1e-4:
            raise ValueError(f"mamba2-jax differs from ssd_scan by {far:.1e}, more than 1e-4: times do not compare")
    given, out, calls = inputs(T), {}, {}
    for name, f in (ours | theirs).items():
        own = for_mamba2_jax(given) if name in theirs else given
        calls[f"{name}_forward"] = partial(jax.jit(f), own)
        calls[f"{name}_forward_backward"] = partial(jax.jit(with_gradient(f)), own)
    calls["palimpsa_floor"] = partial(jax.jit(floor), given)
    out["ms"] = timed(calls, rounds)
    median = lambda name: out["ms"][name]["ms"]
    for way in ("forward", "forward_backward"):
        for name in ("ssd", "palimpsa"):
            out[f"{name}_{way}_faster_than_tokens"] = median(f"{name}_tokens_{way}") / median(f"{name}_{way}")
        if theirs:  # at the chunk that suits it best
            out[f"ssd_{way}_faster_than_mamba2_jax"] = min(median(f"{n}_{way}") for n in theirs) / median(f"ssd_{way}")
    out["palimpsa_forward_share_of_floor"] = median("palimpsa_floor") / median("palimpsa_forward")
    compiled = lambda f, T: jax.jit(with_gradient(f)).lower(jax.eval_shape(partial(inputs, T))).compile()
    out["gradient_megabytes"] = {
        name: {length: megabytes(compiled(ours[name], length)) for length in LENGTHS} for name in ("ssd", "palimpsa")
    }
    return out
