"""Streams keep what is theirs: patterns, answers, change. Seeds are fixed; tolerances are 4.5 standard errors."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from shares import SIGMAS, assert_share, assert_share_by_sequence

from cram_jax.tasks import streams
from cram_jax.tasks.srcd import BINDING, QUERY, SRCDConfig
from cram_jax.tasks.streams import StreamsConfig

P, UNIVERSE, ANSWERS, S, V = 20, 200, 8, 8, 8  # patterns, key ids, answers; streams and visits that are looked at
CFG = StreamsConfig(
    SRCDConfig(length=512, patterns=P, answers=ANSWERS),
    universe=UNIVERSE,
    lifetimes=(2, 3, 5),
    change_visit=3,
    change_share=0.25,  # patterns 0 to 4
    retire_visit=5,
    retire_share=0.25,  # patterns 15 to 19
)
STREAM, VISIT = (grid.ravel() for grid in np.meshgrid(np.arange(S), np.arange(V)))  # row v * S + s: visit v of stream s


def draw(stream_B=STREAM, visit_B=VISIT, seed: int = 0):
    """Visits as numpy arrays. All calls have 64 rows, so that one compilation serves."""
    assert len(stream_B) == S * V
    return jax.tree.map(np.asarray, streams.visits(CFG, seed, jnp.asarray(stream_B), jnp.asarray(visit_B)))


@pytest.fixture(scope="module")
def lives():
    """Eight visits of eight streams: 32,768 events, about 1,640 queries and 4,900 bindings."""
    return draw()


@pytest.fixture(scope="module")
def firsts():
    """The first visits of 64 streams."""
    return draw(np.arange(64), np.zeros(64, int))


def given(batch):
    """The answer that a binding gives or a query asks for."""
    return np.where(batch.kind_BxT == QUERY, batch.answer_BxT, batch.value_BxT)


def one_offs(batch, b: int):
    """Bindings that are new in row b: their keys to their answers."""
    new_T = (batch.kind_BxT[b] == BINDING) & (batch.pattern_BxT[b] < 0)
    keys = batch.key_BxT[b, new_T].tolist()
    assert len(set(keys)) == len(keys), "a one-off key is bound once in a visit"
    return dict(zip(keys, batch.value_BxT[b, new_T].tolist(), strict=True))


def pattern_keys(batch, b: int):
    """Keys of the patterns that row b shows: pattern to key."""
    recurs_T = batch.pattern_BxT[b] >= 0
    pairs = set(zip(batch.pattern_BxT[b, recurs_T].tolist(), batch.key_BxT[b, recurs_T].tolist(), strict=True))
    keys = dict(pairs)
    assert len(keys) == len(pairs) == len(set(keys.values())), "a pattern has one key of its own"
    return keys


def test_a_visit_can_be_made_again(lives):
    # The same visits in another order, in other rows of the batch
    order = np.random.default_rng(0).permutation(S * V)
    again = draw(STREAM[order], VISIT[order])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[order]), again, lives)
    # and one alone, with all arguments traced: numbers may be rounded otherwise where the batch has no axis, by some
    # units of 1e-7, which the process (0.95) adds up 20 times
    row = 3 * S + 5
    alone = jax.jit(streams.visit, static_argnums=0)(CFG, 0, 5, 3)
    for name, a, b in zip(alone._fields, alone, lives, strict=True):
        np.testing.assert_allclose(a, b[row], rtol=1e-5 * (b.dtype == np.float32), atol=1e-5 * (b.dtype == np.float32))
        assert b.shape == (S * V, CFG.srcd.length), name


def test_seed_stream_and_visit_each_make_another_sequence(lives):
    target_VxS = lives.target_BxT[:, -1].reshape(V, S)
    assert len(np.unique(target_VxS)) == S * V
    assert not np.any(draw(seed=1).target_BxT[:, -1] == lives.target_BxT[:, -1])


def test_shares_are_those_of_srcd(lives):
    query_BxT, binding_BxT = lives.kind_BxT == QUERY, lives.kind_BxT == BINDING
    assert_share(query_BxT.sum(), query_BxT.size, 0.05)
    assert_share(binding_BxT[:, 1:].sum(), binding_BxT[:, 1:].size, 0.15)  # the first event always binds
    assert_share(np.sum(binding_BxT & (lives.pattern_BxT < 0)), binding_BxT.sum(), 0.3)
    assert_share_by_sequence(lives.is_new_BxT.sum(1), query_BxT.sum(1), 0.3)
    np.testing.assert_array_equal(lives.is_new_BxT, query_BxT & (lives.pattern_BxT < 0))


def test_every_answer_stands_in_its_visit(lives):
    for b in range(S * V):
        bound = {}
        for kind, key, answer in zip(lives.kind_BxT[b], lives.key_BxT[b], given(lives)[b], strict=True):
            if kind == BINDING:
                assert bound.setdefault(key, answer) == answer
            if kind == QUERY:
                assert bound[key] == answer


def test_streams_share_ids_by_chance_and_agree_on_their_answers_by_chance(firsts):
    recurs_BxT, answer_BxT = firsts.pattern_BxT >= 0, given(firsts)
    tables = [
        dict(zip(firsts.key_BxT[b, recurs_BxT[b]].tolist(), answer_BxT[b, recurs_BxT[b]].tolist(), strict=True))
        for b in range(64)
    ]
    common, expected, variance, agree = 0, 0.0, 0.0, 0
    for one, other in itertools.combinations(tables, 2):
        keys = one.keys() & other.keys()
        common += len(keys)
        agree += sum(one[key] == other[key] for key in keys)
        share = len(one) / UNIVERSE  # two random subsets of the ids: hypergeometric
        expected += len(other) * share
        variance += len(other) * share * (1 - share) * (UNIVERSE - len(other)) / (UNIVERSE - 1)
    # Pairs of independent random subsets are pairwise independent, so variances add: 3,500 +- 53 common ids.
    assert abs(common - expected) < SIGMAS * variance**0.5
    assert_share(agree, common, 1 / ANSWERS)


def test_any_id_is_a_pattern_in_some_streams_and_new_in_others(firsts):
    # Of 200 ids, 0.3 are missing on average among the patterns of 64 streams and 0.1 among their one-off keys.
    recurring = {key for b in range(64) for key in pattern_keys(firsts, b).values()}
    new = {key for b in range(64) for key in one_offs(firsts, b)}
    for ids in (recurring, new):
        assert len(ids) > UNIVERSE - 10 and min(ids) >= 0 and max(ids) < UNIVERSE


def test_one_offs_are_no_patterns_of_their_stream_and_have_new_answers_in_each_visit(lives):
    agree, total = 0, 0
    for s in range(S):
        rows = np.flatnonzero(STREAM == s)
        theirs = {key for b in rows for key in pattern_keys(lives, b).values()}
        assert len(theirs) == P  # each is bound about 20 times in a life
        new = [one_offs(lives, b) for b in rows]
        assert not any(theirs & one.keys() for one in new)
        for one, other in itertools.combinations(new, 2):
            agree += sum(one[key] == other[key] for key in one.keys() & other.keys())
            total += len(one.keys() & other.keys())
    assert total > 300  # about 650: two visits have 23 * 23 / 180 one-off keys in common
    assert_share(agree, total, 1 / ANSWERS)


def test_keys_and_answers_last_for_life_but_for_the_change(lives):
    answer_BxT = given(lives)
    for s in range(S):
        keys, before, after = {}, {}, {}
        for b in np.flatnonzero(STREAM == s):
            for pattern, key in pattern_keys(lives, b).items():
                assert keys.setdefault(pattern, key) == key
            table = before if VISIT[b] < 3 else after
            for pattern, answer in zip(lives.pattern_BxT[b], answer_BxT[b], strict=True):
                if pattern >= 0:
                    assert table.setdefault(pattern, answer) == answer
        seen = sorted(before.keys() & after.keys())
        assert len(seen) > P - 4  # 160 bindings before, and as many from the change to the retirement
        assert [p for p in seen if before[p] != after[p]] == [p for p in seen if p < 5]


def test_changes_are_marked_at_their_visit_alone():
    marks_VxP = jax.vmap(functools.partial(streams.changes, CFG))(jnp.arange(V))
    np.testing.assert_array_equal(marks_VxP, (np.arange(V) == 3)[:, None] & (np.arange(P) < 5))
    assert not np.any(streams.changes(StreamsConfig(), jnp.arange(V)[0]))


def test_retired_patterns_and_their_ids_never_appear_again(lives):
    for s in range(S):
        rows = np.flatnonzero(STREAM == s)
        keys = {p: key for b in rows[:5] for p, key in pattern_keys(lives, b).items()}
        retired = [keys[p] for p in range(15, 20)]
        later = lives.key_BxT[rows[5:]]
        assert not np.isin(later, retired).any() and lives.pattern_BxT[rows[5:]].max() < 15
    # The others are drawn alike: a fifteenth of the recurring bindings is of each.
    later_BxT = lives.pattern_BxT[VISIT >= 5][lives.kind_BxT[VISIT >= 5] == BINDING]
    for p in range(15):
        assert_share(np.sum(later_BxT == p), np.sum(later_BxT >= 0), 1 / 15)


def test_attention_is_needed_where_no_earlier_visit_asked_for_the_answer(lives):
    @jax.jit
    def live(asked_BxP, batch, visit_B):
        asked_BxP = streams.asked_before(CFG, asked_BxP, visit_B)
        return streams.first_queries(batch, asked_BxP), streams.asked(batch, asked_BxP)

    # Given a memory of the answers that queries of patterns had, and marks left over from a stream before
    notes, asked_BxP = {}, jnp.ones((S, P), bool)
    changed_needs = 0
    for v in range(V):
        batch = type(lives)(*(field[VISIT == v] for field in lives))
        needs_BxT, asked_BxP = map(np.asarray, live(asked_BxP, batch, jnp.full(S, v)))
        fresh_notes = {}
        for s, t in np.ndindex(needs_BxT.shape):
            pattern, answer = int(batch.pattern_BxT[s, t]), int(batch.answer_BxT[s, t])
            if batch.kind_BxT[s, t] != QUERY:
                assert not needs_BxT[s, t]
                continue
            # When a query is asked, then attention is needed unless the memory has this very answer
            assert needs_BxT[s, t] == (pattern < 0 or notes.get((s, pattern)) != answer)
            changed_needs += v == 3 and 0 <= pattern < 5
            if pattern >= 0:
                fresh_notes[s, pattern] = answer
        notes |= fresh_notes  # memory changes between visits
        assert set(zip(*np.nonzero(asked_BxP), strict=True)) <= notes.keys()
    assert changed_needs > 10  # about 8 * 26 * 0.7 / 4: changed patterns were asked for at the change


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"srcd": SRCDConfig(new_keys="shared")}, "srcd.new_keys must stay at its default, 'disjoint', got 'shared'"),
        ({"srcd": SRCDConfig(new_key_ids=5)}, "srcd.new_key_ids must stay at its default, 400, got 5: set universe"),
        ({"srcd": SRCDConfig(changed=5)}, "srcd.changed must stay .* set universe, change_visit and change_share"),
        ({"srcd": SRCDConfig(patterns=0, new_share=1.0)}, "srcd.patterns must be at least 1, got 0"),
        ({"universe": 100}, "universe must be above srcd.patterns, .*, got 100 with srcd.patterns=100"),
        ({"lifetimes": ()}, r"lifetimes must be one or more numbers of visits, each at least 1, got \(\)"),
        ({"lifetimes": (5, 0)}, r"lifetimes must be .*, got \(5, 0\)"),
        ({"change_visit": 0}, "StreamsConfig.change_visit must be at least 1, got 0"),
        ({"retire_visit": 0}, "StreamsConfig.retire_visit must be at least 1, got 0"),
        ({"change_share": 1.5}, "change_share must be a share between 0 and 1, got 1.5"),
        ({"retire_share": -0.5}, "retire_share must be a share between 0 and 1, got -0.5"),
        ({"retire_visit": 1, "retire_share": 1.0}, "retire_share must leave a pattern, got 1.0 with .*patterns=100"),
        ({"srcd": SRCDConfig(answers=1), "change_visit": 1}, "srcd.answers must be at least 2, got 1"),
    ],
)
def test_a_bad_config_is_named(bad, message):
    with pytest.raises(ValueError, match=message):
        StreamsConfig(**bad)
