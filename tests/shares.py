"""Shares of random events against what they should be, for several files of tests."""

import numpy as np

SIGMAS = 4.5  # a right sampler fails one such check in 150,000 keys


def assert_share(count: int, total: int, share: float):
    """A binomial count, within SIGMAS standard errors of the share."""
    assert abs(count / total - share) < SIGMAS * (share * (1 - share) / total) ** 0.5, (
        f"{count} of {total}, not {share}"
    )


def assert_share_by_sequence(count_B, total_B, share: float):
    """A share whose events depend on each other within a sequence: the error is that of the sequences' own shares."""
    error = np.std(count_B - share * total_B) * len(count_B) ** 0.5 / np.sum(total_B)
    assert error < 0.02, "the sample is too small to tell"
    assert abs(np.sum(count_B) / np.sum(total_B) - share) < SIGMAS * error
