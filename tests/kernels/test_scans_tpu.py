"""The TPU kernels of the scans without a TPU: right and free of races when interpreted, accepted by its compiler."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scan_cases import softplus
from tpu_cases import ALL, alone, compiled, device_of, norm

from cram_jax.kernels import PalimpsaState, palimpsa_scan, ssd_scan

B, T, H, G, K, V = 2, 21, 4, 2, 16, 8
SCANS = {"ssd": ssd_scan, "palimpsa": palimpsa_scan}
CHUNKS = {"ssd": 8, "palimpsa": 16}  # three chunks, and two of two groups of eight tokens each
STARTS = [3, 4, 10]  # with chunks of 8: two in the first, one in the second, none in the third
SEGMENT_BxT = np.stack([np.searchsorted(STARTS, np.arange(T), side="right"), np.zeros(T)]).astype(np.int32)
TOLERANCES = {
    "float32": 2e-5,  # sums of some 300 products in float32 (6e-8 each), in another order
    "bfloat16": 1e-2,  # results are rounded to 8 bits (4e-3 at most, less on average)
}


def shapes(name: str, dtype, B=B, T=T, H=H, G=G, K=K, V=V) -> dict:
    """Of a scan's arguments by name; gates and states are float32 always."""
    like = lambda *sizes, dtype="float32": jax.ShapeDtypeStruct(sizes, dtype)
    state = like(B, H, V, K)
    out = {"q_BxTxGxK": like(B, T, G, K, dtype=dtype), "k_BxTxGxK": like(B, T, G, K, dtype=dtype)}
    out |= {"v_BxTxHxV": like(B, T, H, V, dtype=dtype)}
    if name == "ssd":
        return out | {"log_decay_BxTxH": like(B, T, H), "state": state}
    out |= {"beta_BxTxHxV": like(B, T, H, V, dtype=dtype), "dt_BxTxH": like(B, T, H)}
    return out | {"rate_H": like(H), "prior_H": like(H), "state": PalimpsaState(state, state)}


def arguments(name: str, dtype, **sizes) -> dict:
    """Random, a carried state included."""
    random = np.random.default_rng(0)
    out = jax.tree.map(lambda x: random.normal(size=x.shape), shapes(name, dtype, **sizes))
    if name == "ssd":
        out["log_decay_BxTxH"] = -softplus(out["log_decay_BxTxH"])
    else:
        out |= {gate: softplus(out[gate]) for gate in ("beta_BxTxHxV", "dt_BxTxH", "rate_H", "prior_H")}
        out["state"] = out["state"]._replace(importance_BxHxVxK=softplus(out["state"].importance_BxHxVxK))
    return jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), out, shapes(name, dtype, **sizes))


def outputs_and_gradients(name: str, given: dict, **options) -> dict:
    """What comes out by name, and each argument's gradient of a number that every output has a part in."""

    def loss(given):
        o, state = SCANS[name](**given, **options)
        # Its gradient for o is exact in bfloat16, so that it is the same in both dtypes
        weight = (jnp.arange(o.size).reshape(o.shape) % 7 - 3) / 4
        return jnp.sum(weight * o) + sum(jnp.sum(jnp.cos(x)) for x in jax.tree.leaves(state)), (o, state)

    gradients, (o, state) = jax.grad(loss, has_aux=True)(given)
    return {"o": o, "end": state} | {f"d {argument}": x for argument, x in gradients.items()}


def assert_close(got: dict, want: dict, tolerance: float):
    for part in want:
        for g, w in zip(*map(jax.tree.leaves, (got[part], want[part])), strict=True):
            g, w = (np.asarray(x, np.float32) for x in (g, w))
            assert norm(g - w) <= tolerance * norm(w), (part, norm(g - w) / norm(w))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", SCANS)
def test_interpreted_kernels_agree_with_the_reference(name, dtype, capsys):
    # Given groups of heads, a carried state, segments, and a last chunk that is not full
    sequences = slice(B if dtype == "float32" else 1)  # batches have nothing to do with dtypes, and take their time
    given, segment_BxT = arguments(name, dtype, B=sequences.stop), jnp.asarray(SEGMENT_BxT[sequences])
    run = lambda **options: jax.jit(
        lambda given: outputs_and_gradients(name, given, segment_BxT=segment_BxT, **options)
    )
    got = alone(run(chunk=CHUNKS[name], backend="tpu_interpret"))(given)
    assert "RACE" not in capsys.readouterr().out  # an exception in newer versions
    # Then outputs, end states and all gradients are the reference's, in the dtype of what they belong to
    want = run(backend="reference")(jax.tree.map(jnp.float32, given))
    assert_close(got, want, TOLERANCES[dtype])
    assert got["o"].dtype == dtype and all(x.dtype == np.float32 for x in jax.tree.leaves(got["end"]))
    for argument, x in given.items():
        for own, g in zip(*map(jax.tree.leaves, (x, got[f"d {argument}"])), strict=True):
            assert (g.shape, g.dtype) == (own.shape, own.dtype), argument


