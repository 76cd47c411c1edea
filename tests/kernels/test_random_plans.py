"""Every backend, forward and backward, is float64 attention over plans drawn at random."""

import os
from functools import partial
from typing import NamedTuple

# Before libtpu is loaded: ask no machine for its chips, and share the library with other processes.
os.environ.update(TPU_SKIP_MDS_QUERY="1", ALLOW_MULTIPLE_LIBTPU_LOAD="1")

import hypothesis
import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest
from plan_cases import B, Case, brute_force, long_cases

from cram_jax import kernels
from cram_jax.kernels.skip_attention import ladder, tpu, xla

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


@partial(jax.jit, static_argnums=0)
def graded(backend, plan, q, k, v, do):
    """(o, dq, dk, dv) at all positions."""
    o, back = jax.vjp(lambda q, k, v: kernels.skip_attention(q, k, v, plan, backend=backend), q, k, v)
    return o, *back(do)


@jax.jit
def masked(q, k, v, do, visible_BxTxT):
    """The same, by masking all there is."""

    def attend(q, k, v):
        group = q.shape[2] // k.shape[2]
        logits = jnp.einsum("bthk,bshk->bhts", q, jnp.repeat(k, group, axis=2)) * q.shape[-1] ** -0.5
        weight = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)) * visible_BxTxT[:, None]
        total = weight.sum(-1, keepdims=True)
        weight = weight / jnp.where(total > 0, total, 1)
        return jnp.einsum("bhts,bshv->bthv", weight, jnp.repeat(v, group, axis=2))

    o, back = jax.vjp(attend, q, k, v)
    return o, *back(do)


def assert_is_attention(backend: str, heads: Heads, case) -> None:
    """Raises where the backend is off, or not exactly 0 where nothing is."""
    arrays, visible_BxTxT = heads.arrays(case.routed_BxT.shape[1]), brute_force(case).visible_BxTxT
    jax.block_until_ready(arrays)  # the TPU interpreter computes with JAX itself, and waits for ever for a busy CPU
    plan = jax.block_until_ready(case.plan())
    got = jax.block_until_ready(graded(backend, plan, *arrays))
    with jax.enable_x64(True):
        want = masked(*(jnp.asarray(np.asarray(x, np.float64)) for x in arrays), jnp.asarray(visible_BxTxT))
    for name, g, w in zip(("o", "dq", "dk", "dv"), got, want, strict=True):
        g, w = np.asarray(g, np.float64), np.asarray(w)
        # One more, the size of a term, where terms cancel: a row that sees one key gives no dq and dk at all
        room = 1 if name in ("dq", "dk") else 0
        assert np.linalg.norm(g - w) <= TOLERANCE[heads.dtype] * (np.linalg.norm(w) + room), name
    # Exactly 0 where not routed or nothing is visible, and for keys that nobody sees
    silent = {"o": ~visible_BxTxT.any(axis=2), "dk": ~visible_BxTxT.any(axis=1)}
    for name, array in (("o", got[0]), ("o", got[1]), ("dk", got[2]), ("dk", got[3])):
        assert not np.any(np.asarray(array, np.float32)[silent[name]])


FLOAT32, BFLOAT16 = Heads(4, 2, 16, 8, "float32"), Heads(3, 1, 32, 32, "bfloat16")
interpreted = pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="jax 0.12 (Python 3.12) has the first interpreter that suffices"
)


@pytest.mark.parametrize(
    ("backend", "heads", "examples"),
    [
        ("reference", FLOAT32, 20),
        ("xla", FLOAT32, 20),
        ("xla", BFLOAT16, 10),
        ("tpu_interpret", FLOAT32, 6),
        ("tpu_interpret", BFLOAT16, 4),
        pytest.param("gpu_interpret", Heads(2, 1, 64, 64, "bfloat16"), 12, marks=interpreted),
    ],
    ids=lambda value: value.dtype if isinstance(value, Heads) else str(value),
)
def test_any_plan(backend, heads, examples, monkeypatch):
    for module in (xla, ladder):  # several tiles and blocks even here
        monkeypatch.setattr(module, "ROWS", 16)
        monkeypatch.setattr(module, "keys_in_tile", lambda slots: min(32, slots))
    monkeypatch.setattr(tpu, "DEFAULT", tpu.Tiles(rows=32, keys=32, part=16))
    jax.clear_caches()  # of programs with other tiles

    @hypothesis.settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @hypothesis.given(long_cases(T))
    def each(case):
        assert_is_attention(backend, heads, case)

    each()
    assert graded._cache_size() <= 2  # one program for each length of the lists, whatever the plan
    jax.clear_caches()


@pytest.mark.parametrize("K", [64, 256])
def test_the_tiles_of_the_chips(K):
    # Given rows for more than one of the tiles that are shipped, two blocks of keys, and a window over their edge
    routed, kept = np.random.default_rng(K).random((2, B, WIDE)) < np.array([0.6, 0.9])[:, None, None]
    case = Case(routed, kept, None, 300, None, None, None, None)
    assert_is_attention("tpu_interpret", Heads(2, 1, K, K, "bfloat16"), case)
