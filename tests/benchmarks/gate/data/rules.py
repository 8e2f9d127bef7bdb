"""The rules that people use on collected data, each at every look on all that was collected so far.

From their source: evidently at a4aa4c2 (legacy/calculations/stattests), and the distance of SageMaker Model Monitor as
its library deequ has it at 0b8cea5 (analyzers/Distance.scala), with the threshold of its constraints file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, kolmogorov

from tests.benchmarks.gate.data.rollouts import Seen

__all__ = ["COMPARISONS", "ENOUGH", "LABELLED_RULES", "VALIDATIONS", "Rule"]

Floats = NDArray[np.float64]
Truths = NDArray[np.bool_]

# Nobody compares distributions of fewer values.
ENOUGH = 30
# What takes the place of a share of 0 in PSI.
LEAST_SHARE = 1e-4
# Up to so many values of the reference evidently tests; above them it takes a distance.
SMALL_REFERENCE = 1_000
# Deequ subtracts this many times sqrt((n + m) / (n m)) where it corrects for few values.
DEEQU_CORRECTION = 1.8
DISTANCE = 0.1
ONE_SIDED_5_PER_CENT = 1.645


@dataclass(frozen=True)
class Rule:
    """A rule: what it is, and at which looks it would take the treatment back."""

    what: str
    fails: Callable[[Seen], Truths]


def so_far(seen: Seen) -> tuple[Floats, Floats]:
    """Return both versions' counts up to each look."""
    return np.cumsum(seen.treatment, axis=0), np.cumsum(seen.control, axis=0)


def shares(counts: Floats) -> Floats:
    """Return counts as parts of their sum."""
    result: Floats = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    return result


def psi(seen: Seen) -> Floats:
    """Return the population stability index of the labels, or of control's ten deciles."""
    arms = so_far(seen)
    if seen.groups is not None:
        first = np.flatnonzero(np.diff(seen.groups, prepend=-1))
        arms = np.add.reduceat(arms[0], first, axis=1), np.add.reduceat(arms[1], first, axis=1)
    p, q = (np.maximum(shares(arm), LEAST_SHARE) for arm in arms)
    index: Floats = ((p - q) * np.log(p / q)).sum(axis=1)
    return index


def two_sample_p_value(seen: Seen) -> Floats:
    """Return the p-value of Kolmogorov and Smirnov's test; of the chi-squared test of a 2 x k table for labels."""
    treatment, control = so_far(seen)
    n, m = (np.maximum(arm.sum(axis=1), 1) for arm in (treatment, control))
    if seen.edges is None:
        total = treatment + control
        part = (n / (n + m))[:, None]
        spread = np.maximum(total * part * (1 - part), 1e-12)
        statistic = np.where(total > 0, (treatment - total * part) ** 2 / spread, 0.0).sum(axis=1)
        p_value: Floats = chdtrc(np.maximum((total > 0).sum(axis=1) - 1, 1), statistic)
    else:
        distance = np.abs(np.cumsum(shares(treatment), axis=1) - np.cumsum(shares(control), axis=1)).max(axis=1)
        p_value = kolmogorov(distance * np.sqrt(n * m / (n + m)))
    return p_value


def evidently(seen: Seen) -> Truths:
    """Evidently's default: a test up to 1,000 reference values (control's), a distance of 0.1 or more above them."""
    treatment, control = so_far(seen)
    if seen.edges is None:
        small = one_sample_p_value(treatment, control) < 0.05
        large = jensen_shannon(shares(treatment), shares(control)) >= DISTANCE
    else:
        small = two_sample_p_value(seen) <= 0.05
        large = wasserstein(seen) >= DISTANCE
    return np.where(control.sum(axis=1) <= SMALL_REFERENCE, small, large)


