"""Products in bfloat16: what is heavy is rounded, what decides is not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cram_cases import CONFIG, B, D, inputs, lively, stream

from cram_jax.functional import attention, cram
from cram_jax.functional.attention import AttentionConfig
from cram_jax.functional.common import rotate
from cram_jax.functional.cram import CRAMConfig

HALF = dataclasses.replace(CONFIG, compute_dtype="bfloat16")


def distance(a, b) -> float:
    """Relative to the norm of b."""
    flat = lambda tree: np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
    return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


def test_cram_decides_alike_and_answers_nearly_alike():
    params, state = lively(CONFIG)
    x_BxTxD, gap_BxT = inputs()

    def loss(params, cfg):
        y, aux = cram.apply(params, state, x_BxTxD, cfg=cfg, gap_BxT=gap_BxT, key=jax.random.key(1), train=True)
        return jnp.sum(y**2) + aux.sums.distillation, (y, aux)

    run = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (exact_grads, (exact, exact_aux)), (grads, (rounded, aux)) = run(params, CONFIG), run(params, HALF)
    for name in ("choice_BxT", "attended_BxT", "kept_BxT", "familiarity_BxT"):
        np.testing.assert_array_equal(getattr(aux.routes, name), getattr(exact_aux.routes, name))
    # bfloat16 has 8 bits: 0.4% a product, a few of them after each other
    assert rounded.dtype == jnp.float32 and 1e-4 < distance(rounded, exact) < 0.02
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((grads, aux.sums, aux.stats)))
    assert distance(grads, exact_grads) < 0.05


def test_cram_streams_from_a_buffer_of_half_the_size():
    params, state = lively(HALF)
    x_BxTxD, gap_BxT = inputs()
    assert cram.init_cache(HALF, B).episodic.k_NxMxK.dtype == jnp.bfloat16
    whole_BxTxD, aux = cram.apply(params, state, x_BxTxD, cfg=HALF, gap_BxT=gap_BxT)
    streamed_BxTxD, routes = stream(params, state, x_BxTxD, gap_BxT, HALF, None)
    np.testing.assert_array_equal(routes.choice_BxT, aux.routes.choice_BxT)
    assert distance(streamed_BxTxD, whole_BxTxD) < 0.01


def test_the_transformer_too():
    exact, half = (AttentionConfig(D=D, F=16, context=40, compute_dtype=dtype) for dtype in (None, "bfloat16"))
    params = attention.init(jax.random.key(0), exact)
    x_BxTxD, _ = inputs()
    y, rounded = (attention.apply(params, (), x_BxTxD, cfg=cfg)[0] for cfg in (exact, half))
    assert rounded.dtype == jnp.float32 and 1e-4 < distance(rounded, y) < 0.02
    cache = attention.init_cache(half, B)
    assert cache.k_NxTxK.dtype == jnp.bfloat16
    for t in range(3):
        step, cache, _ = attention.step(params, (), cache, x_BxTxD[:, t], cfg=half)
    assert distance(step, rounded[:, 2]) < 0.01


def test_rotary_positions_keep_their_distance_when_rounded():
    # Given queries and keys at distances 0 to 3, far from the beginning
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 32)) for i in (0, 1))
    at = lambda x, position, dtype: rotate(x.astype(dtype), jnp.full((1, 1), position)).astype(jnp.float32)
    dots = lambda base, dtype: [jnp.sum(at(q, base + far, dtype) * at(k, base, dtype)) for far in range(4)]
    exact = dots(0, jnp.float32)
    assert np.ptp(exact) > 1
    for base in (0, 1000, 30_000):
        np.testing.assert_allclose(dots(base, jnp.bfloat16), exact, atol=0.15)  # 32 products, each off by 0.4%


@pytest.mark.parametrize("config", [CRAMConfig, AttentionConfig])
def test_another_dtype_is_refused(config):
    with pytest.raises(ValueError, match="compute_dtype must be one of .*'bfloat16'.*got 'int8'"):
        config(compute_dtype="int8")
