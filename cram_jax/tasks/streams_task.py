"""Streams of SRCD as a task: rows of a training batch are streams of all ages, held-out batches are fresh streams."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from cram_jax.dims import Array, Bool, Float, Gaps, Int, Key, Scalar, Tokens
from cram_jax.tasks import streams
from cram_jax.tasks.srcd import SRCDBatch
from cram_jax.tasks.srcd_task import SRCDParams, SRCDTask
from cram_jax.tasks.streams import StreamsConfig


@functools.partial(jax.jit, static_argnums=(0, 1, 3))
def _rows(cfg: StreamsConfig, split: str, index, size: int):
    row_B = jnp.arange(size)
    if split == "train":
        return streams.schedule(cfg, row_B, index)
    if split == "held_out":
        return streams.FIRST_HELD_OUT + row_B, jnp.full(size, index)
    raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StreamsTask:
    """data: what is sampled. dynamics_weight: of the squared error beside the cross-entropy of answers.

    A memory of its stream must be reset in the rows that `fresh` names. The rest is SRCD's: see `SRCDTask`.
    """

    data: StreamsConfig = StreamsConfig()
    dynamics_weight: float = 1.0
    headline: ClassVar[str] = SRCDTask.headline

    @property
    def srcd(self) -> SRCDTask:
        """The task of one visit."""
        return SRCDTask(self.data.one_visit, self.dynamics_weight)

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> SRCDBatch:
        """`size` streams, one visit of `length` events each.

        "train": what `streams.schedule` gives at step `index`. "held_out": visit `index` of streams that training never
        sees, the same ones for every index.
        """
        data = dataclasses.replace(self.data, srcd=dataclasses.replace(self.data.srcd, length=length))
        return streams.visits(data, seed, *self.rows(split, index, size))

    def rows(self, split: str, index: int, size: int) -> tuple[Int[Array, "B"], Int[Array, "B"]]:
        """(stream, visit) of the rows of batch `index`.

        Raises ValueError unless `split` is "train" or "held_out".
        """
        return _rows(self.data, split, index, size)

    def fresh(self, split: str, index: int, size: int) -> Bool[Array, "B"]:
        """Rows of batch `index` that begin a stream."""
        return self.rows(split, index, size)[1] == 0

    def init(self, key: Key, D: int) -> SRCDParams:
        return self.srcd.init(key, D)

    def embed(self, params: SRCDParams, batch: SRCDBatch) -> tuple[Tokens, Gaps]:
        return self.srcd.embed(params, batch)

    def read(
        self, params: SRCDParams, y_BxTxD: Tokens, batch: SRCDBatch
    ) -> tuple[Float[Array, "B T A"], Float[Array, "B T"]]:
        return self.srcd.read(params, y_BxTxD, batch)

    def score(
        self, params: SRCDParams, y_BxTxD: Tokens, batch: SRCDBatch
    ) -> tuple[Scalar, dict[str, tuple[Scalar, Scalar]]]:
        return self.srcd.score(params, y_BxTxD, batch)

    def groups(self, batch: SRCDBatch) -> dict[str, Bool[Array, "B T"]]:
        return self.srcd.groups(batch)

    def asked(self, batch: SRCDBatch) -> Int[Array, "B T"]:
        """The pattern of its stream that a query is about; -1 for other events."""
        return self.srcd.asked(batch)
