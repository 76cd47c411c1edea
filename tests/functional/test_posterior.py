"""Semantic memory as a posterior: sums, their solution, and uncertainty."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import posterior
from cram_jax.functional.posterior import PosteriorConfig

S, T, D, E = 2, 20, 5, 12
CFG = PosteriorConfig(features=64, ridge=0.05, keep=0.9)


def unit(key, shape):
    a = jax.random.normal(key, shape)
    return a / jnp.linalg.norm(a, axis=-1, keepdims=True)


def drawn(seed: int = 0, count: int = T):
    """(phi, value, weight) of writes in each stream."""
    address, value, weight = jax.random.split(jax.random.key(seed), 3)
    phi = posterior.features(posterior.frequencies(jax.random.key(9), E, CFG), unit(address, (S, count, E)))
    return phi, jax.random.normal(value, (S, count, D)), jax.random.uniform(weight, (S, count))


def empty():
    memory = posterior.init(D, CFG, (S,))
    return jax.tree.map(lambda a: a.astype(jnp.result_type(float)), memory)


def variances(memory) -> np.ndarray:
    """P of each stream."""
    return np.asarray(jnp.swapaxes(memory.root_SxFxF, -1, -2) @ memory.root_SxFxF)


def check_same(a, b, **tolerance):
    np.testing.assert_allclose(a.sums.A_SxFxF, b.sums.A_SxFxF, **tolerance)
    np.testing.assert_allclose(a.sums.C_SxFxD, b.sums.C_SxFxD, **tolerance)
    np.testing.assert_allclose(variances(a), variances(b), **tolerance)
    np.testing.assert_allclose(a.up_SxFxD, b.up_SxFxD, **tolerance)


def test_features_have_norm_1_and_the_kernel_of_their_addresses():
    cfg = PosteriorConfig(features=8192, bandwidth=1.5)
    a, b = unit(jax.random.key(0), (2, 50, E))
    frequencies = posterior.frequencies(jax.random.key(1), E, cfg)
    phi_a, phi_b = posterior.features(frequencies, a), posterior.features(frequencies, b)
    np.testing.assert_allclose(jnp.sum(phi_a**2, -1), 1, rtol=1e-5)
    kernel = np.exp(-(1.5**2) * np.sum((np.asarray(a) - np.asarray(b)) ** 2, -1) / 2)
    np.testing.assert_allclose(jnp.sum(phi_a * phi_b, -1), kernel, atol=0.05)  # deviation (2 / F)^1/2 = 0.016


def test_one_write_leaves_the_textbook_variance_and_recall():
    phi, r, _ = drawn(count=1)
    memory = posterior.update(posterior.init(D, CFG, (S,)), posterior.writes(phi, r, jnp.full((S, 1), 0.3)))
    # u = lambda / (lambda + w), and the ridge pulls the recall to 0 by as much
    np.testing.assert_allclose(posterior.uncertainty(memory, phi), 0.05 / 0.35, rtol=1e-4)
    np.testing.assert_allclose(posterior.recall(memory, phi), r * (1 - 0.05 / 0.35), rtol=1e-4, atol=1e-6)


def test_an_empty_memory_knows_nothing_and_recalls_nothing():
    phi, _, _ = drawn()
    memory = posterior.init(D, CFG, (S,))
    np.testing.assert_allclose(posterior.uncertainty(memory, phi), 1, rtol=1e-5)
    np.testing.assert_array_equal(posterior.recall(memory, phi), 0)
    np.testing.assert_allclose(memory.free_share, 1, rtol=1e-5)


def test_batch_micro_batches_devices_and_single_writes_give_one_memory(x64):
    phi, r, w = drawn()
    whole = posterior.update(empty(), posterior.writes(phi, r, w))
    parts = [posterior.writes(phi[:, part], r[:, part], w[:, part]) for part in (slice(0, 7), slice(7, T))]
    in_parts = posterior.update(empty(), jax.tree.map(jnp.add, *parts))
    one_by_one = empty()
    for t in range(T):
        one_by_one = posterior.write_one(one_by_one, phi[:, t], r[:, t], w[:, t])
    eight = lambda a: jnp.moveaxis(a[:, :16].reshape(S, 8, 2, *a.shape[2:]), 1, 0)
    on_devices = jax.vmap(
        lambda *part: posterior.update(empty(), jax.lax.psum(posterior.writes(*part), "devices")), axis_name="devices"
    )(*map(eight, (phi, r, w)))
    check_same(in_parts, whole, atol=1e-10)
    check_same(one_by_one, whole, atol=1e-10)
    first16 = posterior.update(empty(), posterior.writes(phi[:, :16], r[:, :16], w[:, :16]))
    check_same(jax.tree.map(lambda a: a[3], on_devices), first16, atol=1e-10)


def test_rows_of_weight_0_are_not_looked_at():
    phi, r, w = drawn()
    w = w.at[:, 3].set(0)
    poisoned = posterior.writes(phi.at[:, 3].set(jnp.nan), r.at[:, 3].set(jnp.inf), w)
    jax.tree.map(np.testing.assert_array_equal, poisoned, posterior.writes(phi, r, w))


def test_the_uncertainty_is_calibrated(x64):
    # Given values that the prior draws, W ~ N(0, 1), with the noise that it expects: variance lambda / w
    F, count, streams = CFG.features, 40, 300
    keys = jax.random.split(jax.random.key(3), 4)
    frequencies = posterior.frequencies(jax.random.key(9), E, CFG)
    phi = posterior.features(frequencies, unit(keys[0], (streams, count, E)))
    W = jax.random.normal(keys[1], (streams, F, 1))
    weight = 10 ** jax.random.uniform(keys[2], (streams, count), minval=-2.0, maxval=1.0)
    noise = jax.random.normal(keys[3], (streams, count, 1)) * (CFG.ridge / weight)[..., None] ** 0.5
    memory = posterior.update(posterior.init(1, CFG, (streams,)), posterior.writes(phi, phi @ W + noise, weight))
    # When recalls are compared with what is true, at these and at new addresses
    asked = jnp.concatenate([phi, posterior.features(frequencies, unit(keys[0], (streams, 2 * count, E)) * 1.0)], 1)
    u = np.asarray(posterior.uncertainty(memory, asked)).ravel()
    squared = np.asarray(jnp.sum((posterior.recall(memory, asked) - asked @ W) ** 2, -1)).ravel()
    # Then the expected squared error is the measured one, in ten bins of u; 3600 draws each, a deviation of 2.4%
    for some in np.array_split(np.argsort(u), 10):
        np.testing.assert_allclose(squared[some].mean(), u[some].mean(), rtol=0.12)


def test_what_is_not_written_again_fades(x64):
    # Given two addresses that have nothing in common, and 30 visits that write the second only
    phi = jnp.broadcast_to(jnp.eye(CFG.features)[:2], (S, 2, CFG.features))
    r = jax.random.normal(jax.random.key(0), (S, 2, D))
    memory = posterior.update(empty(), posterior.writes(phi, r, jnp.ones((S, 2))))
    for _ in range(30):
        memory = posterior.update(memory, posterior.writes(phi[:, 1:], r[:, 1:], jnp.ones((S, 1))))
    # Then the first weighs 0.9^30, the second 1 + 0.9 + ... + 0.9^30
    weights = np.array([0.9**30, (1 - 0.9**31) / (1 - 0.9)])
    u = posterior.uncertainty(memory, phi)
    np.testing.assert_allclose(u, np.broadcast_to(0.05 / (0.05 + weights), (S, 2)), rtol=1e-6)
    np.testing.assert_allclose(memory.free_share, (62 + u.sum(-1)) / 64, rtol=1e-6)
    # ... while the first is still believed: the ridge pulls it no further than after its only write
    np.testing.assert_allclose(posterior.recall(memory, phi)[:, 0], r[:, 0] / 1.05, rtol=1e-6)


def test_novelty_tells_a_new_address_in_a_full_memory(x64):
    # Given many writes at random addresses, so that u is low everywhere; those of the last visit weigh most
    memory = empty()
    for seed in range(10):
        phi, r, _ = drawn(seed)
        memory = posterior.update(memory, posterior.writes(phi, r, jnp.full((S, T), 1.0 if seed == 9 else 0.1)))
    new = drawn(99, 400)[0]
    u, known = posterior.uncertainty(memory, new), posterior.uncertainty(memory, phi)
    free = lambda u: jnp.broadcast_to(memory.free_share[:, None], u.shape)
    assert np.mean(u) < 0.6
    # Then novelty is 1 at new addresses, on average, and below half at those of the last visit
    np.testing.assert_allclose(np.mean(posterior.novelty(u, free(u)), axis=-1), 1, atol=0.1)
    assert np.all(posterior.novelty(known, free(known)) < 0.5)


def test_weights_and_errors_follow_from_the_uncertainty(x64):
    # Given two addresses of 64 that have nothing in common, of which one was written twice
    phi = jnp.broadcast_to(jnp.eye(CFG.features)[:2], (S, 2, CFG.features))
    memory = posterior.init(D, CFG, (S,))
    for weight in (0.2, 0.5):
        memory = posterior.merge(memory, posterior.writes(phi[:, :1], jnp.ones((S, 1, D)), jnp.full((S, 1), weight)))
    u = posterior.uncertainty(memory, phi)
    # What was written there, but for the share of the memory that is no longer free, 1 / 64
    free = jnp.broadcast_to(memory.free_share[:, None], u.shape)
    there = posterior.weight_at(jnp.full(u.shape, CFG.ridge), u, free)
    np.testing.assert_allclose(there, [[0.7, 0]] * S, atol=0.001)
    # At the new one novelty is 1, but for that share, and the error is what it is there
    error = posterior.expected_error(posterior.novelty(u, free), jnp.full(u.shape, 3.0))
    np.testing.assert_allclose(error[:, 1], 3 * (1 / memory.free_share) ** 1.5, rtol=1e-6)
    np.testing.assert_allclose(error[:, 0] / error[:, 1], (0.05 / 0.75) ** 1.5, rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_stays_positive_definite_under_10000_changes(seed):
    # Given small memories in float32, so that 10,000 changes are quick: visits with weights over three decades, single
    # writes that contradict them with a thousand times that weight, and visits that write nothing, which only forget
    cfg = PosteriorConfig(features=16, ridge=0.03, keep=0.97)
    frequencies = posterior.frequencies(jax.random.key(9), E, cfg)
    places = unit(jax.random.key(8), (40, E))

    def change(memory, key):
        what, which, weigh, value, near = jax.random.split(key, 5)
        address = places[jax.random.randint(which, (3,), 0, 40)] + 0.1 * jax.random.normal(near, (3, E))
        phi = posterior.features(frequencies, address)
        weight = 10 ** jax.random.uniform(weigh, (3,), minval=-2.0, maxval=1.0)
        r = jax.random.normal(value, (3, D))
        visited = posterior.update(memory, posterior.writes(phi, r, weight))
        one = posterior.write_one(memory, phi[0], r[0], 1e3 * weight[0])
        forgot = posterior.update(memory, posterior.writes(phi, r, jnp.zeros(3)))
        memory = jax.lax.switch(jax.random.randint(what, (), 0, 3), [lambda: visited, lambda: one, lambda: forgot])
        least = jnp.linalg.eigvalsh(memory.sums.A_SxFxF + cfg.ridge * jnp.eye(16))[0]
        asked = jnp.concatenate([phi, posterior.features(frequencies, places)])
        u = jnp.append(posterior.uncertainty(memory, asked), memory.free_share)
        return memory, (least, jnp.isfinite(memory.up_SxFxD).all(), u)

    keys = jax.random.split(jax.random.key(seed), 10_000)
    _, (least, finite, u) = jax.jit(lambda m, k: jax.lax.scan(change, m, k))(posterior.init(D, cfg), keys)
    assert np.all(finite) and np.min(least) > 0
    # u is 1 at most, but for the rounding of sums of 16 squares
    assert 0 < np.min(u) and np.max(u) <= 1 + 1e-6


def test_memories_that_are_solved_in_one_program_do_not_wait_for_each_other():
    # Given two layers' memories of many blocks, updated together again and again; a process of its own, which can hang
    code = """
