"""Rows of counts and of the author's metrics as a metric store gives them, and how they are combined."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from controlled_rollout.gate import Counts, Moments, UserCounts

__all__ = ["CountRow", "MetricRow", "UserRow", "inconsistency", "with_metrics", "with_users"]


@dataclass(frozen=True, slots=True)
class CountRow:
    """One version's counts in one bin; `before`: whether they lie before the rollout began."""

    start: datetime
    version: str
    before: bool
    counts: Counts


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
