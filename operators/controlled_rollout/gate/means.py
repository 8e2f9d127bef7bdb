"""The mean of a numeric metric, treatment against control: evidence that it is worse by more than is tolerated.

In a bin with n_T and n_C values let w = n_T n_C / (n_T + n_C). Over the bins S adds up w (mean_T - mean_C - margin) and
V adds up w² (s²_T / n_T + s²_C / n_C). While the means differ by no more than the margin, exp(l S - l² V / 2) is, for
many values, a supermartingale for every l > 0; mixed over a half-normal l of variance k it is

    M = 2 (1 + k V)^(-1/2) exp(k S² / (2 (1 + k V))) Phi(S sqrt(k / (1 + k V)))

(Robbins, 1970; Howard and others, arXiv 1810.08240; for estimated variances Waudby-Smith and others, arXiv 2103.06476).
It is asymptotic: nothing is concluded before 20 bins and 100 values of each version.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from controlled_rollout.gate.columns import Values

__all__ = ["MIN_BINS", "MIN_VALUES", "Differences", "differences", "log_mixture", "mixture_scale"]

Floats = NDArray[np.float64]

MIN_BINS: Final = 20
MIN_VALUES: Final = 100
# The difference, in standard deviations, that the mixture is aimed at.
AIM: Final = 0.1
# Below this Phi is computed by its leading term; erfc would underflow.
FAR_BELOW: Final = -30.0


@dataclass(frozen=True, slots=True)
class Differences:
    """The difference of two means, bin by bin.

    Attributes:
        weight: w, per bin; 0 where the bin cannot be used.
        difference: The treatment's mean less control's, per bin.
        variance: w² times the variance of that difference, per bin.
        ready: The first bin from which on something may be concluded; None if there is none.
    """

    weight: Floats
    difference: Floats
    variance: Floats
    ready: int | None


def differences(treatment: Values, control: Values) -> Differences:
    """Return the difference of the treatment's and control's mean in each bin, with its variance and weight.

    A version with a single value in a bin has no variance of its own: it is taken to have the other's. A bin with one
    value of each cannot be used.
    """
    n, m = treatment.count, control.count
    usable = (n >= 1) & (m >= 1) & (n + m >= 3)
    n, m = np.where(usable, n, 2.0), np.where(usable, m, 2.0)
    variance_t = np.where(n >= 2, treatment.variance, control.variance)
    variance_c = np.where(m >= 2, control.variance, treatment.variance)
    weight = np.where(usable, n * m / (n + m), 0.0)
    difference = np.where(usable, treatment.mean - control.mean, 0.0)
    enough = (
        (np.cumsum(usable) >= MIN_BINS)
        & (np.cumsum(np.where(usable, n, 0.0)) >= MIN_VALUES)
        & (np.cumsum(np.where(usable, m, 0.0)) >= MIN_VALUES)
    )
    ready = np.flatnonzero(enough)
    variance = weight**2 * (variance_t / n + variance_c / m)
    return Differences(weight, difference, variance, int(ready[0]) if len(ready) else None)


def mixture_scale(by_bin: Differences) -> float:
    """Return the mixture's scale k for the standard deviation of the first bins; it aims at `AIM` of them.

    Only bins up to the first from which something may be concluded count, so that k does not change between looks.
    """
    if by_bin.ready is None:
        return 0.0
    weight = float(by_bin.weight[: by_bin.ready + 1].sum())
    variance = float(by_bin.variance[: by_bin.ready + 1].sum())
    return AIM**2 * weight / variance if variance > 0 else 0.0


def log_mixture(total: ArrayLike, variance: ArrayLike, scale: float) -> Floats:
    """Return the log of the mixture M over effect sizes: the evidence that the true mean of the differences is above 0.

    Args:
        total: S, in the metric's unit times a number of values.
        variance: V, in the square of that.
        scale: k, in one over that square.
    """
    s, spread = np.asarray(total, dtype=np.float64), 1 + scale * np.asarray(variance, dtype=np.float64)
    z = s * np.sqrt(scale / spread)
    result: Floats = math.log(2) - 0.5 * np.log(spread) + 0.5 * z * z + _log_normal_cdf(z)
    return result


def _log_normal_cdf(z: Floats) -> Floats:
    """Return the log of the standard normal distribution function, also far in its lower tail."""
    near = np.maximum(z, FAR_BELOW)
    exact = np.array([math.log(0.5 * math.erfc(-value / math.sqrt(2))) for value in near.ravel()]).reshape(z.shape)
    below = np.minimum(z, FAR_BELOW)
    return np.where(z < FAR_BELOW, -0.5 * below * below - np.log(-below) - 0.5 * math.log(2 * math.pi), exact)
