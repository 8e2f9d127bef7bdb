"""One kind of event tested by its odds ratio: the evidence that the ratio is above a value, or below another."""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.mixture import log_evidence_paths, relevant_bins
from controlled_rollout.gate.odds import Margins

__all__ = [
    "ABOVE",
    "ABOVE_WEIGHTS",
    "BETTER",
    "BOTH_SIDES",
    "MOST_BURST",
    "OddsRatio",
    "bounded_discount",
    "burstiness",
    "rate_difference",
    "rate_differs",
]

Floats = NDArray[np.float64]

# The alternatives: an alarm's as ratios to the tolerated odds, a pass's as odds.
# Few of them: each has only its weight of the evidence, and finds what is half or twice as far nearly as soon.
ABOVE: Final = (1.25, 1.75, 3.0, 5.0, 20.0)
# A regression is mostly two to five times the odds; weighing those more finds it sooner and costs little elsewhere.
ABOVE_WEIGHTS: Final = tuple(weight / 22 for weight in (1, 6, 3, 11, 1))
BETTER: Final = (0.5, 0.75, 1.0, 1.25, 1.5)
# For a split and for categories, where every size of a difference is as likely as another, all with the same weight.
HIGHER: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
BOTH_SIDES: Final = (*(1 / ratio for ratio in reversed(HIGHER)), *HIGHER)

# One minute without an answer in control's hour before the rollout is a burstiness of a hundred or more, which would
# hide errors that last. For alarms it is no more than this, and above it no bin counts for more than a cap.
MOST_BURST: Final = 20.0
# The least cap, and the evidence (as a logarithm) of which a bin counts as much as by the whole discount: about that of
# 20 requests that all fail.
LEAST_CAP: Final = 1.5
WHOLLY_DISCOUNTED: Final = 35.0


class OddsRatio:
    """The likelihood-ratio processes of one kind of event; what two claims share is computed once."""

    def __init__(
        self, treatment: Floats, control: Floats, metric: Metric, *, burst: float = 1.0, cap: float | None = None
    ) -> None:
        """Take the bins that can be used: both versions have requests, and not all requests are events.

        Args:
            treatment: The treatment's requests, per bin.
            control: Control's requests, per bin.
            metric: The events.
            burst: By how much events come in bursts (1 = independently); gains are divided by it.
            cap: The largest likelihood ratio that one bin may contribute; None for no cap.
        """
        self._burst = burst
        self._log_cap = math.inf if cap is None else math.log(cap)
        events = metric.treatment + metric.control
        usable = (treatment > 0) & (control > 0) & (events < treatment + control)
        self._treatment, self._control = treatment, control
        self._events = np.where(usable, events, 0.0)
        self._hits = np.where(usable, metric.treatment, 0.0)
        self._margins = Margins(treatment, control, self._events)
        self._moments: tuple[Floats, Floats] | None = None
        self._normalisers: dict[float, Floats] = {}

    def paths(self, null: float, ratios: Sequence[float], bins: int) -> list[Floats]:
        """Return a path per ratio: the log of the evidence for odds `null * ratio` against odds `null`, after each bin.

        Args:
            null: The odds ratio that the evidence is against.
            ratios: The alternatives' odds ratios, in units of `null`; none of them 1.
            bins: How many bins, from the first.
        """
        bound = self._relevant_bins_bound if null == 1 else None
        return log_evidence_paths(ratios, bins, lambda ratio, n_bins: self.gains(null, ratio, n_bins), bound)

    def gains(self, null: float, ratio: float, bins: int) -> Floats:
        """Return each bin's log likelihood ratio of odds `null * ratio` to `null`, divided for bursts or capped.

        The log of f(x; null ratio) / f(x; null) is x log ratio - log Z(null ratio) + log Z(null).
        """
        gains = self._hits[:bins] * math.log(ratio) - self._log_z(null * ratio, bins) + self._log_z(null, bins)
        if self._burst > 1:
            gains /= self._burst
        return np.minimum(gains, self._log_cap) if self._log_cap < math.inf else gains

    def _relevant_bins_bound(self, ratio: float, bins: int) -> int:
        """Return in how many bins the evidence for odds `ratio` > 1 against 1 can exceed a negligible value.

        Given t, the treatment's events are distributed as a sum of independent Bernoulli variables, so tilting by g
        shrinks their variance V at most by the factor g: log E[g^X] >= E[X] log g + V (1/g - 1 + log g). At odds 1
        mean and variance are the plain hypergeometric ones.
        """
        if self._moments is None:
            n = self._treatment + self._control
            part = self._treatment / np.maximum(n, 1)
            mean = self._events * part
            variance = mean * (1 - part) * (n - self._events) / np.maximum(n - 1, 1)
            self._moments = self._hits - mean, variance
        excess, variance = self._moments
        step = math.log(ratio)
        gains = (excess[:bins] * step - variance[:bins] * (1 / ratio - 1 + step)) / self._burst
        return relevant_bins(np.cumsum(gains))

    def _log_z(self, psi: float, bins: int) -> Floats:
        """Return log Z of the first `bins` bins from a cache, computed anew only for more bins than before."""
        known = self._normalisers.get(psi)
        if known is None or len(known) < bins:
            known = self._normalisers[psi] = self._margins.log_z(psi, bins)
        return known[:bins]


def bounded_discount(burst: float) -> tuple[float, float]:
    """Return by how much an alarm's evidence is divided, and the most that one bin counts, where bursts are many.

    Args:
        burst: The burstiness before the rollout, above `MOST_BURST`.
    """
    return MOST_BURST, max(LEAST_CAP, math.exp(WHOLLY_DISCOUNTED / burst))


def burstiness(requests: Floats, events: Floats) -> float:
    """Return Pearson's chi-square per degree of freedom: how much more events vary than independent ones would.

    Never below 1. It is 1 with fewer than two bins with requests, and where none or all of the requests are events.
    """
    served = requests > 0
    n, x = requests[served], events[served]
    total, hits = float(n.sum()), float(x.sum())
    if len(n) < 2 or not 0 < hits < total:
        return 1.0
    rate = hits / total
    chi_square = float(((x - n * rate) ** 2 / n).sum()) / (rate * (1 - rate))
    return max(1.0, chi_square / (len(n) - 1))


def rate_difference(columns: Columns, metric: Metric) -> float | None:
    """Return the treatment's event rate minus control's, stratified by bin (Mantel-Haenszel); None if undefined."""
    excess, weight = _difference_terms(columns, metric)
    total = float(weight.sum())
    return float(excess.sum()) / total if total else None


def rate_differs(columns: Columns, metric: Metric, least: float) -> NDArray[np.bool_]:
    """Return after each bin whether the rate difference over all bins so far is at least `least`."""
    excess, weight = (np.cumsum(values) for values in _difference_terms(columns, metric))
    result: NDArray[np.bool_] = (weight > 0) & (excess >= least * weight)
    return result


def _difference_terms(columns: Columns, metric: Metric) -> tuple[Floats, Floats]:
    """Return the Mantel-Haenszel numerator and weight of each bin; 0 where a version has no requests."""
    a, c = columns.treatment, columns.control
    both = (a > 0) & (c > 0)
    total = np.where(both, a + c, 1.0)
    return (
        np.where(both, (metric.treatment * c - metric.control * a) / total, 0.0),
        np.where(both, a * c / total, 0.0),
    )
