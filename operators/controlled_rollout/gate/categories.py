"""A categorical metric, treatment against control: that the two differ at all, or by more than is tolerated."""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from controlled_rollout.gate.columns import Metric
from controlled_rollout.gate.means import log_mixture
from controlled_rollout.gate.ratio import BOTH_SIDES, OddsRatio
from controlled_rollout.gate.shift import TILT_WEIGHTS, TILTS, Shift, scores

__all__ = [
    "BOTH_TILTS",
    "BOTH_TILT_WEIGHTS",
    "any_difference",
    "bucket_scores",
    "category_weights",
    "difference_beyond",
    "difference_beyond_in_order",
    "shift_of_buckets",
    "total_variation",
]

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]

# The mixture of `difference_beyond` is aimed at 10 points beyond the tolerance: l = S / V = 4 * 0.1.
SCALE: Final = (4 * 0.1) ** 2
# A number may be higher or lower.
BOTH_TILTS: Final = (*(-tilt for tilt in TILTS), *TILTS)
BOTH_TILT_WEIGHTS: Final = tuple(weight / 2 for weight in TILT_WEIGHTS) * 2


def any_difference(counts: Mapping[str, Metric]) -> tuple[list[Floats], list[float]]:
    """Return the evidence that the shares of the categories differ, in either direction: its paths and their weights.

    Given how often a category was seen in a bin, how often the treatment had it is hypergeometric while the versions
    are alike: the exact two-sided test of every category in every bin (ratio.py), mixed over categories and ratios.
    The categories that appear first share half of the weight, those that appear in the next such bin a sixth, and so on
    by 1 / (j (j + 1)): a category that was not known beforehand is judged too, and when one appears, what was
    established stays so.

    Args:
        counts: By category how often each version had it, per bin.
    """
    treatment, control = _totals_by_bin(counts)
    bins = len(treatment)
    weights = category_weights(counts)
    paths, shares = [], []
    for category, metric in counts.items():
        if category in weights:
            odds = OddsRatio(treatment, control, metric)
            paths += odds.paths(1.0, BOTH_SIDES, bins)
            shares += [weights[category] / len(BOTH_SIDES)] * len(BOTH_SIDES)
    return paths, shares


def shift_of_buckets(counts: Mapping[str, Metric], buckets: int) -> tuple[list[Floats], list[float]]:
    """Return the evidence that a number as a whole is higher or lower: its paths and their weights.

    Buckets have an order, and one bucket by itself says little of a small shift: each counts with its normal score
    (shift.py).

    Args:
        counts: By bucket how often each version had it, per bin; a bucket's name begins with its number, from 1.
        buckets: How many the author asked for.
    """
    treatment, control = _counts_by_version(counts)
    paths = Shift(treatment, control, bucket_scores(counts, buckets)).paths(treatment.shape[1], BOTH_TILTS)
    return paths, list(BOTH_TILT_WEIGHTS)


def bucket_scores(counts: Iterable[str], buckets: int) -> Floats:
    """Return the score of each bucket: known beforehand, that of buckets that are equally frequent with control.

    What is no number counts as the middle. Where control has few values there are other buckets than were asked for:
    the last score stands for those beyond.

    Args:
        counts: The buckets' names.
        buckets: How many the author asked for.
    """
    values = scores([number / buckets for number in range(1, buckets)])
    return np.array([values[min(number, buckets) - 1] if number else 0.0 for number in _bucket_numbers(counts)])


def difference_beyond(counts: Mapping[str, Metric], tolerance: float) -> Floats:
    """Return the path of log evidence that the total variation distance between the versions is above `tolerance`.

    Total variation is the largest difference of the probabilities of any set of categories. The set is chosen before
    each bin, from the bins before it: the categories that the treatment had more often. The difference of its shares
    in the bin, less the tolerance, has a mean of at most 0 while the tolerance is kept, and deviates from its mean as
    little as a normal variable of variance (1 / n_T + 1 / n_C) / 4 (Hoeffding, 1963): the mixture of means.py with that
    variance, for which nothing has to be estimated. Bins before which nothing is known to choose from are left out.

    Args:
        counts: By category how often each version had it, per bin.
        tolerance: The total variation that is tolerated.
    """
    of_treatment, of_control = _counts_by_version(counts)
    return _evidence_beyond(
        of_treatment, of_control, _shares_before(of_treatment) > _shares_before(of_control), tolerance
    )


