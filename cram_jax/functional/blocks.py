"""The blocks of a stream's semantic memory: each is a small regression of its own, for the addresses near it.

A regression on G F features takes some (G F)^3 operations to solve, and (G F)^2 to ask. G blocks of F features take
G F^3 to solve, and an address asks one of them, which takes F^2. They hold somewhat fewer patterns, because patterns
spread over blocks unevenly, and each is written twice.

An address belongs to the nearest of G directions. It asks its own block, and is written to the two nearest: an event
and a query for its key have nearly the same address, but a border may run between them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Float, Int
from cram_jax.functional import posterior
from cram_jax.functional.posterior import Posterior, PosteriorConfig, PosteriorSums
from cram_jax.kernels.meshes import in_parts, parts

WRITTEN = 2  # blocks that an address is written to
TILE = 16  # tokens of one block that one product of matrices serves


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
    if blocks == 1:
        return Place(phi, jnp.zeros((*address.shape[:-1], 1), jnp.int32))
    half_ExS = frequencies_ExR[:, : blocks // 2]
    near = address @ (half_ExS / jnp.linalg.norm(half_ExS, axis=0))
    return Place(phi, jax.lax.top_k(jnp.concatenate([near, -near], axis=-1), WRITTEN)[1])


def ask(memory: Posterior, at: Place) -> Answer:
    """What the blocks of these addresses say. Streams' axes, where the memory has some, are the first of the places."""

    def answer(own: Posterior, phi_XxQxF) -> Answer:
        u_XxQ = posterior.uncertainty(own, phi_XxQxF)
        free_XxQ, ridge_XxQ = (jnp.broadcast_to(a[:, None], u_XxQ.shape) for a in (own.free_share, own.ridge))
        return Answer(posterior.recall(own, phi_XxQxF), u_XxQ, free_XxQ, ridge_XxQ)

    return _asked(answer, memory, at)


def recall(memory: Posterior, at: Place) -> Float[Array, "*shape D"]:
    """What the blocks of these addresses recall."""
    return _asked(posterior.recall, memory, at)


def writes(
    at: Place, r_SxTxD: Float[Array, "*streams T D"], weight_SxT: Float[Array, "*streams T"], blocks: int
) -> PosteriorSums:
    """The sums of writes, for each block. Rows of weight 0 are not looked at, NaN included. No gradient."""
    of_one = lambda *arrays: _writes(*arrays, blocks)
    number, arrays = _parts(weight_SxT.shape), (*at, r_SxTxD, weight_SxT)
    if number > 1:  # each device adds up the writes of its own tokens
        of_part, arrays = jax.vmap(of_one), [in_parts(x, number) for x in arrays]
        of_one = lambda *arrays: jax.tree.map(lambda x: jnp.sum(x, axis=0), of_part(*arrays))
    for _ in range(weight_SxT.ndim - 1):
        of_one = jax.vmap(of_one)
    return of_one(*arrays)


def _parts(shape: tuple[int, ...]) -> int:
    """Among how many devices tokens are divided that have this shape; 1 unless it is (streams, tokens)."""
    return parts(shape[1]) if len(shape) == 2 and shape[1] % parts(0) == 0 else 1


class _Tiles(NamedTuple):
    """Tokens sorted by block: each tile has those of one block.

    Attributes:
      row_XxQ: the token in each place of a tile; the number of tokens where there is none.
      block_X: of the tile. Tiles that are not needed have the number of blocks.
    """

    row_XxQ: Int[Array, "X Q"]
    block_X: Int[Array, "X"]


def _tiles(block_TxK: Int[Array, "T K"], blocks: int, tile: int) -> _Tiles:
    """Each token stands in the tiles of its K blocks. There are enough tiles however tokens spread over blocks."""
    T, K = block_TxK.shape
    block_N, row_N = block_TxK.reshape(-1), jnp.repeat(jnp.arange(T), K)
    count = -(-T * K // tile) + (blocks if tile > 1 else 0)
    is_of_NxG = jax.nn.one_hot(block_N, blocks, dtype=jnp.int32)
    before_N = jnp.sum((jnp.cumsum(is_of_NxG, axis=0) - 1) * is_of_NxG, axis=1)  # earlier ones of its block
    end_G = jnp.cumsum(-(-jnp.sum(is_of_NxG, axis=0) // tile))
    first_G = jnp.concatenate([jnp.zeros(1, end_G.dtype), end_G[:-1]])
    place_N = first_G[block_N] * tile + before_N
    row_M = jnp.full(count * tile, T).at[place_N].set(row_N, unique_indices=True)
    return _Tiles(row_M.reshape(count, tile), jnp.searchsorted(end_G, jnp.arange(count), side="right"))


def _asked(f, memory: Posterior, at: Place):
    """What f(the own block of each tile, phi of its tokens) returns, for each token."""
    of_one = lambda *arrays: _asked_tiles(f, *arrays)
    each = 0 if memory.ridge.ndim > 1 else None  # or one memory for all
    number, phi, block = _parts(at.block.shape[:-1]), at.phi, at.block
    if number > 1:  # each device asks for its own tokens
        of_one, phi, block = jax.vmap(of_one, in_axes=(None, 0, 0)), in_parts(phi, number), in_parts(block, number)
    for _ in range(at.block.ndim - 2):
        of_one = jax.vmap(of_one, in_axes=(each, 0, 0))
    found = of_one(memory._replace(sums=()), phi, block)
    return found if number == 1 else jax.tree.map(lambda x: x.reshape(*at.phi.shape[:2], *x.shape[3:]), found)


def _asked_tiles(f, memory: Posterior, phi_TxF, block_TxK):
    T, blocks = len(phi_TxF), len(memory.ridge)
    # A block is taken once for a whole tile. Where tokens are few, tiles would have more places than tokens.
    tiles = _tiles(block_TxK[:, :1], blocks, TILE if T > TILE * blocks else 1)
    own = jax.tree.map(lambda a: a[tiles.block_X], memory)
    found = f(own, phi_TxF.at[tiles.row_XxQ].get(mode="fill", fill_value=0))
    back = lambda a: jnp.zeros((T, *a.shape[2:]), a.dtype).at[tiles.row_XxQ].set(a, mode="drop")
    return jax.tree.map(back, found)


def _writes(phi_TxF, block_TxK, r_TxD, weight_T, blocks: int) -> PosteriorSums:
    """Writes are added up in tiles, and tiles to blocks.

    Only products of matrices: to add each write where it belongs ends in other last bits each time on some devices.
    """
    tiles = _tiles(block_TxK, blocks, TILE if block_TxK.size > 2 * TILE else 1)
    tiled = lambda a: a.at[tiles.row_XxQ].get(mode="fill", fill_value=0)
    weight_XxQx1 = tiled(weight_T)[..., None]
    row = lambda a: jnp.where(weight_XxQx1 != 0, tiled(a), 0)
    weighted_XxFxQ = jnp.swapaxes(weight_XxQx1 * row(phi_TxF), -1, -2)
    is_of_XxG = jax.nn.one_hot(tiles.block_X, blocks, dtype=phi_TxF.dtype)
    added = lambda a: jnp.einsum("xg,xfd->gfd", is_of_XxG, weighted_XxFxQ @ row(a))
    return jax.lax.stop_gradient(PosteriorSums(added(phi_TxF), added(r_TxD)))


def operations(F: int, D: int, count: int) -> int:
    """Floating-point operations of a write: a row of a tile in each of its blocks, and its share of adding up tiles."""
    return min(WRITTEN, count) * (2 * F * (F + D) + 2 * count * F * (F + D) // TILE)
