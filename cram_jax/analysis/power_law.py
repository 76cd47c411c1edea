"""Fits of the probability P(k) that a query attends after k exposures of its pattern (CRAM, Eq 14).

The paper's curve is a power law, P(k) = a (k + 1)^-gamma. Two alternatives are fitted beside it: an exponential,
a exp(-k / tau), and a logistic curve in log(k + 1), which is a transition of any width at some exposure. Each curve has
two parameters.
"""

import dataclasses

import numpy as np
from scipy.optimize import least_squares

CURVES = {
    # The parameters may be any real numbers; positive quantities are their exponentials.
    "power_law": lambda k, p: np.exp(p[0]) * (k + 1) ** -p[1],
    "exponential": lambda k, p: np.exp(p[0] - k * np.exp(-p[1])),
    "logistic": lambda k, p: 1 / (1 + np.exp(np.clip(np.exp(p[0]) * (np.log(k + 1) - p[1]), -50, 50))),
}


@dataclasses.dataclass(frozen=True)
class PowerLawFit:
    """exponent: gamma.
    interval: its 95% confidence interval (low, high), from the curvature at the minimum.
    scale: a.
    goodness: share of P's weighted variance that the power law explains. 1 is best; below 0 is worse than a constant.
    alternatives: goodness of the other curves, by name.
    parameters: parameters of all curves by name, as CURVES takes them.
    """

    exponent: float
    interval: tuple[float, float]
    scale: float
    goodness: float
    alternatives: dict[str, float]
    parameters: dict[str, tuple[float, ...]]


def curve(name: str, exposures_K, parameters) -> np.ndarray:
    """Returns P at these exposures, for the curve of that name."""
    return CURVES[name](np.asarray(exposures_K, float), np.asarray(parameters, float))


def fit(exposures_K, probability_K, count_K=None) -> PowerLawFit:
    """Fits all curves to P(k) by weighted least squares. It fits P, not log P, so points with P = 0 count like others.

    Args:
      exposures_K: k, at least 0.
      probability_K: share of the queries after k exposures that attended.
      count_K: number of those queries, the weight of a point; equal by default.

    Raises:
      ValueError: for fewer than 4 points, or numbers out of range.
    """
    k, p = np.asarray(exposures_K, float), np.asarray(probability_K, float)
    weight = np.ones_like(k) if count_K is None else np.asarray(count_K, float)
    if not k.shape == p.shape == weight.shape or k.ndim != 1:
        raise ValueError(
            f"exposures, probabilities and counts must have one length, got {k.shape}, {p.shape}, {weight.shape}"
        )
    if len(k) < 4:
        raise ValueError(f"a fit of two parameters needs at least 4 points, got {len(k)}")
    if np.any(k < 0) or np.any((p < 0) | (p > 1)) or np.any(weight <= 0):
        raise ValueError("exposures must be at least 0, probabilities between 0 and 1, and counts above 0")
    root = np.sqrt(weight / weight.sum())
    spread = np.sum((root * (p - np.average(p, weights=weight))) ** 2)
    found, goodness = {}, {}
    for name, starts in _starts(k).items():
        residual = lambda free, name=name: root * (CURVES[name](k, free) - p)
        best = min((least_squares(residual, start) for start in starts), key=lambda result: result.cost)
        found[name], goodness[name] = best, 1 - 2 * best.cost / spread if spread else float("nan")
    power = found["power_law"]
    variance = 2 * power.cost / max(len(k) - 2, 1) * np.linalg.pinv(power.jac.T @ power.jac)[1, 1]
    exponent, margin = power.x[1], 1.96 * np.sqrt(variance)
    return PowerLawFit(
        exponent=float(exponent),
        interval=(float(exponent - margin), float(exponent + margin)),
        scale=float(np.exp(power.x[0])),
        goodness=float(goodness.pop("power_law")),
        alternatives={name: float(value) for name, value in goodness.items()},
        parameters={name: tuple(map(float, result.x)) for name, result in found.items()},
    )


def _starts(k) -> dict[str, list]:
    """Starting points of each curve's fit. There are several, because the sum of squares has local minima."""
    middles = np.quantile(np.log(k + 1), [0.1, 0.3, 0.5, 0.7, 0.9])
    return {
        "power_law": [(0.0, 0.3), (0.0, 1.0)],
        "exponential": [(0.0, middle) for middle in middles],
        "logistic": [(steep, middle) for middle in middles for steep in (0.5, 2.0)],
    }
