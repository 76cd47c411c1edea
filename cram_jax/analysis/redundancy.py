"""How much of what attention gives could be had without it: a linear probe of the state that enters it (CRAM, Eq 1)."""

import dataclasses

import numpy as np

SHARES = (0.5, 0.8)  # between which the paper counts


@dataclasses.dataclass(frozen=True)
class RedundancyReport:
    """Over held-out tokens, of R = 1 - |a - a_hat| / |a|: one minus a relative error, at most 1, and below 0 where the
    probe is worse than saying 0.

    mean: of R. median: of R. above: share of tokens with R > 0.8. between: with 0.5 <= R <= 0.8. below: with R < 0.5.
    explained: share of a's variance the probe explains (R squared): another statistic, for comparison.
    tokens: held-out ones with |a| > 0, over which all this is. left_out: those with |a| = 0.
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
    """Eq 1 on held-out tokens, with an affine probe fitted by ridge regression to the others.

    Args:
      hidden_NxD: the state that enters attention. attention_output_NxE: what attention gives for the same tokens.
      train_fraction: the first tokens, to which the probe is fitted; the score is of the rest. Tokens of one sequence
        are alike, so give whole sequences one after the other.
      ridge: of the mean squared error, relative to the mean variance of a coordinate of the state.

    Raises:
      ValueError: for arrays that are not of the same tokens or not finite, numbers out of range, or fewer tokens to fit
        than the probe has inputs.
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
        raise ValueError("attention_output is 0 for every held-out token, where Eq 1 says nothing")
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
