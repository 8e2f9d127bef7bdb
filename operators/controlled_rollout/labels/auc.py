"""The area under the ROC curve of some scores, and its variance (DeLong, DeLong and Clarke-Pearson, 1988). Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import fmean, variance

from controlled_rollout.gate import Moments

__all__ = ["auc_moments"]


def auc_moments(positive: Sequence[float], negative: Sequence[float]) -> Moments:
    """Return the AUC as the mean of as many values as there are scores, with the variance that gives its own.

    The AUC is the probability that a positive has a higher score than a negative, ties count half. For each positive
    let v be the part of the negatives with a lower score, and for each negative w the part of the positives with a
    higher one: the AUC's variance is s²(v) / n + s²(w) / m. It is asymptotic. Where (nearly) all pairs are in order it
    would be about 0, and it is taken as A (1 - A) / min(n, m) for an A just below: that is the most it can be.

    Args:
        positive: The scores of positives, two at least.
        negative: The scores of negatives, two at least.
    """
    x, y = sorted(positive), sorted(negative)
    n, m = len(x), len(y)
    below = _parts_below(y, x)
    area = fmean(below)
    spread = variance(below) / n + variance(_parts_below(x, y)) / m
    least = 0.5 / (min(n, m) + 1)
    if not least <= area <= 1 - least:
        spread = max(spread, least * (1 - least) / min(n, m))
    return Moments(n + m, area, spread * (n + m))


def _parts_below(ordered: Sequence[float], values: Sequence[float]) -> list[float]:
    """Return for each value the part of the ordered ones that is below it; equal ones count half."""
    return [(bisect_left(ordered, one) + bisect_right(ordered, one)) / (2 * len(ordered)) for one in values]
