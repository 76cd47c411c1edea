"""The interface of a task: its data, the embedding before a stack of layers, and read-out and score after it."""

from typing import Protocol, runtime_checkable

from cram_jax.dims import Array, Bool, Int, Key, Scalar

Sums = dict[str, tuple[Array, Array]]  # (sum, count) by name; the host takes means over all batches


@runtime_checkable
class Task(Protocol):
    """What a training needs of a task. A task must be frozen and hashable, because it is a static argument of jit.

    Attributes:
      headline: name of the main metric of `score`.
    """

    headline: str

    def batch(self, split: str, seed: int, index: int, length: int, size: int):
        """Returns batch `index` of "train" or "held_out": `size` sequences of `length` tokens.

        It is a pure function of the arguments. If settings are chosen on this task, it also has "validation".
        """

    def init(self, key: Key, D: int):
        """Returns parameters of embedding and read-out."""

    def embed(self, params, batch):
        """Returns (x_BxTxD, gap_BxT): embedded tokens and time gaps. gap_BxT is None if the task has no gaps."""

    def score(self, params, y_BxTxD, batch) -> tuple[Scalar, Sums]:
        """Returns (loss, metrics) of the network's outputs y_BxTxD."""

    def groups(self, batch) -> dict[str, Array]:
        """Returns marks (B T) of the kinds of tokens to report, by name. Figures show the first."""

    def asked(self, batch) -> Int[Array, "B T"]:
        """Returns the recurring pattern that each token asks for; -1 for none."""


@runtime_checkable
class StreamTask(Protocol):
    """A `Task` whose batches are visits: row b of batch i + 1 goes on with the stream of row b of batch i."""

    def fresh(self, split: str, index: int, size: int) -> Bool[Array, "B"]:
        """Returns which rows of batch `index` begin a new stream; their memory is reset before it."""
