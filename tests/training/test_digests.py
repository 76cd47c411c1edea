"""A digest is that of the numbers and their places, however they are divided."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cram_jax.training import digests

RNG = np.random.default_rng(0)
ARRAYS = {
    "a": RNG.normal(size=(6, 4)).astype(np.float32),
    "b": np.asarray(jnp.arange(5, dtype=jnp.bfloat16)),
    "c": np.arange(7) % 2 == 0,
    "d": np.array(3),
    "e": np.zeros((0, 3), np.float32),
}


def changed(name: str, change) -> dict:
    array = ARRAYS[name].copy()
    change(array)
    return ARRAYS | {name: array}


def add_to_the_last_bit(array):
    array.reshape(-1).view(np.uint32)[5] ^= 1


def swap(array):
    array[[0, 1]] = array[[1, 0]]


@pytest.mark.parametrize(
    "other",
    [
        changed("a", add_to_the_last_bit),
        changed("a", swap),
        changed("c", lambda array: np.logical_not(array, out=array)),
        {**ARRAYS, "a": ARRAYS["a"].reshape(4, 6).T},
        {("f" if name == "a" else name): array for name, array in ARRAYS.items()},
        {name: array for name, array in ARRAYS.items() if name != "b"},
    ],
)
def test_what_is_changed_has_another_digest(other):
    assert digests.digest(ARRAYS) != digests.digest(other)


def test_arrays_of_numpy_and_of_jax_have_one_digest():
    on_devices = {name: jnp.asarray(array) for name, array in ARRAYS.items() if array.dtype != np.int64}
    assert digests.digest(on_devices) == digests.digest({name: ARRAYS[name] for name in on_devices})
    assert len(digests.digest(ARRAYS)) == 16


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 6), st.integers(0, 4))
def test_parts_add_up_to_the_whole(row, column):
    array, total = ARRAYS["a"], 0
    for rows in (slice(0, row), slice(row, None)):
        for columns in (slice(0, column), slice(column, None)):
            places = digests._places(array.shape, (rows, columns))
            total += digests._sum(array[rows, columns], places)
    whole = digests._sum(array, digests._places(array.shape, (slice(None),) * 2))
    assert (total - whole) % 2**64 == 0
