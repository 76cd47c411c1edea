"""A digest of arrays that is the same however they are divided among devices and processes."""

import hashlib
import zlib

import jax
import numpy as np

from cram_jax.training import processes

ODD = np.uint64(0x9E3779B97F4A7C15)
BLOCK = 2**16  # numbers that are mixed at once, so that they stay in the processor's cache


def digest(arrays: dict[str, np.ndarray | jax.Array]) -> str:
    """Returns a sum over all numbers of all arrays, modulo 2^64: of a number's bits times an odd weight of its own.

    With one changed number it is another sum; that several changes cancel is not to be expected. Each process adds up
    what is on its own devices, so no array is gathered.
    """
    own = 0
    for path in sorted(arrays):
        salt = np.uint64(zlib.crc32(path.encode()) << 32)
        own += sum(
            _sum(part, np.asarray(_places(arrays[path].shape, index) + salt)) for index, part in _parts(arrays[path])
        )
    halves = np.array(divmod(own % 2**64, 2**32), np.uint32)  # what processes send each other has 32 bits
    return f"{sum((int(high) << 32) + int(low) for high, low in processes.gathered(halves)) % 2**64:016x}"


def sha256(arrays: dict[str, np.ndarray]) -> str:
    """Returns the digest of saves of earlier versions: of the paths, dtypes, shapes and bytes of all arrays."""
    sha = hashlib.sha256()
    for path in sorted(arrays):
        array = np.asarray(arrays[path])
        sha.update(f"{path}{array.dtype}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def _parts(array):
    """(index, numbers) of the parts of an array that this process counts: all of them, each in one process."""
    if isinstance(array, jax.Array):
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                yield shard.index, np.asarray(shard.data)
    else:
        yield (slice(None),) * array.ndim, array


def _places(shape: tuple[int, ...], index: tuple[slice, ...]) -> np.ndarray:
    """Which number of the whole array each number of a part is."""
    places: np.ndarray = np.zeros((), np.uint64)
    for size, along in zip(shape, index, strict=True):
        places = places[..., None] * np.uint64(size) + np.arange(*along.indices(size), dtype=np.uint64)
    return places


def _sum(part: np.ndarray, places: np.ndarray) -> int:
    bits, places, total = np.ascontiguousarray(part).view(f"u{part.dtype.itemsize}").ravel(), places.ravel(), 0
    for first in range(0, bits.size, BLOCK):
        weights = places[first : first + BLOCK] * ODD
        weights |= np.uint64(1)  # odd: a changed number changes its product
        weights *= bits[first : first + BLOCK]
        total += int(weights.sum(dtype=np.uint64))
    return total
