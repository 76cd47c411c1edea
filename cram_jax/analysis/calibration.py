"""Whether a semantic memory that is a posterior knows how wrong it is: its expected against its measured error."""

from typing import NamedTuple

import jax
import numpy as np

from cram_jax.dims import Gaps, Tokens
from cram_jax.functional import consolidation, layer
from cram_jax.functional.layer import Layer
from cram_jax.functional.routing import WORKING
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


def errors(
    cfg: Layer, params, state: StreamState, x_BxTxD: Tokens, gap_BxT: Gaps | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (expected, measured) squared errors of recall for the tokens of a batch that need memory.

    They all look up and retrieve. What was retrieved is not counted as attention, and the state stays. Tokens that find
    nothing to attend to are left out.

    Args:
      cfg, params: a layer whose state is a `StreamState` (`PosteriorCRAMConfig`).
      state: its state, after the release.

    Raises:
      ValueError: before the release, when nothing is looked up.
    """
    if not bool(state.retrievals.released):
        raise ValueError("state must be released: before that no token asks semantic memory; see cfg.release")
    # Audits of every token: which random number it is does not matter
    _, aux = _run(params, state, x_BxTxD, cfg=cfg.audited(), gap_BxT=gap_BxT, key=jax.random.key(0))
    routes = aux.routes
    some = np.asarray(routes.retrieved_BxT & (routes.choice_BxT != WORKING))
    # Eq 6 undone: familiarity is exp(-expected / sigma^2), and quality exp(-measured / sigma^2)
    sigma2 = float(consolidation.variance(state.retrievals))
    least = np.finfo(np.asarray(routes.quality_BxT).dtype).tiny
    squared = lambda quality: -sigma2 * np.log(np.maximum(np.asarray(quality)[some], least).astype(np.float64))
    return squared(routes.familiarity_BxT), squared(routes.quality_BxT)


_run = jax.jit(layer.apply, static_argnames="cfg")
