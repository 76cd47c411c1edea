"""Byte n-gram models for n = 1 to 3, a simple baseline for sequence models of the same text.

p_n(b | context) = (count(context b) + w_n d(context) p_{n-1}(b | shorter context)) / (count(context) + w_n d(context))

Here d is the number of different bytes seen after the context, and p_0 is 1/256. At w_n = 1 this is Witten-Bell
smoothing (1991). Each w_n is chosen on the last part of the training text, which is not counted until then.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

ORDERS = (1, 2, 3)
WEIGHTS = 2.0 ** np.arange(-6, 7)
CHUNK = 1 << 22  # bytes counted at once; counting trigrams takes 128 MB more
TUNING = 1 << 21  # largest number of bytes to choose weights on


class NGrams(NamedTuple):
    """Attributes:
    counts: for each order, the count of each n-gram. An n-gram's index is its bytes read as a number in base 256.
    totals: for each order, the count of each context.
    kinds: for each order, the number d of different bytes after each context.
    weights: w_1, w_2, w_3.
    """

    counts: tuple[Integer[np.ndarray, "_"], ...]
    totals: tuple[Integer[np.ndarray, "_"], ...]
    kinds: tuple[Integer[np.ndarray, "_"], ...]
    weights: tuple[float, ...]


def fit(contents: Iterable[UInt8[np.ndarray, "_"]], size: int, tuning_share: float = 0.05) -> NGrams:
    """Fits n-gram models to texts: counts the n-grams within each text, and chooses the smoothing weights.

    Args:
      contents: the texts. Each is read once. Choose an order in which the last ones are a fair sample.
      size: bytes of all texts together.
      tuning_share: share of the bytes, at the end, that weights are chosen on; at most 2 MB.

    Raises:
      ValueError: if the texts are too short.
    """
    tuning = min(round(tuning_share * size), TUNING)
    if tuning < max(ORDERS):
        raise ValueError(f"{size} bytes of text are too few to fit n-grams on; give at least {round(4 / tuning_share)}")
    late = []

    def early():
        left = size - tuning
        for text in contents:
            yield text[:left]
            late.append(np.array(text[left:]))  # two trigrams are lost where a text is cut
            left = max(0, left - len(text))

    counts = tuple(np.zeros(256**n, np.uint32) for n in ORDERS)
    _count(early(), counts)
    weights = _tune(_model(counts, (1.0,) * len(ORDERS)), np.concatenate(late)[None])
    _count(late, counts)
    return _model(counts, weights)


def bits_per_byte(model: NGrams, windows: Iterable[UInt8[np.ndarray, "B T"]]) -> dict[int, float]:
    """Returns the mean of -log2 p_n for each order n, over all bytes but the first of each window.

    It compares with a network that reads window[:, :-1] and predicts window[:, 1:]: no model sees more context.
    """
    bits, count = np.zeros(len(ORDERS)), 0
    for window_BxT in windows:
        bits += [-np.log2(p_BxT[:, 1:]).sum() for p_BxT in _probabilities(model, window_BxT)]
        count += window_BxT[:, 1:].size
    return {n: float(total / count) for n, total in zip(ORDERS, bits, strict=True)}


def _codes(data: np.ndarray, n: int) -> np.ndarray:
    """Numbers of the n-grams along the last axis, which becomes shorter by n - 1."""
    places = max(data.shape[-1] - n + 1, 0)
    code = np.zeros((*data.shape[:-1], places), np.uint32)
    for place in range(n):
        code = code * np.uint32(256) + data[..., place : place + places]
    return code


def _count(texts: Iterable[np.ndarray], counts: tuple[np.ndarray, ...]) -> None:
    """Adds the n-grams of each text to `counts`, in place. No n-gram spans two texts."""
    waiting, bytes_waiting = [[] for _ in ORDERS], 0

    def add():
        for codes, count in zip(waiting, counts, strict=True):
            count += np.bincount(np.concatenate(codes), minlength=len(count)).astype(count.dtype)
            codes.clear()

    for text in texts:
        for begin in range(0, len(text), CHUNK):
            for n, codes in zip(ORDERS, waiting, strict=True):
                codes.append(_codes(text[max(0, begin - n + 1) : begin + CHUNK], n))
            bytes_waiting += min(CHUNK, len(text) - begin)
            if bytes_waiting >= CHUNK:
                add()
                bytes_waiting = 0
    if bytes_waiting:
        add()


def _model(counts: tuple[np.ndarray, ...], weights: tuple[float, ...]) -> NGrams:
    rows = [count.reshape(-1, 256) for count in counts]
    totals = tuple(row.sum(axis=1, dtype=np.int64) for row in rows)
    return NGrams(counts, totals, tuple(np.count_nonzero(row, axis=1) for row in rows), weights)


def _mixed(model: NGrams, n: int, weight: float, code: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """Returns p_n of each n-gram's last byte, from its p_{n-1}."""
    context = code >> 8
    total, spread = model.totals[n - 1][context], weight * model.kinds[n - 1][context]
    seen = total > 0
    return np.where(seen, (model.counts[n - 1][code] + spread * shorter) / np.where(seen, total + spread, 1), shorter)


def _probabilities(model: NGrams, data_BxT: np.ndarray) -> list[np.ndarray]:
    """Returns p_n of each byte, for each order. Near the start of a row the context is as long as it can be."""
    p_BxT, out = np.full(data_BxT.shape, 1 / 256), []
    for n in ORDERS:
        late = _mixed(model, n, model.weights[n - 1], _codes(data_BxT, n), p_BxT[:, n - 1 :])
        p_BxT = np.concatenate([p_BxT[:, : n - 1], late], axis=1)
        out.append(p_BxT)
    return out


def _tune(model: NGrams, data_BxT: np.ndarray) -> tuple[float, ...]:
    """Chooses for each order, shortest first, the weight in WEIGHTS that gives the data the highest likelihood."""
    weights, shorter = [], np.full(data_BxT.shape, 1 / 256)
    for n in ORDERS:
        code = _codes(data_BxT, n)
        shorter = shorter[:, shorter.shape[1] - code.shape[1] :]  # only the bytes with a full context
        mixed = [_mixed(model, n, weight, code, shorter) for weight in WEIGHTS]
        best = int(np.argmax([np.log(p).sum() for p in mixed]))
        weights.append(float(WEIGHTS[best]))
        shorter = mixed[best]
    return tuple(weights)
