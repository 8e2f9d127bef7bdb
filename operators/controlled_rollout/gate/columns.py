"""Bins, checked and turned into columns: one list per quantity, oldest bin first."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise, zip_longest
from operator import attrgetter, gt
from typing import Final, NoReturn

from controlled_rollout.errors import EvidenceError
from controlled_rollout.gate.model import Bin, Counts

__all__ = ["Columns", "Metric", "columns"]

NOT_AN_INTEGER: Final = "is not a whole number"


@dataclass(frozen=True, slots=True)
class Metric:
    """The events of one kind, per bin.

    Attributes:
        treatment, control: How many of each version's requests were such events.
    """

    treatment: list[int]
    control: list[int]


@dataclass(frozen=True, slots=True)
class Columns:
    """The bins of one look, oldest first.

    Attributes:
        starts: When each bin begins.
        treatment, control: Each version's requests.
        errors: The errors of both.
        slow: The exceedances of both, one metric per latency quantile; empty where latency is not judged.
        shares: The treatment's set part, None where it is not known.
    """

    starts: list[datetime]
    treatment: list[int]
    control: list[int]
    errors: Metric
    slow: tuple[Metric, ...]
    shares: list[float | None]

    def since(self, first: int) -> "Columns":
        """Return the columns without the first bins."""
        if not first:
            return self
        return Columns(
            self.starts[first:],
            self.treatment[first:],
            self.control[first:],
            Metric(self.errors.treatment[first:], self.errors.control[first:]),
            tuple(Metric(metric.treatment[first:], metric.control[first:]) for metric in self.slow),
            self.shares[first:],
        )

    def warm_up_bins(self, warm_up: timedelta) -> int:
        """Return how many bins begin earlier than `warm_up` after the first bin in which the treatment has requests."""
        if not warm_up:
            return 0
        first = next((start for start, requests in zip(self.starts, self.treatment, strict=True) if requests), None)
        if first is None:
            return 0
        end = first + warm_up
        return sum(1 for start in self.starts if start < end)


def columns(bins: Iterable[Bin], *, quantiles: int) -> Columns:
    """Check the bins and turn them into columns, oldest first.

    Args:
        bins: In any order.
        quantiles: How many latency quantiles each `Counts.slow` has to count, if it counts any.

    Raises:
        EvidenceError: A count cannot be, two bins begin at the same moment, or a time has no zone.
    """
    rows = list(bins)
    naive = next((row for row in rows if row.start.utcoffset() is None), None)
    if naive is not None:
        raise EvidenceError(f"bin start {naive.start.isoformat()} has no time zone: give every bin an aware datetime")
    rows.sort(key=attrgetter("start"))
    starts = [row.start for row in rows]
    if len(set(starts)) < len(starts):
        twice = next(start for start, other in pairwise(starts) if start == other)
        raise EvidenceError(f"two bins begin at {twice.isoformat()}: merge them, or drop the one that was read twice")
    shares = [row.share for row in rows]
    for start, share in zip(starts, shares, strict=True):
        if share is not None and not 0 <= share <= 1:
            raise EvidenceError(
                f"bin {start.isoformat()}: share = {share!r} is not between 0 and 1 (it is a fraction, not per cent); "
                "use None where it is not known"
            )
    treatment = [row.treatment for row in rows]
    control = [row.control for row in rows]
    for arm, counts in (("treatment", treatment), ("control", control)):
        _check(starts, arm, counts)
    slow_treatment, slow_control = _slow(starts, treatment, control, quantiles)
    return Columns(
        starts,
        [counts.requests for counts in treatment],
        [counts.requests for counts in control],
        Metric([counts.errors for counts in treatment], [counts.errors for counts in control]),
        tuple(map(Metric, slow_treatment, slow_control)),
        shares,
    )


def _check(starts: Sequence[datetime], arm: str, column: Sequence[Counts]) -> None:
    """Refuse counts that cannot be; whole columns at once, because a look may have 10,000 bins."""
    requests = [counts.requests for counts in column]
    errors = [counts.errors for counts in column]
    slow = list(zip_longest(*(counts.slow for counts in column), fillvalue=0))
    if all(
        {int}.issuperset(map(type, events)) and min(events, default=0) >= 0 and not any(map(gt, events, requests))
        for events in (requests, errors, *slow)
    ):
        return
    for start, counts in zip(starts, column, strict=True):
        _explain(f"bin {start.isoformat()}: {arm}", counts)


def _explain(where: str, counts: Counts) -> None:
    """Raise the error that says what is wrong with the counts, if anything is."""
    named = [("requests", counts.requests), ("errors", counts.errors)]
    named += [(f"slow[{index}]", count) for index, count in enumerate(counts.slow)]
    for name, count in named:
        if type(count) is not int:
            _refuse(where, name, count, NOT_AN_INTEGER)
        if count < 0:
            _refuse(where, name, count, "is negative")
        if count > counts.requests:
            _refuse(where, name, count, f"is more than its {counts.requests} requests")


def _refuse(where: str, name: str, count: object, fault: str) -> NoReturn:
    raise EvidenceError(f"{where} {name} = {count!r} {fault}: correct the query that counted it")


def _slow(
    starts: Sequence[datetime], treatment: Sequence[Counts], control: Sequence[Counts], quantiles: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Return per quantile each version's column of slow requests; a version without requests may leave them out."""
    lengths = {
        len(counts.slow) for column in (treatment, control) for counts in column if counts.requests or counts.slow
    }
    if lengths <= {0}:
        return [], []
    if lengths != {quantiles}:
        start, arm, found = next(
            (start, arm, len(counts.slow))
            for arm, column in (("treatment", treatment), ("control", control))
            for start, counts in zip(starts, column, strict=True)
            if (counts.requests or counts.slow) and len(counts.slow) != quantiles
        )
        raise EvidenceError(
            f"bin {start.isoformat()}: {arm} has {found} counts of slow requests, the gate has {quantiles} latency "
            "quantiles: count one for each in every bin, or none in any"
        )
    nothing = (0,) * quantiles
    return (
        [list(column) for column in zip(*(counts.slow or nothing for counts in treatment), strict=True)],
        [list(column) for column in zip(*(counts.slow or nothing for counts in control), strict=True)],
    )
