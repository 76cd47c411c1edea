"""Text as a task: embeds bytes of real files, predicts the next byte, and reports by kind of byte."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cram_jax.dims import Array, Bool, Float, Int, Key, Scalar, Tokens
from cram_jax.functional.common import normal, rms_norm
from cram_jax.tasks.answers import over
from cram_jax.tasks.text import Corpus, open_corpus

LOCAL = 4  # width of the convolution over embeddings: a byte and the three before it
KINDS = {
    "word_start": "first letter of a word",
    "word_inside": "letter inside a word",
    "digit": "digit",
    "space": "space",
    "indentation": "indentation",
    "newline": "newline",
    "quote": "quote",
    "punctuation": "punctuation",
    "other": "control or not ASCII",
}


class TextBatch(NamedTuple):
    """Attributes: byte_BxT, the byte at each position; next_BxT, the byte after it, to be predicted."""

    byte_BxT: Int[Array, "B T"]
    next_BxT: Int[Array, "B T"]


class TextParams(NamedTuple):
    """Attributes:
    byte_256xD: embedding of bytes.
    local_4xD: causal depthwise convolution over the embedded bytes.
    norm_D: scale of the last norm.
    next_Dx256: read-out of the next byte.
    """

    byte_256xD: Float[Array, "256 D"]
    local_4xD: Float[Array, "4 D"]
    norm_D: Float[Array, "D"]
    next_Dx256: Float[Array, "D 256"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TextTask:
    """patterns: files, folders and globs, see `text.open_corpus`.
    held_out_share: share of the files that is held out for evaluation.
    """

    patterns: tuple[str, ...]
    held_out_share: float = 0.1
    headline: ClassVar[str] = "bits_per_byte"

    @property
    def corpus(self) -> Corpus:
        """The files. A process opens them once."""
        return open_corpus(self.patterns, self.held_out_share)

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> TextBatch:
        """Returns batch `index` of "train" or "held_out": `size` windows of `length` bytes, and each next byte."""
        window_BxT = self.corpus.windows(split, seed, index, length, size).astype(np.int32)
        return TextBatch(jnp.asarray(window_BxT[:, :-1]), jnp.asarray(window_BxT[:, 1:]))

    def init(self, key: Key, D: int) -> TextParams:
        """Draws parameters. The convolution gives a byte itself the weight 1; the first logits are small."""
        byte, local, read = jax.random.split(key, 3)
        local_4xD = normal(local, (LOCAL, D), LOCAL).at[0].set(1)
        return TextParams(jax.random.normal(byte, (256, D)), local_4xD, jnp.ones(D), 0.1 * normal(read, (D, 256), D))

    def embed(self, params: TextParams, batch: TextBatch) -> tuple[Tokens, None]:
        """Returns the bytes as vectors, each mixed with the LOCAL - 1 before it, and None: text has no time gaps."""
        x_BxTxD = params.byte_256xD[batch.byte_BxT]
        T = x_BxTxD.shape[1]
        padded = jnp.pad(x_BxTxD, ((0, 0), (LOCAL - 1, 0), (0, 0)))
        return sum(padded[:, LOCAL - 1 - back :][:, :T] * params.local_4xD[back] for back in range(LOCAL)), None

    def score(
        self, params: TextParams, y_BxTxD: Tokens, batch: TextBatch
    ) -> tuple[Scalar, dict[str, tuple[Scalar, Scalar]]]:
        """Returns the mean cross-entropy of next bytes in nats, and metrics in bits as (sum, count)."""
        logits_BxTx256 = rms_norm(params.norm_D, y_BxTxD) @ params.next_Dx256
        log_p_BxTx256 = jax.nn.log_softmax(logits_BxTx256)
        nats_BxT = -jnp.take_along_axis(log_p_BxTx256, batch.next_BxT[..., None], axis=-1)[..., 0]
        bits_BxT = nats_BxT / jnp.log(2)
        metrics = {"bits_per_byte": over(bits_BxT, jnp.ones_like(bits_BxT, bool))}
        metrics |= {
            f"bits_per_byte_{name}": over(bits_BxT, among_BxT) for name, among_BxT in self.groups(batch).items()
        }
        return jnp.mean(nats_BxT), metrics

    def groups(self, batch: TextBatch) -> dict[str, Bool[Array, "B T"]]:
        """Returns marks of each kind of byte. A byte has one kind. A letter at the window's start begins a word."""
        byte = batch.byte_BxT
        between = lambda low, high: (byte >= ord(low)) & (byte <= ord(high))
        among = lambda marks: jnp.isin(byte, jnp.array([ord(mark) for mark in marks]))
        letter = between("a", "z") | between("A", "Z") | among("_")
        digit = between("0", "9")
        after_word = jnp.pad((letter | digit)[:, :-1], ((0, 0), (1, 0)))
        newline, blank, quote = among("\n\r"), among(" \t"), among("'\"`")
        # Indentation: the last byte that is not blank is a newline.
        place = jnp.arange(byte.shape[1])
        last = lambda marks: jax.lax.cummax(jnp.where(marks, place, -1), axis=1)
        indentation = blank & (last(newline) == last(~blank)) & (last(newline) >= 0)
        printed = between("!", "~")
        marks = (
            letter & ~after_word,
            letter & after_word,
            digit,
            blank & ~indentation,
            indentation,
            newline,
            quote,
            printed & ~letter & ~digit & ~quote,
            ~(printed | blank | newline),
        )
        return dict(zip(KINDS, marks, strict=True))

    def asked(self, batch: TextBatch) -> Int[Array, "B T"]:
        """Returns -1 everywhere: text has no list of recurring patterns."""
        return jnp.full(batch.byte_BxT.shape, -1)
