"""An upper bound on a rate that holds at every look: the Beta(1/2, 1/2) mixture of Bernoulli likelihood ratios.

For a rate p the evidence against it after n requests with x errors is B(x + 1/2, n - x + 1/2) / (B(1/2, 1/2) p^x
(1 - p)^(n - x)), a martingale that starts from 1 when p is true (Robbins, 1970; Howard and others, Time-uniform
nonparametric confidence sequences, 2021). The rates against which the evidence is still short of 1 / alpha form a
confidence sequence.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from controlled_rollout.gate.mixture import POINTS

__all__ = ["evidence_path", "log_evidence", "log_gamma", "rate_of_odds", "upper_bound"]

Floats = NDArray[np.float64]

LOG_PI: Final = math.log(math.pi)  # B(1/2, 1/2) = pi
HALF_LOG_TWO_PI: Final = 0.5 * math.log(2 * math.pi)
# Stirling's series is exact to a float's last digits from about here on.
SHIFT: Final = 8


def log_evidence(rate: ArrayLike, errors: ArrayLike, requests: ArrayLike) -> Floats:
    """Return the log of the evidence that the true error rate is below `rate`.

    The least over all rates from `rate` up: above it, whatever the true rate is, the evidence is a fair game or less.

    Args:
        rate: Above 0 and at most 1.
        errors: How many of the requests were errors; a fraction when bursts are discounted.
        requests: How many there were.
    """
    x, n = np.asarray(errors, dtype=np.float64), np.asarray(requests, dtype=np.float64)
    return _log_evidence(rate, x, n, _log_mixture(x, n))


def _log_mixture(errors: Floats, requests: Floats) -> Floats:
    """Return the log of the Beta(1/2, 1/2) mixture of the likelihoods: the part of the evidence that has no rate."""
    good = np.maximum(requests - errors, 0.0)
    mixture: Floats = log_gamma(errors + 0.5) + log_gamma(good + 0.5) - log_gamma(requests + 1) - LOG_PI
    return mixture


def _log_evidence(rate: ArrayLike, errors: Floats, requests: Floats, log_mixture: Floats) -> Floats:
    """Return `log_evidence`, given `_log_mixture` of the same counts."""
    good = np.maximum(requests - errors, 0.0)
    p = np.maximum(rate, errors / np.maximum(requests, np.finfo(np.float64).tiny))
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = errors * np.log(p) + np.where(good > 0, good * np.log1p(-p), 0.0)
    return np.where(requests > 0, log_mixture - likelihood, 0.0)


def evidence_path(rate: float, errors: Floats, requests: Floats, burst: float) -> Floats:
    """Return the log of the evidence that the true error rate is below `rate`, after each bin.

    Args:
        rate: The acceptable rate.
        errors: The treatment's errors, per bin.
        requests: The treatment's requests, per bin.
        burst: By how much errors come in bursts (1 = independently): every count weighs 1 / burst.
    """
    return log_evidence(rate, np.cumsum(errors) / burst, np.cumsum(requests) / burst)


def upper_bound(errors: float, requests: float, alpha: float) -> float:
    """Return an upper bound of the true error rate, exceeded with probability `alpha` at most over all looks."""
    goal = -math.log(alpha)
    x, n = np.asarray(errors, dtype=np.float64), np.asarray(requests, dtype=np.float64)
    mixture = _log_mixture(x, n)  # the same for all rates
    low, high = (errors / requests if requests else 1.0), 1.0
    while high - low > 1e-15 * high:
        points = np.linspace(low, high, POINTS)
        enough = np.flatnonzero((_log_evidence(points, x, n, mixture) >= goal) | (points == high))
        index = int(enough[0])
        if not index or (points[index - 1], points[index]) == (low, high):
            break
        low, high = float(points[index - 1]), float(points[index])
    return high


def rate_of_odds(odds: float) -> float:
    """Return the probability that has these odds."""
    return odds / (1 + odds)


def log_gamma(x: Floats) -> Floats:
    """Return log Gamma(x) for x > 0 by Stirling's series; small x are shifted up (Abramowitz and Stegun, 6.1.40)."""
    small = x < SHIFT
    log_product: Floats | float = 0.0
    z = x
    if small.any():
        shifted = np.where(small, x, 1.0)
        product = shifted
        for step in range(1, SHIFT):
            product = product * (shifted + step)
        log_product = np.where(small, np.log(product), 0.0)
        z = np.where(small, x + SHIFT, x)
    square = 1 / (z * z)
    series = (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188)))) / z
    result: Floats = (z - 0.5) * np.log(z) - z + HALF_LOG_TWO_PI + series - log_product
    return result