@pytest.mark.parametrize("name", SCANS)
def test_they_are_right_under_vmap(name):
    # Given two layers whose parameters are shared in part
    given = arguments(name, "float32", B=1, T=5)
    both = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), given)
    axes = dict.fromkeys(given, 0) | {"k_BxTxGxK": None} | ({} if name == "ssd" else {"prior_H": None})
    both = {argument: x if axes[argument] == 0 else given[argument] for argument, x in both.items()}

    def layers(backend):
        f = partial(outputs_and_gradients, name, chunk=8, backend=backend)
        return alone(jax.jit(jax.vmap(f, (axes,))))(both)

    assert_close(layers("tpu_interpret"), layers("reference"), TOLERANCES["float32"])


@pytest.mark.parametrize("name", SCANS)
def test_chunks_as_they_are_shipped(name):
    # Given more tokens than a chunk holds, and heads of a size that is compiled below
    given = arguments(name, "float32", B=1, T={"ssd": 130, "palimpsa": 70}[name], H=2, G=1, K=16, V=32)
    run = lambda backend: jax.jit(lambda given: outputs_and_gradients(name, given, backend=backend))
    # Sums over more tokens in float32 in another order: a few more roundings than over 21
    assert_close(alone(run("tpu_interpret"))(given), run("reference")(given), 5e-5)


@pytest.mark.parametrize("exponent", [1e-7, 40.0])
@pytest.mark.parametrize("name", SCANS)
def test_they_are_right_where_all_or_nothing_is_forgotten(name, exponent):
    # ... and with keys of a size that is no tile's
    given = arguments(name, "float32", B=1, T=10, K=5)
    spread = 1 + 0.1 * jax.random.uniform(jax.random.key(0), (1, 10, H))
    if name == "ssd":
        given["log_decay_BxTxH"] = -exponent * spread
    else:
        given |= {"dt_BxTxH": exponent * spread, "rate_H": jnp.ones(H)}
    run = lambda backend: jax.jit(lambda given: outputs_and_gradients(name, given, chunk=8, backend=backend))
    got = alone(run("tpu_interpret"))(given)
    with jax.enable_x64(True):
        want = run("reference")(jax.tree.map(jnp.float64, given))
    gates = ("d log_decay_BxTxH", "d dt_BxTxH", "d rate_H")
    # Against float64; a decay's gradient near 1 is a small difference of large sums in float32
    assert_close({n: got[n] for n in got if n not in gates}, {n: want[n] for n in want if n not in gates}, 2e-5)
    assert_close({n: got[n] for n in got if n in gates}, {n: want[n] for n in want if n in gates}, 1e-3)


# The second is what released Mamba-2 models have, the fifth is the paper's recall task.
CASES = [("ssd", 64, 64, "float32"), ("ssd", 128, 64, "bfloat16"), ("ssd", 16, 32, "float32")]
CASES += [("palimpsa", 32, 64, "float32"), ("palimpsa", 16, 32, "float32")]
CASES += [("palimpsa", 48, 48, "bfloat16"), ("palimpsa", 128, 128, "float32")]
COMPILED = [("v5e", *case) for case in CASES] + [("v6e", *CASES[i]) for i in (1, 3, 6)]
if ALL:
    COMPILED = [(chip, *case) for chip in ("v5e", "v6e") for case in CASES]


@pytest.mark.parametrize(("chip", "name", "K", "V", "dtype"), COMPILED)
def test_the_compiler_of_the_chip_takes_it(chip, name, K, V, dtype):
    device = jax.sharding.SingleDeviceSharding(device_of(chip))
    place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device)
    given, segment_BxT = jax.tree.map(
        place, (shapes(name, dtype, T=300, K=K, V=V), jax.ShapeDtypeStruct((B, 300), "int32"))
    )
    both = lambda given, segment_BxT: outputs_and_gradients(name, given, segment_BxT=segment_BxT, backend="tpu")
    program = compiled(both, given, segment_BxT)
    assert all(f"{name}_{way}" in program.as_text() for way in ("forward", "backward"))
