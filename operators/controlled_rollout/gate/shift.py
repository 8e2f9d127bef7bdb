"""Whether the treatment's durations, or other numbers, are higher as a whole: each request counts, not each event.

Control's frozen quantiles cut the durations into classes; a numeric column's buckets are such classes. A request counts
with its class's normal score: the mean of a standard normal variable between the same quantiles. In a bin let S be the
sum of the treatment's scores. Given how many requests of both versions fell into each class, and that the versions are
alike, every choice of the treatment's n_T requests among all is as likely as any other, so that

    LR(h) = exp(h S) / E[exp(h S)],    E[exp(h S)] = Z(h) / Z(0),
    Z(h) = the coefficient of z^n_T in the product over the classes of (1 + z exp(h score))^(requests in the class)

has mean 1, whatever the distribution of the durations: a rank test with normal scores (Hájek, Šidák, Sen, Theory of
Rank Tests, 1999, ch. 4), tilted by h. One more slow request of the treatment, or one less of control, never lowers it,
so its mean is at most 1 as well while the treatment exceeds no quantile more often than control. A tilt below 0 finds
what is lower.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Metric
from controlled_rollout.gate.mixture import log_evidence_paths
from controlled_rollout.gate.odds import FEW_EVENTS, binomials, saddle_point_value
from controlled_rollout.gate.rate import log_gamma

__all__ = ["TILTS", "TILT_WEIGHTS", "Shift", "duration_shift", "score_burstiness", "scores"]

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

# A log-normal duration with a spread of 0.6 that is 6, 13, 27, 62 or 160 % longer shifts by so many of its spreads.
TILTS: Final = (0.1, 0.2, 0.4, 0.8, 1.6)
# A slow-down that matters and is not plain at once is mostly one of 15 to 50 %.
TILT_WEIGHTS: Final = tuple(weight / 11 for weight in (1, 3, 4, 2, 1))
NEWTON_STEPS: Final = 5
LONGEST_STEP: Final = 1.0


class Shift:
    """The likelihood-ratio processes that the treatment's values as a whole are higher than control's, or lower."""

    def __init__(
        self, treatment: Floats, control: Floats, values: Floats, *, burst: float = 1.0, cap: float | None = None
    ) -> None:
        """Take the bins in which both versions have requests.

        Args:
            treatment: The treatment's requests: one row per class, one column per bin.
            control: Control's requests, likewise.
            values: The score of each class.
            burst: By how much the scores vary more than those of independent requests; gains are divided by it.
            cap: The largest likelihood ratio that one bin may contribute; None for no cap.
        """
        self._burst = burst
        self._log_cap = math.inf if cap is None else math.log(cap)
        both = (treatment.sum(axis=0) > 0) & (control.sum(axis=0) > 0)
        of_treatment, of_control = np.where(both, treatment, 0.0), np.where(both, control, 0.0)
        self._scores = values
        self._sizes = of_treatment + of_control
        # The fewer requests are drawn: choosing the treatment's is leaving out control's.
        self._turned = of_control.sum(axis=0) < of_treatment.sum(axis=0)
        self._drawn = np.where(self._turned, of_control.sum(axis=0), of_treatment.sum(axis=0))
        self._sum = self._scores @ np.where(self._turned, -of_control, of_treatment)
        self._one_class = self._sizes.max(axis=0) == self._sizes.sum(axis=0)
        total = self._sizes.sum(axis=0)
        self._zero = log_gamma(total + 1) - log_gamma(self._drawn + 1) - log_gamma(total - self._drawn + 1)

    def paths(self, bins: int, tilts: Sequence[float] = TILTS) -> list[Floats]:
        """Return a path per tilt: the log of the evidence that the treatment's values are higher, after each bin."""
        # `follow` takes ratios, of which 1 is no difference; here that is a tilt of 0.
        return log_evidence_paths(
            [math.exp(tilt) for tilt in tilts], bins, lambda ratio, n_bins: self.gains(math.log(ratio), n_bins)
        )

    def gains(self, tilt: float, bins: int) -> Floats:
        """Return each bin's log likelihood ratio of a tilt to no tilt, divided for bursts or capped."""
        gains = tilt * self._sum[:bins] - self._log_z(tilt, bins) + self._zero[:bins]
        gains = np.where(self._one_class[:bins], 0.0, gains)
        if self._burst > 1:
            gains /= self._burst
        return np.minimum(gains, self._log_cap) if self._log_cap < math.inf else gains

    def _log_z(self, tilt: float, bins: int) -> Floats:
        """Return log Z of the first `bins` bins for a tilt of the scores, the normaliser of the likelihood."""
        sizes, drawn = self._sizes[:, :bins], self._drawn[:bins]
        signed = np.where(self._turned[:bins], -tilt, tilt)
        result = np.zeros(bins)
        few = np.flatnonzero((drawn <= FEW_EVENTS) & (drawn > 0))
        if len(few):
            result[few] = self._log_z_of_few_requests(few, signed[few])
        many = np.flatnonzero(drawn > FEW_EVENTS)
        if len(many):
            result[many] = self._log_z_of_many_requests(sizes[:, many], drawn[many], signed[many])
        return result

    def _log_z_of_few_requests(self, few: Indices, tilt: Floats) -> Floats:
        """Return log Z of bins in which one version has few requests, by multiplying the classes' polynomials."""
        drawn = self._drawn[few].astype(np.intp)
        degree = int(drawn.max())
        product = np.zeros((degree + 1, len(few)))
        product[0] = 1.0
        for size, score in zip(self._sizes, self._scores, strict=True):
            factor, weight = binomials(size[few], degree), np.exp(tilt * score)
            for power in range(1, degree + 1):
                factor[power:] *= weight
            product = np.stack([(product[: x + 1] * factor[x::-1]).sum(axis=0) for x in range(degree + 1)])
        result: Floats = np.log(np.take_along_axis(product, drawn[np.newaxis], axis=0)[0])
        return result

    def _log_z_of_many_requests(self, sizes: Floats, drawn: Floats, tilt: Floats) -> Floats:
        """Return log Z of bins with many requests of both versions, by a saddle-point approximation (see odds.py)."""
        h, up = float(np.abs(tilt).max()), tilt > 0
        weights = [np.where(up, np.exp(h * score), np.exp(-h * score)) for score in self._scores]
        total = sizes.sum(axis=0)
        # Exact at a tilt of 0, and right to the first order beside it.
        u = np.log(drawn / (total - drawn)) - tilt * (self._scores @ sizes) / total
        for _ in range(NEWTON_STEPS):
            z = np.exp(u)
            mean = variance = np.zeros_like(u)
            for size, weight in zip(sizes, weights, strict=True):
                p = 1 / (1 + 1 / (weight * z))
                mean = mean + size * p
                variance = variance + size * p * (1 - p)
            step = np.clip((drawn - mean) / variance, -LONGEST_STEP, LONGEST_STEP)
            u = u + step
            # A step leaves an error of about its square, and the value is flat at the saddle point.
            if (variance * step**4).max() < 1e-10:
                break
        z = np.exp(u)
        pairs = [(size, weight * z) for size, weight in zip(sizes, weights, strict=True)]
        value, _ = saddle_point_value(pairs, drawn, z)
        return value


