"""The blocks of a stream's semantic memory: each is a small regression of its own, for the addresses near it.

A regression on G F features takes (G F)^3 operations to solve, and (G F)^2 to ask. G blocks of F features have room for
as many patterns. They take G F^3 to solve, and an address asks one of them, which takes F^2.

An address belongs to the nearest of G directions. It asks its own block, and is written to the two nearest: an event
and a query for its key have nearly the same address, but a border may run between them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Int
from cram_jax.functional import posterior
from cram_jax.functional.posterior import Posterior, PosteriorConfig, PosteriorSums

WRITTEN = 2  # blocks that an address is written to
TILE = 16  # writes of one block that are added up by one product of matrices


class Place(NamedTuple):
    """Where addresses stand in a memory.

    Attributes:
      phi: features.
      block: the nearest K blocks, the nearest first; K is 2, or 1 if there is one block.
    """

    phi: Float[Array, "... F"]
    block: Int[Array, "... K"]


class Answer(NamedTuple):
    """What the block of an address says.

    Attributes:
      recalled: r^S, what the memory believes attention would return (Eq 4).
      u: its uncertainty.
      free: what u is at an address like none before (`Posterior.free_share`).
      ridge: lambda.
    """

    recalled: Float[Array, "*shape D"]
    u: Float[Array, "*shape"]
    free: Float[Array, "*shape"]
    ridge: Float[Array, "*shape"]


def init(D: int, cfg: PosteriorConfig, streams: tuple[int, ...] = ()) -> Posterior:
    """Empty memories, each of `cfg.blocks` blocks."""
    return posterior.init(D, cfg, (*streams, cfg.blocks))


def place(frequencies_ExR: Float[Array, "E R"], address: Float[Array, "... E"], blocks: int) -> Place:
    """The places of addresses in a memory of so many blocks.

    The directions are the first G / 2 frequencies and their opposites, so no further numbers are drawn.
    """
    phi = posterior.features(frequencies_ExR, address)
    half_ExS = frequencies_ExR[:, : max(blocks // 2, 1)]
    near = address @ (half_ExS / jnp.linalg.norm(half_ExS, axis=0))
    if blocks == 1:
        return Place(phi, jnp.zeros((*near.shape[:-1], 1), jnp.int32))
    return Place(phi, jax.lax.top_k(jnp.concatenate([near, -near], axis=-1), WRITTEN)[1])


def ask(memory: Posterior, at: Place) -> Answer:
    """What the blocks of these addresses say. Streams' axes, where the memory has some, are the first of the places."""
    own = _own(memory, at)
    return Answer(
        _recalled(own, at), posterior.uncertainty(own, at.phi[..., None, :])[..., 0], own.free_share, own.ridge
    )


def recall(memory: Posterior, at: Place) -> Float[Array, "*shape D"]:
    """What the blocks of these addresses recall."""
    return _recalled(_own(memory, at), at)


def _recalled(own: Posterior, at: Place) -> Float[Array, "*shape D"]:
    return posterior.recall(own, at.phi[..., None, :])[..., 0, :]


def _own(memory: Posterior, at: Place) -> Posterior:
    """The own block of each address, without its sums."""
    take = lambda blocks, block: jax.tree.map(lambda a: a[block], blocks)
    for _ in range(memory.ridge.ndim - 1):
        take = jax.vmap(take)
    return take(memory._replace(sums=()), at.block[..., 0])


def writes(
    at: Place, r_SxTxD: Float[Array, "*streams T D"], weight_SxT: Float[Array, "*streams T"], blocks: int
) -> PosteriorSums:
    """The sums of writes, for each block. Rows of weight 0 are not looked at, NaN included. No gradient."""
    of_one = lambda phi, block, r, weight: _writes(phi, block, r, weight, blocks)
    for _ in range(weight_SxT.ndim - 1):
        of_one = jax.vmap(of_one)
    return of_one(*at, r_SxTxD, weight_SxT)


def _writes(phi_TxF, block_TxK, r_TxD, weight_T, blocks: int) -> PosteriorSums:
    """Writes of one block fill tiles of TILE rows, or of one, if there are few; what tiles hold is added up to blocks.

    Only products of matrices: to add each write where it belongs ends in other last bits each time on some devices.
    """
    K = block_TxK.shape[1]
    block_N, row_N = block_TxK.reshape(-1), jnp.repeat(jnp.arange(len(phi_TxF)), K)
    tile, unfilled = (TILE, blocks) if len(block_N) > 2 * TILE else (1, 0)
    tiles = -(-len(block_N) // tile) + unfilled
    is_of_NxG = jax.nn.one_hot(block_N, blocks, dtype=jnp.int32)
    before_N = jnp.sum((jnp.cumsum(is_of_NxG, axis=0) - 1) * is_of_NxG, axis=1)  # earlier writes of the block
    end_G = jnp.cumsum(-(-jnp.sum(is_of_NxG, axis=0) // tile))
    first_G = jnp.concatenate([jnp.zeros(1, end_G.dtype), end_G[:-1]])
    at_N = first_G[block_N] * tile + before_N
    rows_M = jnp.full(tiles * tile, len(phi_TxF)).at[at_N].set(row_N, unique_indices=True)

    weight_M = weight_T.at[rows_M].get(mode="fill", fill_value=0)
    row = lambda a: jnp.where(weight_M[:, None] != 0, a.at[rows_M].get(mode="fill", fill_value=0), 0)
    tiled = lambda a: a.reshape(tiles, tile, -1)
    weighted_XxFxQ = jnp.swapaxes(tiled(weight_M[:, None] * row(phi_TxF)), -1, -2)
    of_X = jnp.searchsorted(end_G, jnp.arange(tiles), side="right")
    is_of_XxG = jax.nn.one_hot(of_X, blocks, dtype=phi_TxF.dtype)
    added = lambda a: jnp.einsum("xg,xfd->gfd", is_of_XxG, weighted_XxFxQ @ tiled(row(a)))
    return jax.lax.stop_gradient(PosteriorSums(added(phi_TxF), added(r_TxD)))


def operations(F: int, D: int, count: int) -> int:
    """Floating-point operations of a write: a row of a tile in each of its blocks, and its share of adding up tiles."""
    return min(WRITTEN, count) * (2 * F * (F + D) + 2 * count * F * (F + D) // TILE)
