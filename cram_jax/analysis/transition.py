"""When attention stopped being needed: a detector with one rule."""

import numpy as np


def smooth(values, width: int = 5) -> np.ndarray:
    """Centred running median, shorter at the ends: single outliers do not move it."""
    values = np.asarray(values, float)
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def transition_step(steps, attention) -> int | None:
    """First step from which smoothed attention stays below the geometric mean of its peak and its end.

    Args:
      steps, attention: a run's logged steps, and the share of tokens that attended at each.

    Returns:
      The step, or None where attention never fell to half of its peak.
    """
    curve = np.maximum(smooth(attention), 1e-6)
    peak, end = curve.max(), curve[-1]
    if end > peak / 2:
        return None
    above = np.flatnonzero(curve >= np.sqrt(peak * end))
    return int(steps[above[-1] + 1])


def rise_at_end(attention, share: float = 0.2) -> float:
    """The largest rise of smoothed attention over the last `share` of a run, as a share of what it had come down to."""
    curve = smooth(attention)
    tail = np.maximum(curve[-max(2, round(share * len(curve))) :], 1e-6)
    return float(np.max(tail / np.minimum.accumulate(tail)) - 1)
