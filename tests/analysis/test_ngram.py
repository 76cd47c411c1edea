"""N-gram models against their formula written plainly, and against a source whose entropy is known."""

from collections import Counter

import numpy as np
import pytest

from cram_jax.analysis import ngram


def sample(seed: int, size: int, kinds: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(97, 97 + kinds, size).astype(np.uint8)


def plainly(texts: list[bytes], weights, n: int, context: bytes, byte: int) -> float:
    """The module's formula, by recursion over counts in a dictionary."""
    if n == 0:
        return 1 / 256
    counts = Counter(text[i : i + n] for text in texts for i in range(len(text) - n + 1))
    context = context[len(context) - (n - 1) :] if n > 1 else b""
    after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
    shorter = plainly(texts, weights, n - 1, context, byte)
    spread = weights[n - 1] * len(after)
    return (after.get(byte, 0) + spread * shorter) / (sum(after.values()) + spread) if after else shorter


def test_probabilities_are_those_of_the_formula():
    texts = [sample(0, 120), sample(1, 7), sample(2, 1), sample(3, 90)]
    model = ngram.fit(texts, sum(map(len, texts)))
    data = np.concatenate([sample(4, 20), np.array([200, 97, 98, 201, 202, 97], np.uint8)])  # unseen bytes too
    found = ngram._probabilities(model, data[None])
    held_back = round(0.05 * 218)  # of the last text; no n-gram reaches over that cut
    plain = [text.tobytes() for text in (*texts[:3], texts[3][:-held_back], texts[3][-held_back:])]
    for n, p in zip(ngram.ORDERS, found, strict=True):
        for t, byte in enumerate(data):
            order = min(n, t + 1)  # no context from before the row
            wanted = plainly(plain, model.weights, order, data[:t].tobytes(), int(byte))
            np.testing.assert_allclose(p[0, t], wanted, rtol=1e-12)


@pytest.mark.parametrize("context", [b"ab", b"zz", b"az"], ids=["seen", "unseen", "half"])
def test_probabilities_of_all_bytes_add_to_one(context):
    model = ngram.fit([sample(0, 400)], 400)
    rows = np.array([[*context, byte] for byte in range(256)], np.uint8)
    for p in ngram._probabilities(model, rows):
        np.testing.assert_allclose(p[:, -1].sum(), 1, rtol=1e-12)
        assert np.all(p > 0)


def test_a_source_of_known_entropy():
    # Given bytes that repeat the byte two places back, nine times of ten, and are the other of two bytes else
    size, keep = 200_000, 0.9
    flips = np.random.default_rng(0).random(size) > keep
    data = np.empty(size, np.uint8)
    for start in (0, 1):
        data[start::2] = 97 + np.cumsum(flips[start::2]) % 2
    train, test = data[:150_000], data[150_000:]
    model = ngram.fit([train], len(train))
    bits = ngram.bits_per_byte(model, [test[: len(test) // 50 * 50].reshape(-1, 50)])

    # Then one or two bytes say nothing (1 bit) and three say all but the noise. The surprise of a byte has standard
    # deviation 0.95 bit there, so its mean over 49,000 has 0.0043: five of these. The first of a window's 49 bytes has
    # no context of two, and costs 1 bit.
    entropy = -(keep * np.log2(keep) + (1 - keep) * np.log2(1 - keep))
    assert abs(bits[1] - 1) < 0.005 and abs(bits[2] - 1) < 0.005
    assert abs(bits[3] - (48 * entropy + 1) / 49) < 0.022


def test_chunks_lose_nothing_and_texts_do_not_run_into_each_other(monkeypatch):
    texts = [sample(seed, size) for seed, size in enumerate((50, 3, 1, 0, 23))]
    whole = [np.zeros(256**n, np.uint32) for n in ngram.ORDERS]
    ngram._count(texts, tuple(whole))
    monkeypatch.setattr(ngram, "CHUNK", 7)
    parts = [np.zeros(256**n, np.uint32) for n in ngram.ORDERS]
    ngram._count(iter(texts), tuple(parts))
    for n, a, b in zip(ngram.ORDERS, whole, parts, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.sum() == sum(max(len(text) - n + 1, 0) for text in texts)


def test_weights_are_the_best_for_text_that_was_not_counted():
    # Given training text that ends in something else than it began with
    texts = [sample(0, 950, kinds=3), sample(1, 50, kinds=6)]
    model = ngram.fit(texts, 1000, tuning_share=0.05)
    before = ngram._model(ngram.fit([texts[0]], 950).counts, model.weights)  # of what was counted while tuning
    bits = lambda weights: ngram.bits_per_byte(before._replace(weights=tuple(weights)), [texts[1][None]])
    best = bits(model.weights)
    for n in ngram.ORDERS:
        for weight in ngram.WEIGHTS:
            other = list(model.weights)
            other[n - 1] = weight
            assert bits(other)[n] >= best[n] - 1e-9
    assert model.weights[0] > 1  # much that is new: little trust in counts


def test_all_text_is_counted_in_the_end():
    texts = [sample(0, 70), sample(1, 30)]
    model = ngram.fit(iter(texts), 100)
    np.testing.assert_array_equal(model.counts[0], np.bincount(np.concatenate(texts), minlength=256))


def test_too_little_text_is_refused():
    with pytest.raises(ValueError, match="20 bytes of text are too few to fit n-grams on; give at least 80"):
        ngram.fit([sample(0, 20)], 20)
