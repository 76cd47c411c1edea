"""Every backend, forward and backward, is float64 attention over plans drawn at random."""

from functools import partial
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plan_cases import B, Case, brute_force, long_cases, masked_attention
from tpu_cases import alone, norm

from cram_jax import kernels
from cram_jax.kernels.backends import SKIP_ATTENTION, Call
from cram_jax.kernels.skip_attention import buckets, tpu, xla

T, WIDE = 100, 600
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}  # of a tensor's norm


class Heads(NamedTuple):
    H: int
    G: int
    K: int
    V: int
    dtype: str

    def arrays(self, T: int):
        """Queries, keys, values and the gradient of what attention answers."""
        keys = jax.random.split(jax.random.key(0), 4)
        sizes = (self.H, self.K), (self.G, self.K), (self.G, self.V), (self.H, self.V)
        return [jax.random.normal(key, (B, T, *size), self.dtype) for key, size in zip(keys, sizes, strict=True)]


def whole(backend, plan, q, k, v):
    return kernels.skip_attention(q, k, v, plan, backend=backend)


def gathered(backend, plan, q, k, v):
    """The same, on the plan's rows: no buckets, which would each compile the kernels."""
    compact = plan.gather_queries(q), plan.gather_keys(k), plan.gather_keys(v)
    return plan.scatter(kernels.skip_attention_compact(*compact, plan, backend=backend), q.shape[1])


@partial(jax.jit, static_argnums=(0, 1))
def graded(attend, backend, plan, q, k, v, do):
    """(o, dq, dk, dv) at all positions."""
    o, back = jax.vjp(partial(attend, backend, plan), q, k, v)
    return o, *back(do)


@jax.jit
def masked(q, k, v, do, visible_BxTxT):
    """The same, by masking all there is."""
    o, back = jax.vjp(lambda q, k, v: masked_attention(q, k, v, visible_BxTxT), q, k, v)
    return o, *back(do)


def assert_is_attention(backend: str, heads: Heads, case, attend=whole) -> None:
    """Raises where the backend is off, or not exactly 0 where nothing is."""
    arrays, visible_BxTxT = heads.arrays(case.routed_BxT.shape[1]), brute_force(case).visible_BxTxT
    got = alone(partial(graded, attend, backend))(case.plan(), *arrays)
    with jax.enable_x64(True):
        want = masked(*(jnp.asarray(np.asarray(x, np.float64)) for x in arrays), jnp.asarray(visible_BxTxT))
    for name, g, w in zip(("o", "dq", "dk", "dv"), got, want, strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w)
        # One more, the size of a term, where terms cancel: a row that sees one key gives no dq and dk at all
        room = 1 if name in ("dq", "dk") else 0
        assert norm(g - w) <= TOLERANCE[heads.dtype] * (norm(w) + room), name
    # Exactly 0 where not routed or nothing is visible, and for keys that nobody sees
    silent = {"o": ~visible_BxTxT.any(axis=2), "dk": ~visible_BxTxT.any(axis=1)}
    for name, array in (("o", got[0]), ("o", got[1]), ("dk", got[2]), ("dk", got[3])):
        assert not np.any(np.asarray(array, np.float32)[silent[name]])


FLOAT32, BFLOAT16 = Heads(4, 2, 16, 8, "float32"), Heads(3, 1, 32, 32, "bfloat16")
# Heads and number of plans. A backend that is not named here gets those of the reference.
CASES = {
    "reference": [(FLOAT32, 20)],
    "xla": [(FLOAT32, 20), (BFLOAT16, 10)],
    "tpu_interpret": [(FLOAT32, 6), (BFLOAT16, 4)],
    "gpu_interpret": [(Heads(2, 1, 64, 64, "bfloat16"), 12)],
}


def everything_that_runs_on_a_cpu():
    for name in (*SKIP_ATTENTION.everywhere(), *(x for x in SKIP_ATTENTION.names if x.endswith("_interpret"))):
        reason = SKIP_ATTENTION[name].supported(Call("cpu", T, T, jnp.bfloat16))
        for heads, examples in CASES.get(name, CASES["reference"]):
            skip = pytest.mark.skipif(reason is not None, reason=f"it {reason}")
            yield pytest.param(name, heads, examples, marks=skip, id=f"{name}-{heads.dtype}")


@pytest.mark.parametrize("K", [64, 256])
def test_the_tiles_of_the_chips(K):
    # Given rows for more than one of the tiles that are shipped, two blocks of keys, and a window over their edge
    routed, kept = np.random.default_rng(K).random((2, B, WIDE)) < np.array([0.3, 0.9])[:, None, None]
    assert np.all(2 * routed.sum(axis=1) > tpu.DEFAULT.rows) and np.all(kept.sum(axis=1) > tpu.DEFAULT.keys)
    case = Case(routed, kept, None, 300, None, None, None, None)
    assert_is_attention("tpu_interpret", Heads(2, 1, K, K, "bfloat16"), case, gathered)


@pytest.fixture(scope="module")
def small_tiles():
    """Several tiles and blocks even here."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (xla, buckets):
            patch.setattr(module, "ROWS", 16)
            patch.setattr(module, "keys_in_tile", lambda slots: min(32, slots))
        patch.setattr(tpu, "DEFAULT", tpu.Tiles(rows=32, keys=32, part=16))
        yield
    jax.clear_caches()  # of programs with these tiles


@pytest.mark.parametrize(("backend", "heads", "examples"), list(everything_that_runs_on_a_cpu()))
def test_any_plan(backend, heads, examples, small_tiles):
    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @hypothesis.given(long_cases(T))
    def each(case):
        assert_is_attention(backend, heads, case)

    before = graded._cache_size()
    each()
    assert graded._cache_size() <= before + 2  # one program for each length of the lists, whatever the plan
