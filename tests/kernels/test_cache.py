"""A streamed token reads its cache as the last row of a whole sequence would."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax import kernels


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (3, 1)])
def test_a_read_is_attention_over_the_filled_slots(heads, groups, x64):
    # Given caches filled to different lengths, one of them empty
    B, S, K, V = 3, 10, 8, 6
    end_B = jnp.array([4, 10, 0])
    q, k, v = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(B, heads, K), (B, S, groups, K), (B, S, groups, V)])
    )
    merged = lambda x: x.swapaxes(1, 2).reshape(B * groups, S, -1)
    read = jax.jit(kernels.read_cache)(q, merged(k), merged(v), end_B)
    # Then each row is softmax(q k) v over its filled slots, and exactly 0 over none
    for b, end in enumerate([4, 10, 0]):
        for h in range(heads):
            g = h // (heads // groups)
            weight = jax.nn.softmax(k[b, :end, g] @ q[b, h] * K**-0.5)
            np.testing.assert_allclose(read[b, h], weight @ v[b, :end, g], atol=1e-12)
    assert np.all(read[2] == 0)


def test_a_write_goes_to_its_place_or_nowhere():
    cache_NxSxX = jnp.zeros((2 * 3, 4, 5))
    new_BxGxX = jax.random.normal(jax.random.key(0), (2, 3, 5))
    written = kernels.write_cache(cache_NxSxX, new_BxGxX, jnp.array([2, 4]))  # 4 is beyond the end
    np.testing.assert_array_equal(written[:3, 2], new_BxGxX[0])
    assert np.all(written[:3, [0, 1, 3]] == 0) and np.all(written[3:] == 0)


def test_streaming_does_not_copy_the_cache():
    # Given a loop that writes a token into a donated cache and reads it, as a rollout does
    def rollout(k, v, q_TxBxHxK):
        def one(cache, now):
            position, k, v = cache
            place_B = jnp.full(1, position)
            k, v = (kernels.write_cache(x, now, place_B) for x in (k, v))
            return (position + 1, k, v), kernels.read_cache(now, k, v, place_B + 1)

        return jax.lax.scan(one, (0, k, v), q_TxBxHxK)

    cache, tokens = jnp.zeros((2, 4096, 32)), jnp.ones((8, 1, 2, 32))
    program = jax.jit(rollout, donate_argnums=(0, 1)).lower(cache, cache, tokens).compile()
    assert program.memory_analysis().temp_size_in_bytes < cache.nbytes / 4
