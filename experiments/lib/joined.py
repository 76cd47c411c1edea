"""Visits of a stream joined into one sequence, for models that carry a recurrent state from visit to visit."""

import dataclasses

import jax
import jax.numpy as jnp

from cram_jax.tasks import streams
from cram_jax.tasks.srcd import SRCDBatch
from cram_jax.tasks.srcd_task import SRCDTask
from cram_jax.tasks.streams import FIRST_HELD_OUT, StreamsConfig


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class JoinedTask(SRCDTask):
    """streams: the streams, whose visits have `streams.srcd.length` events. A sequence joins consecutive ones.

    Nothing is carried from sequence to sequence, so the number of sequences may change in training.

    With J visits in a sequence, J steps read what `StreamsTask` reads in J steps, in another order. A stream whose life
    would end within a sequence lives on to the end of it, so that no sequence holds two streams.
    """

    streams: StreamsConfig = StreamsConfig()

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> SRCDBatch:
        """Batch `index`: `size` sequences of `length` events, a multiple of a visit's.

        Raises ValueError for another length, and unless `split` is "train" or "held_out".
        """
        joined, rest = divmod(length, self.streams.srcd.length)
        if rest or not joined:
            raise ValueError(f"length must be a multiple of a visit's, {self.streams.srcd.length}, got {length}")
        row_B = jnp.arange(size)
        if split == "train":
            # One part of the rows after the other, then all rows again from where their sequences ended
            turn, part = divmod(index, joined)
            stream_B, first_B = streams.schedule(self.streams, part * size + row_B, turn * joined)
        elif split == "held_out":
            stream_B, first_B = FIRST_HELD_OUT + row_B, jnp.full(size, index * joined)
        else:
            raise ValueError(f"split must be 'train' or 'held_out', got {split!r}")
        visit_BxJ = first_B[:, None] + jnp.arange(joined)
        batch = streams.visits(self.streams, seed, jnp.repeat(stream_B, joined), visit_BxJ.reshape(-1))
        return jax.tree.map(lambda a: a.reshape(size, length), batch)