def difference_beyond_in_order(counts: Mapping[str, Metric], tolerance: float) -> Floats:
    """Return the same path for buckets of a number, the set being all buckets up to one, or all above it.

    There are few such sets, so that before many bins the right one is chosen: what makes a number higher or lower as a
    whole is found sooner. A number that is drawn together shows in `difference_beyond`.

    Args:
        counts: By bucket how often each version had it, per bin; a bucket's name begins with its number.
        tolerance: The total variation that is tolerated.
    """
    of_treatment, of_control = _counts_by_version(counts)
    number = np.array(_bucket_numbers(counts))[:, np.newaxis]
    order = np.argsort(number[:, 0], kind="stable")
    ahead = np.where(number > 0, _shares_before(of_treatment) - _shares_before(of_control), 0.0)[order]
    up_to = np.cumsum(ahead, axis=0)
    largest = np.abs(up_to).argmax(axis=0)
    excess = np.take_along_axis(up_to, largest[np.newaxis], axis=0)
    edge = number[order[largest], 0]
    chosen = np.where(excess > 0, number <= edge, number > edge) & (number > 0) & (excess != 0)
    return _evidence_beyond(of_treatment, of_control, chosen, tolerance)


def _evidence_beyond(of_treatment: Floats, of_control: Floats, chosen: Truths, tolerance: float) -> Floats:
    """Return the path of log evidence that chosen categories have a larger part with the treatment, by the tolerance.

    Args:
        of_treatment: How often the treatment had each category: one row per category, one column per bin.
        of_control: The same of control.
        chosen: The categories that are chosen before each bin.
        tolerance: The difference that is tolerated.
    """
    treatment, control = of_treatment.sum(axis=0), of_control.sum(axis=0)
    comparable = (treatment > 0) & (control > 0) & chosen.any(axis=0)
    n, m = np.where(comparable, treatment, 1.0), np.where(comparable, control, 1.0)
    difference = (of_treatment * chosen).sum(axis=0) / n - (of_control * chosen).sum(axis=0) / m - tolerance
    weight = np.where(comparable, n * m / (n + m), 0.0)
    return log_mixture(np.cumsum(weight * difference), np.cumsum(weight / 4), SCALE)


def total_variation(counts: Mapping[str, Metric]) -> float | None:
    """Return the total variation distance of the shares over all bins (0 to 1); None if a version has no values."""
    treatment = np.array([metric.treatment.sum() for metric in counts.values()])
    control = np.array([metric.control.sum() for metric in counts.values()])
    if not treatment.sum() or not control.sum():
        return None
    return 0.5 * float(np.abs(treatment / treatment.sum() - control / control.sum()).sum())


def _bucket_numbers(counts: Iterable[str]) -> list[int]:
    """Return the number with which each bucket's name begins, from 1; 0 for what is no bucket, such as null."""
    return [int(number) if (number := name.partition(" ")[0]).isdecimal() else 0 for name in counts]


def _counts_by_version(counts: Mapping[str, Metric]) -> tuple[Floats, Floats]:
    """Return how often the treatment and control had each category: one row per category, one column per bin."""
    return np.array([one.treatment for one in counts.values()]), np.array([one.control for one in counts.values()])


def _totals_by_bin(counts: Mapping[str, Metric]) -> tuple[Floats, Floats]:
    """Return the values of all categories together in each bin, of the treatment and of control."""
    metrics = list(counts.values())
    return (
        np.sum([metric.treatment for metric in metrics], axis=0),
        np.sum([metric.control for metric in metrics], axis=0),
    )


def category_weights(counts: Mapping[str, Metric]) -> dict[str, float]:
    """Return the mixture weight of each category that occurs, from the bin in which it occurs first."""
    first: dict[int, list[str]] = {}
    for category, metric in counts.items():
        occurrences = np.flatnonzero(metric.treatment + metric.control)
        if len(occurrences):
            first.setdefault(int(occurrences[0]), []).append(category)
    return {
        category: 1 / (group * (group + 1) * len(first[bin_]))
        for group, bin_ in enumerate(sorted(first), start=1)
        for category in first[bin_]
    }


def _shares_before(counts: Floats) -> Floats:
    """Return each category's share of all values in earlier bins: one row per category, one column per bin."""
    before = np.cumsum(counts, axis=1) - counts
    shares: Floats = before / np.maximum(before.sum(axis=0), 1.0)
    return shares
