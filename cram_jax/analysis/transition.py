"""Detects when attention falls during training."""

import numpy as np


def smooth(values, width: int = 5) -> np.ndarray:
    """Returns the centred running median, which ignores single outliers. The window is shorter at both ends."""
    values = np.asarray(values, float)
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def transition_step(steps, attention) -> int | None:
    """Returns the first step from which smoothed attention stays below the geometric mean of its peak and its end.

    Args:
      steps: logged steps of a run.
      attention: share of tokens that attended at each of these steps.

    Returns:
      The step, or None if attention does not end at or below half of its peak.
    """
    curve = np.maximum(smooth(attention), 1e-6)
    peak, end = curve.max(), curve[-1]
    if end > peak / 2:
        return None
    above = np.flatnonzero(curve >= np.sqrt(peak * end))
    return int(steps[above[-1] + 1])


def rise_at_end(attention, share: float = 0.2) -> float:
    """Returns the largest rise of smoothed attention above its running minimum, relative to it, at the end of a run.

    Args:
      attention: share of tokens that attended at each logged step.
      share: the part of the run, at its end, that is looked at.
    """
    curve = smooth(attention)
    tail = np.maximum(curve[-max(2, round(share * len(curve))) :], 1e-6)
    return float(np.max(tail / np.minimum.accumulate(tail)) - 1)


def last_crossing(steps, curve, level: float) -> float:
    """Returns the first logged step from which the smoothed curve stays below `level`.

    That is the first step of all if the curve is never at or above the level. It is NaN if the curve ends there.
    """
    above = np.flatnonzero(smooth(curve) >= level)
    if not len(above):
        return float(steps[0])
    return float(steps[above[-1] + 1]) if above[-1] + 1 < len(steps) else float("nan")


def by_pattern(steps_K, asked_KxP, episodic_KxP) -> dict[str, list[float] | float]:
    """Returns when each recurring pattern's queries stop attending, to see whether they stop together.

    If the patterns stop together, their mean falls as fast as each of them. If each stops at its own time, the mean
    falls more slowly, by about the spread of `settled`.

    Args:
      steps_K: logged steps.
      asked_KxP: queries of each pattern since the logged step before.
      episodic_KxP: those of them that chose attention.

    Returns:
      settled: for each pattern, the step from which fewer than half of its queries attend.
      widths: for each pattern, the number of steps between 90% and 10%.
      width_of_mean: the same number for the mean over patterns.
    """
    asked_KxP, episodic_KxP = np.asarray(asked_KxP, float), np.asarray(episodic_KxP, float)
    share_KxP = np.divide(episodic_KxP, asked_KxP, out=np.ones_like(asked_KxP), where=asked_KxP > 0)
    width = lambda curve: last_crossing(steps_K, curve, 0.1) - last_crossing(steps_K, curve, 0.9)
    return {
        "settled": [last_crossing(steps_K, share_K, 0.5) for share_K in share_KxP.T],
        "widths": [width(share_K) for share_K in share_KxP.T],
        "width_of_mean": width(share_KxP.mean(axis=1)),
    }
