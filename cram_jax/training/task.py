"""The contract of a task: data, its embedding before a stack of layers, its read-out and its score after it."""

from typing import Protocol, runtime_checkable

from cram_jax.dims import Array, Int, Key, Scalar

Sums = dict[str, tuple[Array, Array]]  # by name, (sum, count); means are taken on the host, over all batches


@runtime_checkable
class Task(Protocol):
    """Static: frozen and hashable.

    Attributes:
      headline: the metric of `score` that a person watches.
    """

    headline: str

    def batch(self, split: str, seed: int, index: int, length: int, size: int):
        """Batch `index` of "train" or "held_out", a pure function of the arguments: `size` sequences of `length`.

        A task by whose results settings are chosen also has "validation".
        """

    def init(self, key: Key, D: int):
        """Parameters of embedding and read-out."""

    def embed(self, params, batch):
        """(x_BxTxD, gap_BxT or None)."""

    def score(self, params, y_BxTxD, batch) -> tuple[Scalar, Sums]:
        """(loss, metrics)."""

    def groups(self, batch) -> dict[str, Array]:
        """Kinds of tokens to report by name, each (B T) bool; the first is what figures are about."""

    def asked(self, batch) -> Int[Array, "B T"]:
        """The recurring pattern that each token asks for; -1 for none."""
