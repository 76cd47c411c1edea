"""Dense attention is the same function on every platform, though a CPU runs it with other code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import attention


@pytest.mark.parametrize("segment_T", [None, [0, 0, 0, 1, 1, 1, 1, 2, 2]], ids=["one sequence", "packed"])
def test_accelerators_and_cpus_agree(segment_T):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 9, 2, 4))
    segment_BxT = None if segment_T is None else jnp.array([segment_T, segment_T[::-1]])
    for arrays in ((q, k, v), (q, k.at[1, 4, 1].set(jnp.inf), v.at[0, 3, 0].set(jnp.nan))):
        cpu, other = (f(*arrays, segment_BxT) for f in (attention._tiled, attention._masked))
        # Sums of at most 9 numbers of size 1; NaN in the same places
        np.testing.assert_allclose(cpu, other, atol=2e-6)
        assert np.any(np.isnan(cpu)) == (arrays[1] is not k) and not np.all(np.isnan(cpu[0]))