import jax, jax.numpy as jnp
from cram_jax.functional import posterior
from cram_jax.functional.posterior import PosteriorConfig, PosteriorSums
both = [posterior.init(64, PosteriorConfig(), (256,))] * 2
sums = PosteriorSums(jnp.broadcast_to(jnp.eye(64), (256, 64, 64)), jnp.ones((256, 64, 64)))
update = jax.jit(lambda both: [posterior.update(memory, sums) for memory in both])
for _ in range(60):
    both = update(both)
print(bool(jnp.isfinite(both[1].up_SxFxD).all()))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert run.stdout == "True\n", run.stderr[-2000:]


def test_a_stream_can_be_reset_and_two_be_merged(x64):
    phi, r, w = drawn()
    memory = posterior.update(empty(), posterior.writes(phi, r, w))
    fresh = posterior.reset(memory, jnp.array([True, False]))
    check_same(jax.tree.map(lambda a: a[0], fresh), jax.tree.map(lambda a: a[0], empty()), atol=1e-12)
    check_same(jax.tree.map(lambda a: a[1], fresh), jax.tree.map(lambda a: a[1], memory), atol=0)
    half = lambda part: posterior.update(empty(), posterior.writes(phi[:, part], r[:, part], w[:, part]))
    check_same(posterior.merge(half(slice(0, 9)), half(slice(9, T)).sums), memory, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": 7}, "features must be even .* got 7"),
        ({"features": 0}, "PosteriorConfig.features must be at least 1, got 0"),
        ({"blocks": 3}, "blocks must be 1 or even .* got 3"),
        ({"blocks": 8, "features": 6}, "blocks must be .* at most features=6, got 8"),
        ({"ridge": 0.0}, "ridge and bandwidth must be above 0, got 0.0 and 2.5"),
        ({"keep": 0.0}, r"keep must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_settings_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        PosteriorConfig(**given)
