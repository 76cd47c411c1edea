"""Eq 1 on outputs whose redundancy is known."""

import numpy as np
import pytest

from cram_jax.analysis import redundancy

N, D, E = 4000, 12, 7


def states(seed: int = 0):
    """(random, states, a linear map of them)."""
    random = np.random.default_rng(seed)
    x_NxD = random.standard_normal((N, D)) + 3
    return random, x_NxD, x_NxD @ random.standard_normal((D, E)) + 5


def test_what_is_linear_in_the_state_is_redundant():
    _, x, a = states()
    report = redundancy.score(x, a, ridge=0.0)
    assert report.mean > 1 - 1e-9 and report.explained > 1 - 1e-9 and report.above == 1
    assert report.tokens == N // 2 and report.left_out == 0


def test_it_is_one_minus_a_relative_error_and_not_r_squared():
    # a = linear + noise, of equal variance and without a mean: |error| / |a| is about sqrt(1/2), R squared is 1/2
    random, x, _ = states()
    signal = (x - 3) @ np.linalg.qr(random.standard_normal((D, D)))[0][:, :E]
    report = redundancy.score(x, signal + random.standard_normal((N, E)))
    relative = 1 - report.mean
    assert abs(report.explained - 0.5) < 0.03
    assert abs(relative - np.sqrt(0.5)) < 0.05 and abs(report.mean - (1 - np.sqrt(1 - report.explained))) < 0.05
    assert report.below > 0.7 and report.above + report.between + report.below == pytest.approx(1)


def test_what_the_state_does_not_tell_has_no_redundancy():
    random, x, _ = states()
    report = redundancy.score(x, random.standard_normal((N, E)))
    assert abs(report.mean) < 0.02 and abs(report.explained) < 0.02


def test_only_held_out_tokens_are_scored():
    # The second half follows another law: a probe that saw it would do better
    random, x, a = states()
    half = N // 2
    other = np.concatenate([a[:half], x[half:] @ random.standard_normal((D, E))])
    assert redundancy.score(x, other).mean < 0.5 < redundancy.score(x, a).mean
    assert redundancy.score(x, other, train_fraction=0.75).mean > redundancy.score(x, other).mean


def test_a_constant_part_counts_for_redundancy():
    # R is relative to |a| itself, so what attention always gives is redundant; R squared does not count it
    random, x, _ = states()
    report = redundancy.score(x, random.standard_normal((N, E)) + 30)
    assert report.mean > 0.9 and abs(report.explained) < 0.02


def test_tokens_without_output_are_left_out():
    _, x, a = states()
    a[N // 2 :: 4] = 0
    report = redundancy.score(x, a)
    assert report.left_out == N // 8 and report.tokens == N // 2 - N // 8


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(hidden_NxD=np.ones((5, 2))), r"of the same tokens, got \(5, 2\) and \(4000, 7\)"),
        (dict(train_fraction=1.0), "train_fraction must be between 0 and 1"),
        (dict(train_fraction=0.002), "needs more than 12 tokens to fit and some to score, got 8 and 3992"),
        (dict(ridge=-1.0), "ridge at least 0"),
        (dict(attention_output_NxE=np.full((N, E), np.nan)), "must be finite"),
        (dict(attention_output_NxE=np.zeros((N, E))), "0 for every held-out token"),
    ],
)
def test_bad_input_is_named(change, says):
    _, x, a = states()
    given = {"hidden_NxD": x, "attention_output_NxE": a} | change
    hidden, output = given.pop("hidden_NxD"), given.pop("attention_output_NxE")
    with pytest.raises(ValueError, match=says):
        redundancy.score(hidden, output, **given)
