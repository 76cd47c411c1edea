"""MQAR has the documented structure and statistics, visits a fixed set once an epoch, and scores only queries."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from cram_jax.tasks import mqar
from cram_jax.tasks.mqar import MQARBatch, MQARConfig
from cram_jax.tasks.mqar_task import DATA, SPLITS, MQARParams, MQARTask
from cram_jax.training import step

UNLIKELY = 1e-5  # a right sampler fails one such check in 100,000 keys
SIGMAS = 4.5  # and one such check in 150,000
sample = jax.jit(mqar.sample, static_argnums=1)
score = jax.jit(MQARTask.score, static_argnums=0)
CASES = (
    MQARConfig(vocabulary=4, length=4, pairs=1, batch=3),  # nothing is left to chance but the value
    MQARConfig(vocabulary=10, length=16, pairs=4, batch=3),  # every key and every place for a query is used
    MQARConfig(vocabulary=64, length=40, pairs=5, batch=3),
    MQARConfig(vocabulary=64, length=42, pairs=5, batch=3, power=2.0),  # far gaps are the likely ones
)
SMALL = MQARTask(MQARConfig(vocabulary=16, length=24, pairs=3, batch=4))


def draw(cfg: MQARConfig, key: int = 0) -> MQARBatch:
    """A batch as numpy arrays."""
    return jax.tree.map(np.asarray, sample(jax.random.key(key), cfg))


def draw_gaps(cfg: MQARConfig):
    """Place of each pair's query, counted from 0: (B, pairs)."""
    batch, start = draw(cfg), 2 * cfg.pairs
    asked_BxPxT = batch.token_BxT[:, None, start:] == batch.token_BxT[:, 0:start:2, None]
    return np.argmax(asked_BxPxT, axis=2) // 2


