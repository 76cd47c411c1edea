"""Whether a semantic memory that is a posterior knows how wrong it is: its expected against its measured error."""

from typing import NamedTuple

import numpy as np

from cram_jax.functional import consolidation
from cram_jax.functional.routing import WORKING, CRAMRoutes
from cram_jax.functional.stream_memory import StreamState

BINS = 10


class Calibration(NamedTuple):
    """Means over the tokens of each bin, by expected error. All bins have as many tokens, about.

    Attributes:
      expected: squared error of the recall that semantic memory expects.
      measured: squared distance of the recall from the retrieval.
      count: tokens.
    """

    expected: np.ndarray
    measured: np.ndarray
    count: np.ndarray


def in_bins(expected_N, measured_N, bins: int = BINS) -> Calibration:
    """Returns the means of expected and measured errors, in bins of the expected ones.

    Raises:
      ValueError: for arrays of different lengths, or fewer tokens than bins.
    """
    expected_N, measured_N = np.asarray(expected_N, np.float64), np.asarray(measured_N, np.float64)
    if expected_N.shape != measured_N.shape or expected_N.ndim != 1 or len(expected_N) < bins:
        raise ValueError(
            f"expected and measured must have one number for each of at least {bins} tokens, got shapes "
            f"{expected_N.shape} and {measured_N.shape}; give more tokens that retrieve"
        )
    parts = np.array_split(np.argsort(expected_N, kind="stable"), bins)
    mean = lambda values: np.array([values[part].mean() for part in parts])
    return Calibration(mean(expected_N), mean(measured_N), np.array([len(part) for part in parts]))


def errors(state: StreamState, routes: CRAMRoutes) -> tuple[np.ndarray, np.ndarray]:
    """Returns (expected, measured) squared errors of recall, for each token that needs memory and retrieved.

    Args:
      state: of the layer, when it read the batch.
      routes: of a run in which every token was audited: of `cfg.audited()`, with a key. So known tokens retrieved, too.

    Raises:
      ValueError: before the release, when nothing is looked up.
    """
    if not bool(state.retrievals.released):
        raise ValueError("state must be released: before that no token asks semantic memory; see cfg.release")
    some = np.asarray(routes.retrieved_BxT & (routes.choice_BxT != WORKING))
    # Eq 6 undone: familiarity is exp(-expected / sigma^2), and quality exp(-measured / sigma^2)
    sigma2 = float(consolidation.variance(state.retrievals))
    least = np.finfo(np.asarray(routes.quality_BxT).dtype).tiny
    squared = lambda quality: -sigma2 * np.log(np.maximum(np.asarray(quality)[some], least).astype(np.float64))
    return squared(routes.familiarity_BxT), squared(routes.quality_BxT)