def duration_shift(
    treatment: Floats,
    control: Floats,
    slow: Sequence[Metric],
    quantiles: Sequence[float],
    *,
    burst: float = 1.0,
    cap: float | None = None,
) -> Shift:
    """Return the processes that the treatment's durations are longer.

    Args:
        treatment: The treatment's requests, per bin.
        control: Control's requests, per bin.
        slow: The exceedances, one metric per quantile.
        quantiles: Control's quantiles, in the same order.
        burst: By how much the scores vary more than those of independent requests.
        cap: The largest likelihood ratio that one bin may contribute; None for no cap.
    """
    return Shift(
        _per_class(treatment, [metric.treatment for metric in slow], quantiles),
        _per_class(control, [metric.control for metric in slow], quantiles),
        scores(quantiles),
        burst=burst,
        cap=cap,
    )


def scores(quantiles: Sequence[float]) -> Floats:
    """Return the normal score of each class between neighbouring quantiles, from the lowest to the highest."""
    normal = NormalDist()
    edges = [0.0, *sorted(quantiles), 1.0]
    heights = [0.0, *(normal.pdf(normal.inv_cdf(q)) for q in edges[1:-1]), 0.0]
    result: Floats = -np.diff(heights) / np.diff(edges)
    return result


def score_burstiness(requests: Floats, slow: Sequence[Floats], quantiles: Sequence[float]) -> float:
    """Return how much more the mean scores vary between bins than with independent requests; at least 1."""
    served = requests > 0
    counts = _per_class(requests[served], [events[served] for events in slow], quantiles)
    n, values = counts.sum(axis=0), scores(quantiles)
    if len(n) < 2:
        return 1.0
    mean = float((values @ counts).sum() / n.sum())
    variance = float(((values - mean) ** 2 @ counts).sum() / n.sum())
    if variance <= 0:
        return 1.0
    return max(1.0, float((n * (values @ counts / n - mean) ** 2).sum()) / variance / (len(n) - 1))


def _per_class(requests: Floats, slow: Sequence[Floats], quantiles: Sequence[float]) -> Floats:
    """Return the requests between neighbouring quantiles (duration classes), one row per class.

    A request that exceeds a quantile exceeds every lower one: smaller counts (they were sampled) are raised to that.
    """
    order = sorted(range(len(quantiles)), key=lambda index: quantiles[index])
    above = np.array([requests, *(slow[index] for index in order), np.zeros_like(requests)])
    above = np.maximum.accumulate(above[::-1], axis=0)[::-1]
    between: Floats = above[:-1] - above[1:]
    return between