def power_law(cfg: MQARConfig):
    """Probability of every place for a query: a i^(a-1), normalised."""
    i = np.arange(1, cfg.length // 2 - cfg.pairs + 1)
    weight = cfg.power * i ** (cfg.power - 1.0)
    return weight / weight.sum()


def assert_drawn_from(counts, p):
    """Pearson's chi-square; every expected count is large enough for it (the usual rule: 5)."""
    counts, expected = np.ravel(counts), np.ravel(p) * np.sum(counts)
    assert expected.min() >= 5
    p_value = scipy.stats.chi2.sf(np.sum((counts - expected) ** 2 / expected), len(counts) - 1)
    assert p_value > UNLIKELY, f"counts {counts}, expected {expected}"


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(st.sampled_from(CASES), st.integers(0, 2**31 - 1))
def test_a_sequence_lists_its_pairs_and_then_asks_for_each_once(cfg, key):
    # Given any batch
    batch = draw(cfg, key)
    assert batch.token_BxT.shape == batch.target_BxT.shape == (cfg.batch, cfg.length)
    assert batch.token_BxT.dtype == batch.target_BxT.dtype == np.int32
    start, half = 2 * cfg.pairs, cfg.vocabulary // 2
    for token_T, target_T in zip(batch.token_BxT, batch.target_BxT, strict=True):
        # When a reader notes the pairs
        keys, values = token_T[:start:2].tolist(), token_T[1:start:2].tolist()
        pairs = dict(zip(keys, values, strict=True))

        # Then no key or value comes twice, and each is in its half
        assert len(set(keys)) == len(set(values)) == cfg.pairs
        assert 1 <= min(keys) and max(keys) < half <= min(values) and max(values) < cfg.vocabulary
        # and every key is asked for once, at an even place behind all pairs, where its value is the target
        asked = np.flatnonzero(target_T >= 0)
        assert asked.min() >= start and not np.any(asked % 2)
        assert sorted(token_T[asked].tolist()) == sorted(keys)
        assert target_T[asked].tolist() == [pairs[key] for key in token_T[asked].tolist()]
        # and all else is filler without a target
        rest = np.setdiff1d(np.arange(start, cfg.length), asked)
        np.testing.assert_array_equal(token_T[rest], 0)
        np.testing.assert_array_equal(target_T[np.setdiff1d(np.arange(cfg.length), asked)], -1)


@pytest.mark.parametrize("power", [0.01, 0.5, 1.0])
def test_the_gap_of_a_lone_pair_follows_the_power_law(power):
    # Given 31 places for one query, where nothing was drawn before
    cfg = MQARConfig(vocabulary=4, length=64, pairs=1, batch=4096, power=power)
    gap_B, p, i = draw_gaps(cfg)[:, 0], power_law(cfg), np.arange(31)

    # Then each place is taken as often as it should be, and so the mean gap is the law's
    assert_drawn_from(np.bincount(gap_B, minlength=31), p)
    mean = p @ i
    assert abs(gap_B.mean() - mean) < SIGMAS * (p @ (i - mean) ** 2 / len(gap_B)) ** 0.5


def test_gaps_are_drawn_one_after_the_other_without_replacement():
    # Given two pairs and six places for their queries
    cfg = MQARConfig(vocabulary=6, length=16, pairs=2, batch=4096)
    first_B, second_B = draw_gaps(cfg).T
    counts = np.zeros((6, 6), int)
    np.add.at(counts, (first_B, second_B), 1)

    # Then the first draws from the law, and the second from what is left of it: p_i p_j / (1 - p_i), 30 outcomes
    p = power_law(cfg)
    joint, different = p[:, None] * p / (1 - p[:, None]), ~np.eye(6, dtype=bool)
    assert np.trace(counts) == 0
    np.testing.assert_allclose(joint[different].sum(), 1, rtol=1e-12)
    assert_drawn_from(counts[different], joint[different])


@pytest.mark.parametrize("pair", [0, 2])
def test_every_key_is_bound_to_every_value_alike(pair):
    # 7 keys and 8 values: at the first place as at the last, each of 56 combinations comes up 73 times
    batch = draw(MQARConfig(vocabulary=16, length=12, pairs=3, batch=4096))
    counts = np.zeros((7, 8), int)
    np.add.at(counts, (batch.token_BxT[:, 2 * pair] - 1, batch.token_BxT[:, 2 * pair + 1] - 8), 1)
    assert_drawn_from(counts, np.full((7, 8), 1 / 56))


def test_a_batch_is_a_pure_function_of_the_key_with_and_without_jit():
    cfg = CASES[2]
    batch, other = draw(cfg, 1), draw(cfg, 2)
    jax.tree.map(np.testing.assert_array_equal, mqar.sample(jax.random.key(1), cfg), batch)
    # and every sequence is another: five keys of 31 come in the same order once in 20 million, values aside
    rows = np.concatenate([batch.token_BxT, other.token_BxT])[:, : 2 * cfg.pairs]
    assert len(np.unique(rows, axis=0)) == 2 * cfg.batch


def test_an_equal_config_compiles_nothing_again():
    draw(CASES[0])
    compiled = sample._cache_size()
    draw(MQARConfig(vocabulary=4, length=4, pairs=1, batch=3), key=1)
    assert sample._cache_size() == compiled


def walk(task: MQARTask, seed: int, size: int, batches: int) -> list[bytes]:
    """Sequences of the first training batches, in order."""
    rows = [task.batch("train", seed, index, 24, size).token_BxT for index in range(batches)]
    return [row.tobytes() for row in np.concatenate(rows)]


def test_an_epoch_visits_each_example_of_a_fixed_set_once():
    # Given a set of 10 and batches of 4, so that the third batch ends the first epoch and begins the second
    task = MQARTask(MQARConfig(vocabulary=256, pairs=3), examples=10)
    rows = walk(task, seed=0, size=4, batches=8)
    epochs = [rows[start : start + 10] for start in (0, 10, 20)]

    # Then each epoch has the same 10 sequences, all different, in an order of its own (the same once in 3.6 million)
    assert [len(set(epoch)) for epoch in epochs] == [10, 10, 10]
    assert set(epochs[0]) == set(epochs[1]) == set(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    # and the walk does not depend on the steps that it is cut into, even where one is longer than the set
    assert walk(task, seed=0, size=16, batches=2) == rows
    # and another seed has another set (two sequences agree once in 10^13)
    assert not set(walk(task, seed=1, size=4, batches=3)) & set(rows)


def test_without_a_fixed_set_no_sequence_comes_twice():
    task = MQARTask(MQARConfig(vocabulary=256, pairs=3))
    assert len(set(walk(task, seed=0, size=4, batches=8))) == 32


def test_splits_share_no_sequence_and_only_training_repeats():
    fresh = MQARTask(MQARConfig(vocabulary=256, pairs=3))
    fixed = MQARTask(fresh.data, examples=4)
    rows = {
        split: [row.tobytes() for i in range(2) for row in np.asarray(fixed.batch(split, 0, i, 24, 4).token_BxT)]
        for split in SPLITS
    }
    assert {split: len(set(found)) for split, found in rows.items()} == {"train": 4, "held_out": 8, "validation": 8}
    assert len(set().union(*rows.values())) == 4 + 8 + 8
    for split in ("held_out", "validation"):  # they do not know of the set
        jax.tree.map(np.testing.assert_array_equal, fixed.batch(split, 0, 1, 24, 4), fresh.batch(split, 0, 1, 24, 4))
    # Data and initial parameters come from different keys, whatever the split.
    assert DATA not in (step.INIT, step.EVALUATION)


def test_length_and_size_are_those_asked_for():
    assert SMALL.batch("train", 0, 0, 12, 4).token_BxT.shape == (4, 12)
    with pytest.raises(ValueError, match=r"length must be even and at least 4 \* pairs, got length=10 and pairs=3"):
        SMALL.batch("train", 0, 0, 10, 4)


def says(token_BxT, D: int = 16) -> tuple[MQARParams, jax.Array]:
    """(orthogonal embedding, hidden states that say these tokens): a logit of D^1/2 at the token, 0 elsewhere."""
    return MQARParams(jnp.eye(16, D), jnp.ones(D)), jnp.eye(16, D)[token_BxT]


@pytest.mark.parametrize(("shift", "accuracy"), [(0, 1.0), (1, 0.0)])
def test_accuracy_is_the_share_of_values_said_where_they_are_asked_for(shift, accuracy):
    # Given hidden states that say every target, or another value; elsewhere they say the filler
    batch = SMALL.batch("held_out", 0, 0, 24, 4)
    said_BxT = jnp.where(batch.target_BxT >= 0, 8 + (batch.target_BxT - 8 + shift) % 8, 0)
    loss, metrics = score(SMALL, *says(said_BxT), batch)

    # Then all 4 * 3 answers are right, or none, and cost log(e^4 + 15) minus the target's logit, which is 4 or 0
    assert [float(part) for part in metrics["accuracy"]] == [12 * accuracy, 12]
    nats = np.log(np.exp(4) + 15) - 4 * accuracy
    # The norm adds 1e-6 to a mean square of 1/16, which takes 3.2e-5 off a logit of 4.
    np.testing.assert_allclose(loss, nats, rtol=0, atol=4e-5)
    np.testing.assert_allclose(metrics["answer_nats"], [12 * nats, 12], rtol=0, atol=12 * 4e-5)


def test_the_loss_is_the_cross_entropy_at_queries_of_a_tied_read_out():
    batch, D = SMALL.batch("train", 0, 0, 24, 4), 16
    params = SMALL.init(jax.random.key(0), D)._replace(norm_D=jnp.linspace(0.5, 2, D))
    y_BxTxD = jax.random.normal(jax.random.key(1), (4, 24, D))
    loss, metrics = score(SMALL, params, y_BxTxD, batch)

    y, token = np.asarray(y_BxTxD, np.float64), np.asarray(params.token_AxD, np.float64)
    logits = y / np.sqrt(np.mean(y**2, -1, keepdims=True)) * np.linspace(0.5, 2, D) @ token.T
    asked, target = np.asarray(batch.target_BxT) >= 0, np.asarray(batch.target_BxT)
    log_p = logits[asked] - np.log(np.exp(logits[asked]).sum(-1, keepdims=True))
    np.testing.assert_allclose(loss, -log_p[np.arange(12), target[asked]].mean(), rtol=1e-5)  # float32 against float64
    assert metrics["accuracy"][0] == np.sum(log_p.argmax(-1) == target[asked])


def test_only_queries_are_learned_from():
    # Given hidden states at every place
    batch, D = SMALL.batch("train", 0, 0, 24, 4), 16
    params, y_BxTxD = SMALL.init(jax.random.key(0), D), jax.random.normal(jax.random.key(1), (4, 24, D))
    gradient_BxTxD = jax.grad(lambda y: score(SMALL, params, y, batch)[0])(y_BxTxD)

    # Then those at queries matter, and the others not at all, though more rows than queries meet the vocabulary
    moved_BxT = np.any(np.asarray(gradient_BxTxD) != 0, axis=-1)
    np.testing.assert_array_equal(moved_BxT, batch.target_BxT >= 0)
    assert np.sum(moved_BxT) == 4 * 3 < 4 * 24 // 4


def test_a_token_is_embedded_by_its_row_at_unit_length():
    batch, D = SMALL.batch("train", 0, 0, 24, 4), 128
    params = MQARTask(MQARConfig(vocabulary=1024)).init(jax.random.key(0), D)
    x_BxTxD, gap = SMALL.embed(params, batch)
    assert gap is None
    np.testing.assert_array_equal(x_BxTxD[2, 5], params.token_AxD[batch.token_BxT[2, 5]])
    # 1024 * 128 weights of variance 1/128: the estimate has a relative standard error of (2 / 131072)^1/2 = 0.0039
    assert abs(np.var(params.token_AxD) * D - 1) < SIGMAS * 0.0039


@pytest.mark.parametrize("length", [12, 24])  # with no place to spare, and with twice as many as needed
def test_every_token_is_of_one_kind(length):
    batch = SMALL.batch("train", 0, 0, length, 4)
    groups = SMALL.groups(batch)
    assert list(groups) == ["query", "pair_key", "pair_value", "filler"]
    np.testing.assert_array_equal(sum(marks.astype(jnp.int32) for marks in groups.values()), 1)
    position_T = np.arange(length)
    np.testing.assert_array_equal(groups["query"], batch.target_BxT >= 0)
    for name, odd in (("pair_key", 0), ("pair_value", 1)):
        np.testing.assert_array_equal(groups[name], np.tile((position_T < 6) & (position_T % 2 == odd), (4, 1)))


def test_no_pair_recurs():
    assert np.all(SMALL.asked(SMALL.batch("train", 0, 0, 24, 4)) == -1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"pairs": 0}, "MQARConfig.pairs must be at least 1, got 0"),
        ({"batch": 0}, "MQARConfig.batch must be at least 1, got 0"),
        ({"length": 510}, r"4 \* pairs, got length=510 and pairs=128: give at least 512 tokens, or fewer pairs"),
        ({"length": 513}, "length must be even and .* got length=513 and pairs=128"),
        ({"vocabulary": 256}, "got vocabulary=256 and pairs=128: give at least 258"),
        ({"vocabulary": 8191}, "vocabulary must be even and .* got vocabulary=8191 and pairs=128"),
        ({"power": 0.0}, r"power must be above 0 \(1: all gaps alike\), got 0.0"),
        ({"power": float("nan")}, "power must be finite, got nan"),
        ({"power": float("inf")}, "power must be finite, got inf"),
    ],
)
def test_a_bad_config_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        MQARConfig(**bad)


def test_a_bad_task_is_named():
    with pytest.raises(ValueError, match=r"examples must be at least 0 \(0: fresh sequences .*\), got -1"):
        MQARTask(examples=-1)