def one_sample_p_value(observed: Floats, reference: Floats) -> Floats:
    """Return the p-value of the chi-squared test of observed counts, the reference's shares being taken for true."""
    expected = reference * (observed.sum(axis=1) / np.maximum(reference.sum(axis=1), 1))[:, None]
    present = (observed > 0) | (reference > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(present, (observed - expected) ** 2 / expected, 0.0)
    p_value: Floats = chdtrc(np.maximum(present.sum(axis=1) - 1, 1), terms.sum(axis=1))
    return p_value


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Return Jensen and Shannon's distance of shares, with natural logarithms."""
    middle = np.maximum((p + q) / 2, 1e-300)
    parts = [np.where(x > 0, x * np.log(np.maximum(x, 1e-300) / middle), 0).sum(axis=1) for x in (p, q)]
    distance: Floats = np.sqrt(np.maximum(parts[0] + parts[1], 0) / 2)
    return distance


def wasserstein(seen: Seen) -> Floats:
    """Return Wasserstein's distance in standard deviations of control; its distribution functions are straight lines
    within a cell, and what lies beyond the outermost edges (a millionth of control) is not counted.
    """
    assert seen.edges is not None
    assert seen.spread is not None
    treatment, control = so_far(seen)
    gap = np.abs(np.cumsum(shares(treatment), axis=1) - np.cumsum(shares(control), axis=1))[:, :-1]
    between = (gap[:, 1:] + gap[:, :-1]) / 2
    distance: Floats = (between * np.diff(seen.edges)).sum(axis=1) / np.maximum(seen.spread, 1e-3)
    return distance


def sagemaker(seen: Seen, *, robust: bool) -> Truths:
    """SageMaker Model Monitor: the largest difference to a baseline (control's before), of the distribution functions,
    or of any label's share; above 0.1 is a violation. `Robust` subtracts what chance may do.
    """
    treatment = np.cumsum(seen.treatment, axis=0)
    p, q = shares(treatment), shares(seen.baseline)
    if seen.edges is not None:
        p, q = np.cumsum(p, axis=1), np.cumsum(q)
    distance = np.abs(p - q).max(axis=1)
    if robust:
        n, m = np.maximum(treatment.sum(axis=1), 1), seen.baseline.sum()
        distance = distance - DEEQU_CORRECTION * np.sqrt((n + m) / (n * m))
    over: Truths = distance > DISTANCE
    return over


def unexpected_in_newest(seen: Seen) -> Truths:
    """Return in which minutes more of the treatment's rows are unexpected than allowed."""
    assert seen.allowed is not None
    over: Truths = seen.treatment[:, 1] > seen.allowed * seen.treatment.sum(axis=1)
    return over


def unexpected_so_far(seen: Seen) -> Truths:
    """Return at which looks more of all of the treatment's rows are unexpected than allowed."""
    assert seen.allowed is not None
    rows = np.cumsum(seen.treatment, axis=0)
    over: Truths = rows[:, 1] > seen.allowed * rows.sum(axis=1)
    return over


def less_complete(seen: Seen) -> Truths:
    """Return at which looks a smaller part of the treatment's rows is complete than was of the baseline."""
    rows = np.cumsum(seen.treatment, axis=0)
    over: Truths = rows[:, 1] * seen.baseline.sum() > seen.baseline[1] * rows.sum(axis=1)
    return over


def more_wrong(seen: Seen) -> Truths:
    """Return at which looks more of the treatment's answers are wrong by a one-sided z-test of two proportions."""
    x, y = so_far(seen)
    n, m = (np.maximum(arm.sum(axis=1), 1) for arm in (x, y))
    p, q, both = x[:, 1] / n, y[:, 1] / m, (x[:, 1] + y[:, 1]) / (n + m)
    z = (p - q) / np.sqrt(np.maximum(both * (1 - both) * (1 / n + 1 / m), 1e-12))
    significant: Truths = z > ONE_SIDED_5_PER_CENT
    return significant


def less_accurate(seen: Seen) -> Truths:
    """Return at which looks a smaller part of the treatment's answers is right than was of the baseline."""
    return less_complete(seen)


COMPARISONS: Mapping[str, Rule] = {
    "PSI > 0.2": Rule("population stability index of the labels, or of control's deciles", lambda s: psi(s) > 0.2),
    "KS p < 0.05": Rule(
        "Kolmogorov and Smirnov's test of two samples; for labels the chi-squared test",
        lambda s: two_sample_p_value(s) < 0.05,
    ),
    "Evidently": Rule(
        "its default for a column: up to 1,000 reference values Kolmogorov-Smirnov (labels: chi-squared of the "
        "reference's shares) at 0.05, above them Wasserstein's distance in standard deviations (labels: Jensen and "
        "Shannon's) of 0.1 or more. One column is all of the data set, of which its share of 0.5 has to drift",
        evidently,
    ),
    "SageMaker, Simple": Rule(
        "SageMaker Model Monitor's comparison: the largest difference of the distribution functions (labels: of a "
        "share) to a baseline, control's hour before, above its threshold of 0.1",
        lambda s: sagemaker(s, robust=False),
    ),
    "SageMaker, Robust": Rule(
        "the same less 1.8 sqrt(1/n + 1/m), as in its library deequ", lambda s: sagemaker(s, robust=True)
    ),
}
VALIDATIONS: Mapping[str, Rule] = {
    "checkpoint, newest minute": Rule(
        "Great Expectations validates the treatment's rows of the newest minute; the first failed validation takes it "
        "back",
        unexpected_in_newest,
    ),
    "checkpoint, all rows": Rule("the same with all of the treatment's rows so far", unexpected_so_far),
    "SageMaker, completeness": Rule(
        "its completeness check, for rows that are unexpected because they are null: a smaller part is complete than "
        "was of the baseline",
        less_complete,
    ),
}
LABELLED_RULES: Mapping[str, Rule] = {
    "z-test p < 0.05": Rule(
        "one-sided z-test of two proportions on all labels so far, against control's labels", more_wrong
    ),
    "SageMaker, model quality": Rule(
        "its suggested constraint: the accuracy so far is below that of the baseline, control's day before",
        less_accurate,
    ),
}
