"""Selective copying: what recurs, what is new, and that only the symbols of its round answer a new question."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cram_jax.tasks import copying
from cram_jax.tasks.copying import CopyConfig
from cram_jax.tasks.copying_task import CopyTask

CFG = CopyConfig(batch=200)


@pytest.fixture(scope="module")
def batch():
    return jax.tree.map(np.asarray, jax.jit(copying.sample, static_argnums=1)(jax.random.key(0), CFG))


def in_rounds(leaf_BxT):
    """(round, event)."""
    return np.asarray(leaf_BxT).reshape(-1, CFG.length // CFG.rounds)


def test_every_round_asks_for_its_symbols_in_order(batch):
    symbols, numbers, answers = map(in_rounds, (batch.symbol_BxT, batch.number_BxT, batch.answer_BxT))
    for symbol, number, answer in zip(symbols, numbers, answers, strict=True):
        shown, asked = symbol >= 0, answer >= 0
        assert asked.tolist() == [False] * 12 + [True] * 4 and shown.sum() == 4 and not np.any(shown & asked)
        np.testing.assert_array_equal(symbol[shown], answer[asked])
        np.testing.assert_array_equal(number[shown], number[asked])
        assert np.all(number[~(shown | asked)] == -1)
    first = numbers[:, 12].reshape(-1, CFG.rounds)
    assert np.all(first == np.arange(CFG.rounds) * CFG.phrase), "numbers go on over the sequence"


def test_symbols_are_scattered(batch):
    shown = in_rounds(batch.symbol_BxT)[:, :12] >= 0
    # 4 of 12 places in 800 rounds: each 0.333, within five standard deviations of a place's share
    np.testing.assert_allclose(shown.mean(0), 1 / 3, atol=5 * np.sqrt(2 / 9 / len(shown)))


def test_a_question_shows_the_answer_before_it(batch):
    previous, answer = in_rounds(batch.previous_BxT), in_rounds(batch.answer_BxT)
    np.testing.assert_array_equal(previous[:, 13:], answer[:, 12:-1])
    assert np.all(previous[:, :13] == -1)


def test_within_a_recurring_phrase_the_next_symbol_follows_and_elsewhere_it_does_not(batch):
    known = in_rounds(batch.answer_BxT)[:, 12] < CFG.known_symbols
    assert abs(known.mean() - CFG.recurring_share) < 5 * np.sqrt(0.21 / len(known))
    new = in_rounds(batch.is_new_BxT)
    assert np.all(new[:, 12]) and np.all(new[~known, 12:]) and not np.any(new[known, 13:]) and not np.any(new[:, :12])

    def followers(where):
        pairs = zip(batch.previous_BxT[where].tolist(), batch.answer_BxT[where].tolist(), strict=True)
        found = {}
        for before, after in pairs:
            found.setdefault(before, set()).add(after)
        return found

    recurring = (batch.answer_BxT >= 0) & ~batch.is_new_BxT
    later = batch.is_new_BxT & (batch.previous_BxT >= 0)
    assert len(followers(recurring)) == CFG.phrases * (CFG.phrase - 1)
    assert all(len(after) == 1 for after in followers(recurring).values())
    assert min(len(after) for after in followers(later).values()) > 5
    # ... and the two can be told apart
    assert not followers(recurring).keys() & followers(later).keys()


def test_batches_are_a_function_of_split_seed_and_index():
    task = CopyTask()
    base = ("train", 0, 0, 64, 4)
    same = lambda a, b: np.array_equal(task.batch(*a).answer_BxT, task.batch(*b).answer_BxT)
    assert same(base, base)
    assert not any(same(base, b) for b in (("held_out", 0, 0, 64, 4), ("train", 1, 0, 64, 4), ("train", 0, 1, 64, 4)))
    tables = [copying.phrase_table(dataclasses.replace(CFG, table_seed=seed)) for seed in (0, 0, 1)]
    assert np.array_equal(tables[0], tables[1]) and not np.array_equal(tables[0], tables[2])


def test_scores_of_a_perfect_and_of_a_blind_reader():
    # Given tokens that are the answer's own direction in the read-out, and others that are all alike
    task, D = CopyTask(), 128
    one = task.batch("held_out", 0, 0, 64, 8)
    params = task.init(jax.random.key(0), D)
    params = params._replace(answer_DxA=20 * jnp.eye(D)[:, : task.data.symbols])
    right_BxTxD = jax.nn.one_hot(one.answer_BxT, D)
    _, perfect = task.score(params, right_BxTxD, one)
    _, blind = task.score(params, jnp.ones((8, 64, D)), one)
    share = lambda pair: float(pair[0] / pair[1])
    names = ("accuracy", "accuracy_recurring", "accuracy_new")
    assert [share(perfect[name]) for name in names] == [1, 1, 1]
    assert share(blind["accuracy"]) < 0.1
    np.testing.assert_allclose(share(blind["answer_nats"]), np.log(task.data.symbols), rtol=1e-5)
    # A quarter of all events ask
    assert share(perfect["realised_query_share"]) == 0.25
    assert share(perfect["realised_new_share"]) == np.mean(one.is_new_BxT)


def test_what_is_embedded_is_what_the_model_may_look_at():
    task = CopyTask()
    one, params = task.batch("train", 0, 0, 64, 4), task.init(jax.random.key(0), 16)
    x_BxTxD, gap_BxT = task.embed(params, one)
    # The answers of other symbols, and other marks for counting, do not show
    scrambled = one._replace(
        answer_BxT=jnp.where(one.answer_BxT >= 0, (one.answer_BxT + 1) % 64, -1), is_new_BxT=~one.is_new_BxT
    )
    np.testing.assert_array_equal(x_BxTxD, task.embed(params, scrambled)[0])
    assert gap_BxT is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"length": 62}, "length must be a multiple of rounds"),
        ({"length": 28}, "give 32 or more events"),
        ({"recurring_share": 1.5}, "recurring_share must be a share"),
        ({"phrases": 0}, "CopyConfig.phrases must be at least 1"),
    ],
)
def test_settings_that_make_no_sequence_are_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(CFG, **changes)
