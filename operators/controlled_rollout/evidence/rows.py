"""Rows of counts and of the author's metrics as a metric store gives them, and how they are combined."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.gate import Counts, Moments, UserCounts

__all__ = ["CountRow", "MetricRow", "UserRow", "inconsistency", "with_left_queue", "with_metrics", "with_users"]


# A version tells who has left its queue with one of its next answers: so far from them, at most.
TOLD_WITHIN: Final = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class CountRow:
    """One version's counts in one bin; `before`: whether they lie before the rollout began.

    Attributes:
        hung_up: How many callers hung up before there was an answer; all are among the errors.
        left_queue: How many callers have hung up while they waited for a slot, as the version told in this bin: then
            or shortly before.
    """

    start: datetime
    version: str
    before: bool
    counts: Counts
    hung_up: int = 0
    left_queue: int = 0


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One version's values of one of the author's metrics in one bin; `before` as in `CountRow`.

    Attributes:
        name: The metric's name.
        values: The moments of its values, or how often each of its categories occurred.
    """

    start: datetime
    version: str
    before: bool
    name: str
    values: Moments | Mapping[str, int]


@dataclass(frozen=True, slots=True)
class UserRow:
    """Users of one version in one bin who were drawn in the same way; `before` as in `CountRow`."""

    start: datetime
    version: str
    before: bool
    counts: UserCounts


def inconsistency(rows: Iterable[CountRow]) -> str:
    """Return a sentence on counts that cannot be: negative, or more of a kind than requests; empty without any. Pure.

    Args:
        rows: The counts, as a metric store gives them.
    """
    for row in rows:
        counts = row.counts
        named = {
            "requests": counts.requests,
            "errors": counts.errors,
            "slow requests": max(counts.slow, default=0),
            "refused requests": counts.overloaded,
        }
        for name, count in named.items():
            if not 0 <= count <= counts.requests:
                return (
                    f"the metric store counts {count} {name} among {counts.requests} requests of version "
                    f"{row.version!r} in the bin {row.start.isoformat()}: that cannot be"
                )
    return ""


def with_metrics(rows: Iterable[CountRow], metrics: Iterable[MetricRow], *, n_thresholds: int) -> list[CountRow]:
    """Return the count rows with the metrics of the same bin and version added. Pure.

    Args:
        rows: The counts.
        metrics: The metrics; a bin in which a version has values but no request is kept too.
        n_thresholds: How many latency thresholds each count has.
    """
    complete = {(row.start, row.version, row.before): row for row in rows}
    for metric in metrics:
        key = (metric.start, metric.version, metric.before)
        row = complete.get(key) or CountRow(*key, Counts(requests=0, errors=0, slow=(0,) * n_thresholds))
        complete[key] = replace(row, counts=_with_metric(row.counts, metric))
    return list(complete.values())


def _with_metric(counts: Counts, metric: MetricRow) -> Counts:
    """Return a copy of the counts with one metric's moments or categories added."""
    if isinstance(metric.values, Moments):
        return replace(counts, means={**counts.means, metric.name: metric.values})
    return replace(counts, categories={**counts.categories, metric.name: metric.values})


def with_users(rows: Iterable[CountRow], users: Iterable[UserRow]) -> list[CountRow]:
    """Return the count rows with the users of the same bin and version added. Pure.

    Args:
        rows: The counts.
        users: The users; those of a bin and version without a request are left out, for there are none.
    """
    complete = {(row.start, row.version, row.before): row for row in rows}
    for user in users:
        key = (user.start, user.version, user.before)
        if row := complete.get(key):
            counted = (*row.counts.users, user.counts)
            complete[key] = replace(row, counts=replace(row.counts, users=counted))
    return list(complete.values())


def with_left_queue(rows: Iterable[CountRow]) -> list[CountRow]:
    """Return the rows with callers who hung up in a version's queue as requests without room, not as errors. Pure.

    The router only sees that they hung up. How many of them did so in the queue the version tells with its next answer,
    so those that hung up nearest to it are taken for them. Rows are of the time at which a request began: the one
    whose answer tells it may have begun before or after those that hung up.

    Args:
        rows: The counts, in any order.
    """
    result = list(rows)
    may_be = [min(row.hung_up, row.counts.errors) for row in result]
    left = [0] * len(result)
    places: dict[str, list[tuple[datetime, int]]] = {}
    for index in sorted(range(len(result)), key=lambda index: result[index].start):
        if may_be[index]:
            places.setdefault(result[index].version, []).append((result[index].start, index))
    for report in sorted((row for row in result if row.left_queue), key=lambda row: row.start):
        number, own = report.left_queue, places.get(report.version, [])
        near = own[
            bisect_left(own, (report.start - TOLD_WITHIN, 0)) : bisect_left(own, (report.start + TOLD_WITHIN, 0))
        ]
        for _, index in sorted(near, key=lambda place: abs(place[0] - report.start)):
            taken = min(number, may_be[index])
            may_be[index] -= taken
            left[index] += taken
            number -= taken
    return [
        replace(row, counts=_left_the_queue(row.counts, number)) if number else row
        for row, number in zip(result, left, strict=True)
    ]


def _left_the_queue(counts: Counts, left: int) -> Counts:
    """Return counts with so many errors as requests that found no room; those are not slow either."""
    return replace(
        counts,
        errors=counts.errors - left,
        overloaded=counts.overloaded + left,
        slow=tuple(max(0, slow - left) for slow in counts.slow),
    )
