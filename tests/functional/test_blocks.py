"""The blocks of a semantic memory: where addresses stand, what is asked and what is written there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.functional import blocks, posterior
from cram_jax.functional.posterior import PosteriorConfig

S, T, D, E = 3, 50, 5, 12


def unit(key, *shape):
    a = jax.random.normal(jax.random.key(key), shape)
    return a / jnp.linalg.norm(a, axis=-1, keepdims=True)


def drawn(cfg, key: int = 0, rows: tuple[int, ...] = (S, T)):
    """(places, values, weights) of writes; some weights are 0, and their rows not finite."""
    frequencies = posterior.frequencies(jax.random.key(9), E, cfg)
    at = blocks.place(frequencies, unit(key, *rows, E), cfg.blocks)
    value = jax.random.normal(jax.random.key(key + 1), (*rows, D))
    weight = jnp.maximum(jax.random.normal(jax.random.key(key + 2), rows), 0)
    poison = lambda a: jnp.where(weight[..., None] > 0, a, jnp.nan)
    return at._replace(phi=poison(at.phi)), poison(value), weight


@pytest.mark.parametrize(("count", "rows"), [(1, T), (2, T), (8, T), (8, 3), (8, 1)])
def test_a_write_goes_to_the_two_nearest_blocks(x64, count, rows):
    cfg = PosteriorConfig(blocks=count, features=8)
    at, value, weight = drawn(cfg, rows=(S, rows))
    assert at.block.shape == (S, rows, min(count, 2))
    got = blocks.writes(at, value, weight, count)
    # One after the other, as `posterior.py` adds a write to a regression
    for s in range(S):
        for g in range(count):
            mine = np.where(np.any(at.block[s] == g, axis=-1), weight[s], 0)
            want = posterior.writes(at.phi[s], value[s], jnp.asarray(mine))
            np.testing.assert_allclose(got.A_SxFxF[s, g], want.A_SxFxF, atol=1e-12)
            np.testing.assert_allclose(got.C_SxFxD[s, g], want.C_SxFxD, atol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rows", [T, 200], ids=["few", "many"])  # one by one, and in tiles
def test_an_address_asks_the_nearest_block(x64, shared, rows):
    cfg = PosteriorConfig(blocks=8, features=8)
    memory = blocks.init(D, cfg, () if shared else (S,))
    sums = blocks.writes(*drawn(cfg), 8)
    memory = posterior.update(memory, jax.tree.map(lambda a: a.sum(0), sums) if shared else sums)
    at = drawn(cfg, 5, (S, rows))[0]
    at = at._replace(phi=jnp.nan_to_num(at.phi))
    answer = blocks.ask(memory, at)
    for s, t in ((0, 0), (1, 7), (2, 49), *((s, t) for s in range(S) for t in range(0, rows, 11))):
        own = jax.tree.map(lambda a: (a if shared else a[s])[at.block[s, t, 0]], memory)  # noqa: B023
        phi_1xF = at.phi[s, t][None]
        np.testing.assert_allclose(answer.recalled[s, t], posterior.recall(own, phi_1xF)[0], atol=1e-12)
        np.testing.assert_allclose(answer.u[s, t], posterior.uncertainty(own, phi_1xF)[0], atol=1e-12)
        assert answer.free[s, t] == own.free_share and answer.ridge[s, t] == own.ridge
    np.testing.assert_array_equal(blocks.recall(memory, at), answer.recalled)


def test_the_nearest_direction_is_that_of_a_frequency_or_its_opposite():
    frequencies = posterior.frequencies(jax.random.key(9), E, PosteriorConfig(blocks=8, features=16))
    along = (frequencies / jnp.linalg.norm(frequencies, axis=0)).T[:4]
    np.testing.assert_array_equal(blocks.place(frequencies, along, 8).block[:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(blocks.place(frequencies, -along, 8).block[:, 0], [4, 5, 6, 7])


def test_what_is_written_beside_a_border_is_known_on_both_sides():
    # Given addresses, and others that differ from them as an event and a query for its key do (a cosine of 0.999)
    cfg = PosteriorConfig(blocks=16, features=64)
    frequencies = posterior.frequencies(jax.random.key(9), 32, cfg)
    written = unit(0, 2000, 1, 32)
    asked = written + 0.045 * unit(1, 2000, 1, 32)
    asked = asked / jnp.linalg.norm(asked, axis=-1, keepdims=True)
    at, by = (blocks.place(frequencies, a, cfg.blocks) for a in (written, asked))
    apart = np.asarray(at.block[..., 0] != by.block[..., 0])[:, 0]
    assert 50 < apart.sum() < 300
    # When each is written to a memory of its own
    sums = blocks.writes(at, jnp.ones((2000, 1, D)), jnp.ones((2000, 1)), cfg.blocks)
    answer = blocks.ask(posterior.update(blocks.init(D, cfg, (2000,)), sums), by)
    # Then nearly all are known where they are asked for, also across borders
    known = np.asarray(posterior.novelty(answer.u, answer.free) < 0.35)[:, 0]
    assert known[~apart].all() and known.mean() > 0.99 and known[apart].mean() > 0.9


def test_the_same_writes_leave_the_same_bits():
    cfg = PosteriorConfig(blocks=8, features=16)
    write = jax.jit(lambda *a: blocks.writes(*a, 8))
    first, second = write(*drawn(cfg)), write(*drawn(cfg))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(first))
