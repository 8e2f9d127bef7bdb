"""A categorical metric, treatment against control: that the two differ at all, or by more than is tolerated."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Metric
from controlled_rollout.gate.means import log_mixture
from controlled_rollout.gate.mixture import Evidence, mix
from controlled_rollout.gate.ratio import BOTH_SIDES, OddsRatio

__all__ = ["any_difference", "difference_beyond", "total_variation"]

Floats = NDArray[np.float64]

# The mixture of `difference_beyond` is aimed at 10 points beyond the tolerance: l = S / V = 4 * 0.1.
SCALE: Final = (4 * 0.1) ** 2


def any_difference(found: Mapping[str, Metric], log_threshold: float) -> Evidence:
    """Return the evidence that a category's odds differ between the versions, in either direction.

    Given how often a category was seen in a bin, how often the treatment had it is hypergeometric while the versions
    are alike: the exact two-sided test of every category in every bin (ratio.py), mixed over categories and ratios.
    The categories that appear first share half of the weight, those that appear in the next such bin a sixth, and so on
    by 1 / (j (j + 1)): a category nobody thought of can be judged, and what was established stays so when one appears.

    Args:
        found: By category how often each version had it, per bin.
        log_threshold: The value to reach.
    """
    treatment, control = _totals(found)
    bins = len(treatment)
    weights = _weights(found)
    paths, shares = [], []
    for category, metric in found.items():
        if category in weights:
            odds = OddsRatio(treatment, control, metric)
            paths += odds.paths(1.0, BOTH_SIDES, bins)
            shares += [weights[category] / len(BOTH_SIDES)] * len(BOTH_SIDES)
    return mix(paths, shares, log_threshold, bins) if paths else Evidence(0.0, None, ())


def difference_beyond(found: Mapping[str, Metric], tolerance: float, log_threshold: float) -> Evidence:
    """Return the evidence that the total variation between the versions is above `tolerance`.

    Total variation is the largest difference of the probabilities of any set of categories. The set is chosen before
    each bin, from the bins before it: the categories that the treatment had more often. The difference of its shares
    in the bin, less the tolerance, has a mean of at most 0 while the tolerance is kept, and deviates from its mean as
    little as a normal variable of variance (1 / n_T + 1 / n_C) / 4 (Hoeffding, 1963): the mixture of means.py with that
    variance, which nothing has to be estimated for.

    Args:
        found: By category how often each version had it, per bin.
        tolerance: The total variation that is tolerated.
        log_threshold: The value to reach.
    """
    treatment, control = _totals(found)
    says = (treatment > 0) & (control > 0)
    n, m = np.where(says, treatment, 1.0), np.where(says, control, 1.0)
    own = np.array([metric.treatment for metric in found.values()])
    others = np.array([metric.control for metric in found.values()])
    before_own, before_others = _before(own), _before(others)
    size_own, size_others = np.maximum(before_own.sum(axis=0), 1.0), np.maximum(before_others.sum(axis=0), 1.0)
    chosen = before_own / size_own > before_others / size_others
    difference = (own * chosen).sum(axis=0) / n - (others * chosen).sum(axis=0) / m - tolerance
    weight = np.where(says, n * m / (n + m), 0.0)
    path = log_mixture(np.cumsum(weight * difference), np.cumsum(weight / 4), SCALE)
    return mix([path], [1.0], log_threshold, len(path))


def total_variation(found: Mapping[str, Metric]) -> float | None:
    """Return half the sum of the absolute differences of the shares, over all bins; None without values of both."""
    own = np.array([metric.treatment.sum() for metric in found.values()])
    others = np.array([metric.control.sum() for metric in found.values()])
    if not own.sum() or not others.sum():
        return None
    return 0.5 * float(np.abs(own / own.sum() - others / others.sum()).sum())


def _totals(found: Mapping[str, Metric]) -> tuple[Floats, Floats]:
    metrics = list(found.values())
    if not metrics:
        return np.zeros(0), np.zeros(0)
    return (
        np.sum([metric.treatment for metric in metrics], axis=0),
        np.sum([metric.control for metric in metrics], axis=0),
    )


def _weights(found: Mapping[str, Metric]) -> dict[str, float]:
    """Return every seen category's weight, by the bin in which it first appeared."""
    first: dict[int, list[str]] = {}
    for category, metric in found.items():
        seen = np.flatnonzero(metric.treatment + metric.control)
        if len(seen):
            first.setdefault(int(seen[0]), []).append(category)
    return {
        category: 1 / (group * (group + 1) * len(first[bin_]))
        for group, bin_ in enumerate(sorted(first), start=1)
        for category in first[bin_]
    }


def _before(counts: Floats) -> Floats:
    """Return the sums over all earlier bins."""
    total: Floats = np.cumsum(counts, axis=1) - counts
    return total
