"""Labelled requests -> the gate's bins, by the arrival of the label. Pure.

A label says something of a request of last week. If the bin of last week changed with it, what earlier looks concluded
from that bin would no longer hold, and neither would the error rates. So a request enters once, into the bin in which
its first label arrived, and a bin is complete once it is there: later labels only add bins.
"""

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from statistics import fmean, variance
from typing import Final

from controlled_rollout.evidence.bins import EPOCH, since_epoch
from controlled_rollout.gate import Bin, Counts, Moments
from controlled_rollout.labels.auc import auc_moments
from controlled_rollout.labels.measures import LabelledRequest, Measured, Measures
from controlled_rollout.labels.periods import Period
from controlled_rollout.labels.settings import ANSWERS, AUC, LABELLED, Labels

__all__ = ["LabelBins", "Requests", "label_bins"]

MICROSECOND: Final = timedelta(microseconds=1)
# A bin has so many labelled requests that this many of the version with less traffic are to be expected in it.
LEAST_OF_EACH: Final = 5
# ... and at least and at most so many.
SMALLEST_BIN: Final = 20
LARGEST_BIN: Final = 2_000
# An AUC needs so many positives and so many negatives of each version.
LEAST_FOR_AUC: Final = 10


@dataclass(frozen=True, slots=True)
class Requests:
    """How many requests of one period there are, labelled or not.

    Attributes:
        control, treatment: Those of each version.
    """

    control: int
    treatment: int

    @property
    def bin_size(self) -> int:
        """How many labelled requests a bin has at least."""
        part = min(self.control, self.treatment) / (self.control + self.treatment)
        return max(SMALLEST_BIN, min(LARGEST_BIN, math.ceil(LEAST_OF_EACH / part)))


@dataclass(slots=True)
class LabelBins:
    """The bins of one look, and what is worth knowing about the labelled requests.

    Attributes:
        bins: Complete bins, oldest first.
        labelled: How many requests of control and of the treatment are in them.
        waiting: How many labelled requests are not in a bin yet, because theirs is not complete.
        problems: How many labels could not be used, by what is wrong with them.
    """

    bins: list[Bin] = field(default_factory=list)
    labelled: dict[str, int] = field(default_factory=lambda: {"control": 0, "treatment": 0})
    waiting: int = 0
    problems: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Scores:
    """The scores of one version since the last bin with an AUC, by whether the label was positive."""

    positive: list[float] = field(default_factory=list)
    negative: list[float] = field(default_factory=list)

    def add(self, score: tuple[float, bool]) -> None:
        """Add a request's score."""
        (self.positive if score[1] else self.negative).append(score[0])

    @property
    def enough(self) -> bool:
        """Whether there are enough of both for an AUC."""
        return min(len(self.positive), len(self.negative)) >= LEAST_FOR_AUC


@dataclass(slots=True)
class _OfPeriod:
    """What is counted of one period so far.

    Attributes:
        unlabelled: How many requests of control and of the treatment have no label yet.
        bin_size: How many labelled requests a bin has at least.
        pending: Labelled requests that are in no bin yet.
        scores: Of control and the treatment, since the last bin with an AUC.
    """

    unlabelled: dict[str, int]
    bin_size: int
    pending: list[tuple[str, Measured]] = field(default_factory=list)
    scores: dict[str, _Scores] = field(default_factory=dict)


