"""Redundancy of attention (CRAM, Eq 1): how well a linear probe of attention's input predicts its output."""

import dataclasses

import numpy as np

SHARES = (0.5, 0.8)  # values of R at which the paper divides tokens into three classes


@dataclasses.dataclass(frozen=True)
class RedundancyReport:
    """Statistics over held-out tokens of R = 1 - |a - a_hat| / |a|, which is 1 minus the relative error of the probe.

    a is attention's output and a_hat the probe's prediction. R is at most 1, and below 0 if predicting 0 were better.

    Attributes:
      mean, median: mean and median of R.
      above, between, below: shares of tokens with R > 0.8, with 0.5 <= R <= 0.8 and with R < 0.5.
      explained: share of a's variance that the probe explains (R squared), another statistic for comparison.
      tokens: number of held-out tokens with |a| > 0, which all statistics but `explained` are over.
      left_out: number of held-out tokens with |a| = 0.
    """

    mean: float
    median: float
    above: float
    between: float
    below: float
    explained: float
    tokens: int
    left_out: int


def score(hidden_NxD, attention_output_NxE, *, train_fraction: float = 0.5, ridge: float = 1e-3) -> RedundancyReport:
    """Returns Eq 1 on held-out tokens. The probe is affine, and fitted by ridge regression to the other tokens.

    Args:
      hidden_NxD: input of attention.
      attention_output_NxE: output of attention for the same tokens.
      train_fraction: share of the tokens, from the start, that the probe is fitted to. The others are held out. Tokens
        of one sequence are similar, so give whole sequences one after the other.
      ridge: ridge penalty, relative to the mean variance of the input's coordinates.

    Raises:
      ValueError: if the arrays differ in length or are not finite, a number is out of range, or the probe has too few
        tokens to fit.
    """
    hidden_NxD, wanted_NxE = np.asarray(hidden_NxD, np.float64), np.asarray(attention_output_NxE, np.float64)
    if hidden_NxD.ndim != 2 or wanted_NxE.ndim != 2 or len(hidden_NxD) != len(wanted_NxE):
        raise ValueError(
            "hidden and attention_output must be (N D) and (N E) of the same tokens, got "
            f"{hidden_NxD.shape} and {wanted_NxE.shape}"
        )
    if not 0 < train_fraction < 1 or ridge < 0:
        raise ValueError(f"train_fraction must be between 0 and 1 and ridge at least 0, got {train_fraction}, {ridge}")
    if not (np.isfinite(hidden_NxD).all() and np.isfinite(wanted_NxE).all()):
        raise ValueError("hidden and attention_output must be finite; look for NaN or infinity in them")
    n, D = round(train_fraction * len(hidden_NxD)), hidden_NxD.shape[1]
    if n <= D or n == len(hidden_NxD):
        raise ValueError(
            f"a probe of {D} inputs needs more than {D} tokens to fit and some to score, got {n} and "
            f"{len(hidden_NxD) - n}; give more tokens"
        )
    x_mean_D, a_mean_E = hidden_NxD[:n].mean(axis=0), wanted_NxE[:n].mean(axis=0)
    x_NxD, a_NxE = hidden_NxD - x_mean_D, wanted_NxE - a_mean_E
    covariance_DxD = x_NxD[:n].T @ x_NxD[:n] / n
    damping = ridge * np.trace(covariance_DxD) / D + np.finfo(np.float64).tiny
    probe_DxE = np.linalg.solve(covariance_DxD + damping * np.eye(D), x_NxD[:n].T @ a_NxE[:n] / n)

    error_NxE, a_held_NxE = a_NxE[n:] - x_NxD[n:] @ probe_DxE, wanted_NxE[n:]
    norm_N = np.linalg.norm(a_held_NxE, axis=1)
    some_N = norm_N > 0
    if not some_N.any():
        raise ValueError("attention_output is 0 for every held-out token, where Eq 1 is not defined")
    r_N = 1 - np.linalg.norm(error_NxE[some_N], axis=1) / norm_N[some_N]
    spread = np.sum((a_held_NxE - a_held_NxE.mean(axis=0)) ** 2)
    low, high = SHARES
    return RedundancyReport(
        mean=float(r_N.mean()),
        median=float(np.median(r_N)),
        above=float(np.mean(r_N > high)),
        between=float(np.mean((r_N >= low) & (r_N <= high))),
        below=float(np.mean(r_N < low)),
        explained=float(1 - np.sum(error_NxE**2) / spread) if spread else float("nan"),
        tokens=int(some_N.sum()),
        left_out=int((~some_N).sum()),
    )
