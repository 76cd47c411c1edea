"""Irregular time series as a task: each measurement is an event with a time gap, and some events have a label.

A sequence is a window of exactly `length` events of one series, so there is no padding and no mask. A record has its
label at the end: its window is the events that describe the person, then the last events. The window of a recording is
any stretch of it. Shorter series are left out; `Windows.left_out` counts them.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int as NumpyInt

from cram_jax.dims import Array, Bool, Float, Gaps, Int, Key, Scalar, Tokens
from cram_jax.functional.common import normal, rms_norm
from cram_jax.tasks import irregular
from cram_jax.tasks.answers import answered, mean, over
from cram_jax.tasks.irregular import ACTIVITIES, OUTCOMES, PARAMETERS, TAGS, Collection, Series

# Histogram of the second class's logit, for the area under the ROC curve: 400 bins of width 0.05 from -10 to 10
BINS, EDGE = 400, 10.0


@dataclasses.dataclass(frozen=True)
class Format:
    """Sizes of a file format.

    Attributes:
      channels, values, classes: number of channels, of values in a measurement, and of labels.
      gap: smallest time gap, in hours or seconds: the resolution of the files.
      at_end: True if a series has one label, at its last event. False if each event has a label.
    """

    channels: int
    values: int
    classes: int
    gap: float
    at_end: bool


FORMATS = {
    "physionet_2012": Format(len(PARAMETERS), 1, len(OUTCOMES), 1 / 60, True),
    "person_activity": Format(len(TAGS), 3, len(ACTIVITIES), 0.001, False),
}


class IrregularBatch(NamedTuple):
    """Attributes:
    channel_BxT: parameter or tag that was measured.
    value_BxTxX: measured values, standardised.
    gap_BxT: time since the previous event of the sequence, in hours or seconds; at the first event, the smallest gap.
    label_BxT: class to predict at an event; -1 for none. The model sees only whether there is one.
    """

    channel_BxT: Int[Array, "B T"]
    value_BxTxX: Float[Array, "B T X"]
    gap_BxT: Gaps
    label_BxT: Int[Array, "B T"]


class IrregularParams(NamedTuple):
    """Attributes:
    channel_AxD: embedding of a channel.
    value_AxXxD: what one unit of a value adds, by channel.
    gap_D: what one unit of log(1 + gap) adds.
    asked_D: what is added to an event that asks for a label.
    norm_D: scale of the last norm.
    label_DxA, bias_A: read-out.
    """

    channel_AxD: Float[Array, "A D"]
    value_AxXxD: Float[Array, "A X D"]
    gap_D: Float[Array, "D"]
    asked_D: Float[Array, "D"]
    norm_D: Float[Array, "D"]
    label_DxA: Float[Array, "D A"]
    bias_A: Float[Array, "A"]


class Windows(NamedTuple):
    """The windows of one length in a split.

    Attributes:
      series_N, start_N: series and first event of each window to evaluate on. These windows do not overlap. Their
        order is fixed and mixes the series.
      usable_N: indices of the series that are long enough.
      ends_N: for each usable series, the number of windows in it and in those before it, overlapping ones included.
        Training draws from these windows.
      left_out: number of series that are too short.
    """

    series_N: NumpyInt[np.ndarray, "N"]
    start_N: NumpyInt[np.ndarray, "N"]
    usable_N: NumpyInt[np.ndarray, "N"]
    ends_N: NumpyInt[np.ndarray, "N"]
    left_out: int


@functools.lru_cache(maxsize=16)
def _windows(collection: Collection, split: str, length: int, at_end: bool) -> Windows:
    series = getattr(collection, split)
    usable_N = np.array([i for i, one in enumerate(series) if len(one.time_N) >= length])
    if not usable_N.size:
        longest = max(len(one.time_N) for one in series)
        raise ValueError(
            f"no series of the {split} split has {length} events, the longest has {longest}: give longer series, or a "
            "smaller run.length"
        )
    starts = lambda i: [0] if at_end else range(0, len(series[i].time_N) - length + 1, length)
    places = np.array([(i, start) for i in usable_N for start in starts(i)])
    places = np.random.Generator(np.random.Philox(0)).permutation(places)
    room_N = np.array([1 if at_end else len(series[i].time_N) - length + 1 for i in usable_N])
    return Windows(places[:, 0], places[:, 1], usable_N, np.cumsum(room_N), len(series) - len(usable_N))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class IrregularTask:
    """format: one of irregular.FORMATS.
    paths: arguments of its reader.
    validation_share, held_out_share: shares of the series, see irregular.open_collection.
    """

    format: str
    paths: tuple[str, ...]
    validation_share: float = 0.1
    held_out_share: float = 0.2

    def __post_init__(self):
        if self.format not in FORMATS:
            raise ValueError(f"format must be one of {sorted(FORMATS)}, got {self.format!r}")

    @property
    def headline(self) -> str:
        """Name of the main metric. Deaths are rare, so for them cross-entropy says more than accuracy."""
        return "label_nats" if self.about.at_end else "accuracy"

    @property
    def about(self) -> Format:
        """The sizes of the format."""
        return FORMATS[self.format]

    @property
    def collection(self) -> Collection:
        """The series of the files. A process reads them once."""
        return irregular.open_collection(self.format, self.paths, self.validation_share, self.held_out_share)

    def windows(self, split: str, length: int) -> Windows:
        """Returns the windows of that length in a split.

        Raises:
          ValueError: if no series of the split is long enough.
        """
        return _windows(self.collection, split, length, self.about.at_end)

    def batch(self, split: str, seed: int, index: int, length: int, size: int) -> IrregularBatch:
        """Returns batch `index` of "train", "validation" or "held_out": `size` windows of `length` events.

        Training batches are drawn uniformly from all windows; those of a recording overlap. The other splits run
        through their windows without overlap, in a fixed order, again and again. The seed does not matter for them.
        """
        windows, series = self.windows(split, length), getattr(self.collection, split)
        if split == "train":
            random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index])))
            place_B = random.integers(windows.ends_N[-1], size=size)
            drawn_B = np.searchsorted(windows.ends_N, place_B, side="right")
            starts_N = np.concatenate([[0], windows.ends_N[:-1]])
            places = zip(windows.usable_N[drawn_B], place_B - starts_N[drawn_B], strict=True)
        else:
            turn_B = np.arange(index * size, (index + 1) * size) % len(windows.series_N)
            places = zip(windows.series_N[turn_B], windows.start_N[turn_B], strict=True)
        cut = [self._cut(series[i], int(start), length) for i, start in places]
        return IrregularBatch(*(jnp.asarray(np.stack(leaf)) for leaf in zip(*cut, strict=True)))

    def _cut(self, series: Series, start: int, length: int) -> IrregularBatch:
        """One window, without the axis of the batch."""
        if self.about.at_end:
            described = min(series.described, length - 1)
            event_T = np.r_[:described, len(series.time_N) - length + described : len(series.time_N)]
        else:
            event_T = np.arange(start, start + length)
        time_T = series.time_N[event_T]
        gap_T = np.maximum(np.diff(time_T, prepend=time_T[0]), self.about.gap)
        return IrregularBatch(
            series.channel_N[event_T].astype(np.int32),
            series.value_NxX[event_T].astype(np.float32),
            gap_T.astype(np.float32),
            series.label_N[event_T].astype(np.int32),
        )

    def init(self, key: Key, D: int) -> IrregularParams:
        """Draws parameters. Embedded events have a variance of about 3; the first logits are small."""
        channel, value, gap, asked, label = jax.random.split(key, 5)
        A, X, classes = self.about.channels, self.about.values, self.about.classes
        return IrregularParams(
            jax.random.normal(channel, (A, D)),
            normal(value, (A, X, D), X),
            normal(gap, (D,), 2),
            jax.random.normal(asked, (D,)),
            jnp.ones(D),
            0.1 * normal(label, (D, classes), D),
            jnp.zeros(classes),
        )

    def embed(self, params: IrregularParams, batch: IrregularBatch) -> tuple[Tokens, Gaps]:
        """Returns the events as vectors, and the time gaps. A vector shows whether there is a label, not which."""
        x_BxTxD = (
            params.channel_AxD[batch.channel_BxT]
            + jnp.einsum("btx,btxd->btd", batch.value_BxTxX, params.value_AxXxD[batch.channel_BxT])
            + jnp.log1p(batch.gap_BxT)[..., None] * params.gap_D
            + jnp.where(batch.label_BxT[..., None] >= 0, params.asked_D, 0)
        )
        return x_BxTxD, batch.gap_BxT

    def score(
        self, params: IrregularParams, y_BxTxD: Tokens, batch: IrregularBatch
    ) -> tuple[Scalar, dict[str, tuple[Array, Scalar]]]:
        """Returns the mean cross-entropy of labels in nats, and metrics as (sum, count) over the labels.

        With two classes the metrics include `negative_bins` and `positive_bins`: histograms of the logit for each
        class. They can be added over batches; `area_under_curve` takes the sums.
        """
        logits_BxTxA = rms_norm(params.norm_D, y_BxTxD) @ params.label_DxA + params.bias_A
        nats_BxT, right_BxT, asked_BxT = answered(logits_BxTxA, batch.label_BxT)
        metrics = {"label_nats": over(nats_BxT, asked_BxT), "accuracy": over(right_BxT, asked_BxT)}
        if self.about.classes == 2:
            logit_BxT = logits_BxTxA[..., 1] - logits_BxTxA[..., 0]
            bin_BxT = jnp.clip((logit_BxT + EDGE) / (2 * EDGE) * BINS, 0, BINS - 1).astype(jnp.int32)
            for label, name in enumerate(("negative_bins", "positive_bins")):
                among_BxT = (batch.label_BxT == label).astype(jnp.float32)
                metrics[name] = (jnp.zeros(BINS).at[bin_BxT].add(among_BxT), jnp.ones(()))
        return mean(metrics["label_nats"]), metrics

    def groups(self, batch: IrregularBatch) -> dict[str, Bool[Array, "B T"]]:
        """Returns marks of the events that ask for a label, and of the others."""
        return {"asked": batch.label_BxT >= 0, "other": batch.label_BxT < 0}

    def asked(self, batch: IrregularBatch) -> Int[Array, "B T"]:
        """Returns -1 everywhere: this task has no recurring patterns."""
        return jnp.full(batch.label_BxT.shape, -1)


def area_under_curve(negative_bins, positive_bins) -> float:
    """Returns the area under the ROC curve: the probability that a random positive has a higher logit than a negative.

    It is computed from histograms of the logit. A pair in one bin is a tie and counts one half. The result is NaN if a
    class has no examples.
    """
    negative, positive = np.asarray(negative_bins, np.float64), np.asarray(positive_bins, np.float64)
    below = np.cumsum(negative) - negative / 2
    pairs = negative.sum() * positive.sum()
    return float(positive @ below / pairs) if pairs else float("nan")