def label_bins(
    requests: Iterable[LabelledRequest],
    labels: Labels,
    measures: Measures,
    periods: Sequence[Period],
    totals: Sequence[Requests],
) -> LabelBins:
    """Return the bins of labelled requests, by the arrival of their labels.

    The labelled requests of one period form bins in the order of the intervals in which their labels arrived, and
    within an interval in the order in which they were asked. A bin is complete when an interval ends with as many as a
    bin needs: which requests it has depends neither on the version nor on whether an answer was right, so within a bin
    the two versions may be compared. Labels that arrive later change nothing of it.

    Args:
        requests: Labelled requests, in the order of the interval, the time of the request and its id.
        labels: The settings.
        measures: Measures a request.
        periods: The times within which the versions may be compared.
        totals: For each period all requests, labelled or not.

    Raises:
        EvidenceUnavailableError: A prediction or a label is nothing that can be measured.
    """
    result = LabelBins()
    states = [
        _OfPeriod({"control": total.control, "treatment": total.treatment}, total.bin_size)
        if total.control and total.treatment
        else None
        for total in totals
    ]
    for number, group in groupby(requests, key=lambda one: since_epoch(one.known, labels.bin_width)):
        for request in group:
            index = _period_of(request.time, periods)
            state = None if index is None else states[index]
            if state is not None:
                measured = measures.of(request)
                if measured.problem:
                    result.problems[measured.problem] = result.problems.get(measured.problem, 0) + 1
                state.pending.append(("treatment" if request.is_treatment else "control", measured))
        start = EPOCH + number * labels.bin_width
        complete = (counts for state in states if state is not None for counts in _complete_bins(state, labels))
        for position, (control, treatment) in enumerate(complete):
            result.bins.append(Bin(start + position * MICROSECOND, control, treatment))
            result.labelled["control"] += control.requests
            result.labelled["treatment"] += treatment.requests
    result.waiting = sum(len(state.pending) for state in states if state is not None)
    return result


def _period_of(moment: datetime, periods: Sequence[Period]) -> int | None:
    """Return the index of the period that a moment lies in; None if in none."""
    index = bisect_right(periods, moment, key=lambda period: period.begin) - 1
    return index if index >= 0 and moment < periods[index].end else None


def _complete_bins(state: _OfPeriod, labels: Labels) -> Iterator[tuple[Counts, Counts]]:
    """Yield control's and the treatment's counts of each bin that is complete; its requests are pending no more."""
    if len(state.pending) < state.bin_size:
        return
    pending, state.pending = state.pending, []
    number = len(pending) // state.bin_size
    edges = [len(pending) * index // number for index in range(number + 1)]
    for first, end in pairwise(edges):
        yield _counts_of(state, pending[first:end], labels)


def _counts_of(state: _OfPeriod, members: Sequence[tuple[str, Measured]], labels: Labels) -> tuple[Counts, Counts]:
    """Return the counts of control and of the treatment in one bin."""
    categories: dict[str, dict[str, dict[str, int]]] = {}
    means: dict[str, dict[str, Moments]] = {}
    numbers: dict[str, int] = {}
    for arm in ("control", "treatment"):
        measured = [one for name, one in members if name == arm]
        numbers[arm] = len(measured)
        state.unlabelled[arm] -= len(measured)
        categories[arm] = {LABELLED: {"labelled": len(measured), "not yet": state.unlabelled[arm]}}
        means[arm] = {}
        for name in labels.metrics:
            if name in ANSWERS:
                wrong = [one.wrong[name] for one in measured if name in one.wrong]
                categories[arm][name] = {"yes": sum(wrong), "no": len(wrong) - sum(wrong)}
            elif name != AUC and (losses := [one.losses[name] for one in measured if name in one.losses]):
                spread = variance(losses) if len(losses) > 1 else 0.0
                means[arm][name] = Moments(len(losses), fmean(losses), spread)
        scores = state.scores.setdefault(arm, _Scores())
        for one in measured:
            if one.score is not None:
                scores.add(one.score)
    if AUC in labels.metrics and all(scores.enough for scores in state.scores.values()):
        for arm, scores in state.scores.items():
            means[arm][AUC] = auc_moments(scores.positive, scores.negative)
        state.scores = {}
    control, treatment = (
        Counts(numbers[arm], 0, means=means[arm], categories=categories[arm]) for arm in ("control", "treatment")
    )
    return control, treatment
