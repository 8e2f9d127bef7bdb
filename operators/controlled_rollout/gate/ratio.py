"""One kind of event judged by its odds ratio: the evidence that it is above a value, or below another."""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import add
from typing import Final

from controlled_rollout.gate.columns import Columns, Metric
from controlled_rollout.gate.mixture import alive_bins, follow
from controlled_rollout.gate.odds import log_normalisers

__all__ = ["ABOVE", "BETTER", "OddsRatio", "burstiness", "first_difference", "rate_difference"]

# The alternatives: an alarm's as ratios to the tolerated odds, a pass's as odds.
ABOVE: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0)
BETTER: Final = (0.5, 0.75, 1.0, 1.25, 1.5)


class OddsRatio:
    """The likelihood-ratio processes of one kind of event; what two claims share is computed once."""

    def __init__(self, columns: Columns, metric: Metric, *, burst: float, cap: float | None) -> None:
        """Take the bins that say something: both versions have requests, and neither all nor none are events.

        Args:
            columns: The bins.
            metric: The events.
            burst: By how much events come in bursts (1 = independently); gains are divided by it.
            cap: The largest likelihood ratio that one bin may contribute; None for no cap.
        """
        self._burst = burst
        self._log_cap = math.inf if cap is None else math.log(cap)
        self._treatment = columns.treatment
        self._control = columns.control
        triples = zip(columns.treatment, columns.control, map(add, metric.treatment, metric.control), strict=True)
        self._events = [t if a and c and t < a + c else 0 for a, c, t in triples]
        self._hits = [x if t else 0 for x, t in zip(metric.treatment, self._events, strict=True)]
        self._normalisers: dict[float, list[float]] = {}

    def paths(self, null: float, ratios: Sequence[float], bins: int) -> list[list[float]]:
        """Return one path per ratio: the log of the evidence for odds `null * ratio` against odds `null`.

        Args:
            null: The odds ratio that the evidence is against.
            ratios: The alternatives' odds ratios, in units of `null`.
            bins: How many bins, from the first.
        """

        def gain(ratio: float, bins: int) -> list[float]:
            base, other = self._log_z(null, bins), self._log_z(null * ratio, bins)
            step, burst, cap = math.log(ratio), self._burst, self._log_cap
            gains = [x * step - up + down for x, up, down in zip(self._hits, other, base, strict=False)]
            if burst > 1:
                gains = [value / burst for value in gains]
            return [min(value, cap) for value in gains] if cap < math.inf else gains

        return follow(ratios, bins, gain, self._can_matter if null == 1 else None)

    def _can_matter(self, ratio: float, bins: int) -> int:
        """Return in how many bins the evidence for odds `ratio` > 1 against 1 can be alive, without computing it.

        Given t, the treatment's events are distributed as a sum of independent Bernoulli variables, so tilting by g
        shrinks their variance V at most by the factor g: log E[g^X] >= E[X] log g + V (1/g - 1 + log g). At odds 1
        mean and variance are the plain hypergeometric ones.
        """
        step, burst = math.log(ratio), self._burst
        curve = 1 / ratio - 1 + step
        rows = zip(self._treatment[:bins], self._control, self._events, self._hits, strict=False)
        gains = (
            ((x - (mean := t * (part := a / (n := a + c)))) * step - mean * (1 - part) * (n - t) / (n - 1) * curve)
            / burst
            if t
            else 0.0
            for a, c, t, x in rows
        )
        return alive_bins(list(accumulate(gains)))

    def _log_z(self, psi: float, bins: int) -> list[float]:
        """Return the normalisers of the first so many bins or more, computed at most once."""
        known = self._normalisers.setdefault(psi, [])
        if len(known) < bins:
            todo = slice(len(known), bins)
            known += log_normalisers(self._treatment[todo], self._control[todo], self._events[todo], psi)
        return known


def burstiness(requests: Sequence[int], events: Sequence[int]) -> float:
    """Return how much more the counts vary than independent events would: Pearson's chi-square per degree of freedom.

    Never below 1. One where there are fewer than two bins with requests, or no events, or nothing else.
    """
    pairs = [(n, x) for n, x in zip(requests, events, strict=True) if n]
    total, hits = sum(n for n, _ in pairs), sum(x for _, x in pairs)
    if len(pairs) < 2 or not 0 < hits < total:
        return 1.0
    rate = hits / total
    chi_square = math.fsum((x - n * rate) ** 2 / n for n, x in pairs) / (rate * (1 - rate))
    return max(1.0, chi_square / (len(pairs) - 1))


def rate_difference(columns: Columns, metric: Metric) -> float | None:
    """Return treatment's rate less control's, compared inside each bin (Mantel-Haenszel); None if nothing compares."""
    excess, weight = _differences(columns, metric)
    return excess[-1] / weight[-1] if weight and weight[-1] else None


def first_difference(columns: Columns, metric: Metric, least: float, since: int) -> int | None:
    """Return the first bin, `since` or later, after which the difference of the rates is `least` or more."""
    excess, weight = _differences(columns, metric)
    bins = range(since, len(weight))
    return next((index for index in bins if weight[index] and excess[index] >= least * weight[index]), None)


def _differences(columns: Columns, metric: Metric) -> tuple[list[float], list[float]]:
    rows = list(zip(columns.treatment, columns.control, metric.treatment, metric.control, strict=True))
    excess = accumulate((x * c - y * a) / (a + c) if a and c else 0.0 for a, c, x, y in rows)
    return list(excess), list(accumulate(a * c / (a + c) if a and c else 0.0 for a, c, _, _ in rows))
