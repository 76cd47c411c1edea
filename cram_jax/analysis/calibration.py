"""Whether a semantic memory that is a posterior knows how wrong it is: its expected against its measured error."""

from typing import NamedTuple

import jax
import numpy as np

from cram_jax.dims import Gaps, Tokens
from cram_jax.functional import consolidation, layer
from cram_jax.functional.layer import Layer
from cram_jax.functional.stream_memory import LEAST, StreamState

BINS = 10


class Calibration(NamedTuple):
    """Means over the tokens of each bin of u, from the surest to the least sure. All bins have as many tokens, about.

    Attributes:
      u: uncertainty of the recall.
      expected: squared error of the recall that u implies, u E|r|^2.
      measured: squared distance of the recall from the retrieval.
      count: tokens.
    """

    u: np.ndarray
    expected: np.ndarray
    measured: np.ndarray
    count: np.ndarray


def in_bins(u_N, squared_error_N, square: float, bins: int = BINS) -> Calibration:
    """Returns expected and measured errors by u.

    Args:
      u_N: uncertainty of each recall.
      squared_error_N: its squared distance from what it should have been.
      square: E|r|^2, the mean square of retrievals: the expected squared error of a memory that is empty.

    Raises:
      ValueError: for arrays of different lengths, or fewer tokens than bins.
    """
    u_N, squared_error_N = np.asarray(u_N, np.float64), np.asarray(squared_error_N, np.float64)
    if u_N.shape != squared_error_N.shape or u_N.ndim != 1 or len(u_N) < bins:
        raise ValueError(
            f"u and squared_error must have one number for each of at least {bins} tokens, got shapes {u_N.shape} and "
            f"{squared_error_N.shape}; give more tokens that retrieve"
        )
    parts = np.array_split(np.argsort(u_N, kind="stable"), bins)
    mean = lambda values: np.array([values[part].mean() for part in parts])
    return Calibration(mean(u_N), mean(square * u_N), mean(squared_error_N), np.array([len(part) for part in parts]))


def measure(
    cfg: Layer, params, state: StreamState, x_BxTxD: Tokens, gap_BxT: Gaps | None = None, bins: int = BINS
) -> Calibration:
    """Returns the calibration of a layer's semantic memory over a batch, in which every token looks up and retrieves.

    What was retrieved is not counted as attention, and the state stays. Tokens that find nothing to attend to are left
    out.

    Args:
      cfg, params: a layer whose state is a `StreamState` (`PosteriorCRAMConfig`).
      state: its state, after the release.

    Raises:
      ValueError: before the release, when nothing is looked up, or for too few tokens.
    """
    if not bool(state.retrievals.released):
        raise ValueError("state must be released: before that no token asks semantic memory; see cfg.release")
    run = jax.jit(layer.apply, static_argnames="cfg")
    key = jax.random.key(0)  # audits of every token: which number it is does not matter
    _, aux = run(params, state, x_BxTxD, cfg=cfg.audited(), gap_BxT=gap_BxT, key=key)
    found = np.asarray(aux.routes.retrieved_BxT)
    square = float(state.retrievals.square / max(float(state.retrievals.weight), LEAST))
    # Eq 6 undone: familiarity is exp(-u E|r|^2 / sigma^2), and quality exp(-|error|^2 / sigma^2)
    sigma2 = float(consolidation.variance(state.retrievals))
    least = np.finfo(np.asarray(aux.routes.quality_BxT).dtype).tiny
    squared = lambda quality: -sigma2 * np.log(np.maximum(np.asarray(quality)[found], least).astype(np.float64))
    expected, error = squared(aux.routes.familiarity_BxT), squared(aux.routes.quality_BxT)
    return in_bins(expected / square, error, square, bins)
