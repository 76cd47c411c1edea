"""Every test of the faces runs for every family that asks for `family`."""

import jax
import jax.numpy as jnp
import pytest
from face_cases import FAMILIES, B, D, Family, T


@pytest.fixture(params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def batch():
    x, gap = jax.random.split(jax.random.key(1))
    segment_BxT = jnp.broadcast_to(jnp.arange(T) // 7, (B, T))
    return jax.random.normal(x, (B, T, D)), 1 + jax.random.exponential(gap, (B, T)), segment_BxT
