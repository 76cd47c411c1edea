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


def last_crossing(steps, curve, level: float) -> float:
    """First logged step from which a smoothed curve stays below `level`; the first one where it always was, NaN where
    it ends above."""
    above = np.flatnonzero(smooth(curve) >= level)
    if not len(above):
        return float(steps[0])
    return float(steps[above[-1] + 1]) if above[-1] + 1 < len(steps) else float("nan")


def by_pattern(steps_K, asked_KxP, episodic_KxP) -> dict[str, list[float] | float]:
    """Whether recurring patterns stop attending together or each at its own time.

    Args:
      steps_K: logged steps. asked_KxP, episodic_KxP: queries of each pattern around it, and those that chose attention.

    Returns:
      settled: by pattern, the step from which fewer than half of its queries attend. widths: by pattern, steps from 90%
      to 10%. width_of_mean: the same of all patterns' mean. Together: the mean is as sharp as its patterns are. Each at
      its own time: the mean is wider, by about what `settled` spreads over.
    """
    asked_KxP, episodic_KxP = np.asarray(asked_KxP, float), np.asarray(episodic_KxP, float)
    share_KxP = np.divide(episodic_KxP, asked_KxP, out=np.ones_like(asked_KxP), where=asked_KxP > 0)
    width = lambda curve: last_crossing(steps_K, curve, 0.1) - last_crossing(steps_K, curve, 0.9)
    return {
        "settled": [last_crossing(steps_K, share_K, 0.5) for share_K in share_KxP.T],
        "widths": [width(share_K) for share_K in share_KxP.T],
        "width_of_mean": width(share_KxP.mean(axis=1)),
    }
