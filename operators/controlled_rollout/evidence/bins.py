"""From the metric store's rows to the gate's bins. Pure: no clock, no network."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.evidence.query import SplitChange
from controlled_rollout.evidence.rows import CountRow, with_left_queue
from controlled_rollout.gate import Bin, Counts

__all__ = [
    "BUCKETS_PER_E",
    "EPOCH",
    "FASTEST_MS",
    "MIN_BASELINE_REQUESTS",
    "SPLIT_GUARD",
    "bins_of",
    "closed_until",
    "floor_to_bin",
    "share_in",
    "since_epoch",
    "thresholds",
    "with_served_shares",
]

# Latency buckets are logarithmic: one spans a factor of e^(1/100), so a threshold is at most 1.01 per cent too high.
BUCKETS_PER_E: Final = 100
# Durations below a microsecond share the lowest bucket.
FASTEST_MS: Final = 0.001
# Below this many requests before the rollout control's quantiles are not known well enough to freeze.
MIN_BASELINE_REQUESTS: Final = 100
# How long after a change of the split requests may still come by the old one: the router takes it over, and a
# request is counted where it began.
SPLIT_GUARD: Final = timedelta(seconds=5)

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def since_epoch(moment: datetime, unit: timedelta) -> int:
    """Return how many whole units a time is after 1970: the number of its bin, or its microseconds."""
    return (moment - EPOCH) // unit


def floor_to_bin(moment: datetime, width: timedelta) -> datetime:
    """Round a time down to the start of its bin, as KQL's `bin()` does."""
    return moment - (moment - EPOCH) % width


def closed_until(now: datetime, *, allowed_lag: timedelta, width: timedelta) -> datetime:
    """Return the end of the newest closed bin: no telemetry for an earlier time is expected any more."""
    return floor_to_bin(now - allowed_lag, width)


def thresholds(histogram: Mapping[int, int], quantiles: Sequence[float]) -> tuple[float, ...]:
    """Return control's latency quantiles from a histogram over logarithmic buckets.

    Args:
        histogram: Bucket number (`floor(100 · ln ms)`) -> requests.
        quantiles: Which quantiles, each in (0, 1).

    Returns:
        Milliseconds, one per quantile: the upper edge of the bucket in which the quantile lies, so never below it and
        at most 1.01 per cent above. Empty with fewer than 100 requests.
    """
    total = sum(histogram.values())
    if total < MIN_BASELINE_REQUESTS:
        return ()
    result = []
    for quantile in quantiles:
        below = 0
        for bucket in sorted(histogram):
            below += histogram[bucket]
            if below >= quantile * total:
                result.append(math.exp((bucket + 1) / BUCKETS_PER_E))
                break
    return tuple(result)


def share_in(
    start: datetime, end: datetime, splits: Sequence[SplitChange], *, guard: timedelta = SPLIT_GUARD
) -> float | None:
    """Return the treatment's set share in [start, end); None if it is unknown or changes within that time.

    A change makes the bin in which it lies unknown, and the next one too when that begins within `guard` of it.

    Args:
        start: Where the bin begins.
        end: Where it ends.
        splits: The splits that were set, oldest first.
        guard: How long after a change requests may still be counted that came by the split before.
    """
    current: SplitChange | None = None
    for change in splits:
        if change.at >= end:
            break
        if change.at > start - guard and (current is None or change.share != current.share):
            return None
        current = change
    return current.share if current else None


def with_served_shares(
    bins: Sequence[Bin], splits: Sequence[SplitChange], served: Mapping[int, datetime], *, width: timedelta
) -> tuple[Bin, ...]:
    """Return the bins without the shares of which it is not known that the router served them.

    A split is stored before it is served: until a look has found the router serving it, requests may come by the one
    before. A change of which no look has found that stays unknown up to the next one.

    Args:
        bins: Bins whose shares are those of the splits that were set.
        splits: The splits, oldest first.
        served: By revision: the first look at which the router served it wholly; nothing where looks do not know.
        width: The length of a bin.
    """
    unknown: list[tuple[datetime, datetime | None]] = []
    for change in splits:
        found = [at for revision, at in served.items() if revision >= change.revision]
        if served and change.revision:
            unknown.append((change.at, min(found, default=None)))

    def is_unknown(bin_: Bin) -> bool:
        """Return whether a bin overlaps a time in which a stored split was not known to be served."""
        end = bin_.start + width
        return any(since < end and (until is None or bin_.start < until) for since, until in unknown)

    return tuple(replace(bin_, share=None) if is_unknown(bin_) else bin_ for bin_ in bins)


def bins_of(
    rows: Iterable[CountRow],
    *,
    control: str,
    treatment: str,
    width: timedelta,
    started: datetime,
    until: datetime,
    splits: Sequence[SplitChange],
    n_thresholds: int,
    split_guard: timedelta = SPLIT_GUARD,
) -> tuple[tuple[Bin, ...], tuple[Bin, ...]]:
    """Join the count rows of control and treatment into bins; return the bins since the rollout began and the baseline.

    Args:
        rows: Counts by bin, version and side of `started`; those of other versions are ignored.
        control: Control's name.
        treatment: The treatment's name.
        width: The length of a bin.
        started: When the rollout began.
        until: Where the newest closed bin ends.
        splits: The splits that were set, oldest first.
        n_thresholds: How many latency thresholds each count has: a version without a row gets as many zeros.
        split_guard: See `share_in`.

    Returns:
        The rollout's bins and the baseline's, oldest first. The bin that holds `started` may be in both, its requests
        divided at that moment.
    """
    nothing = Counts(requests=0, errors=0, slow=(0,) * n_thresholds)
    rows = with_left_queue(rows)
    full = {row.start for row in rows if row.counts.overloaded}
    sides: dict[bool, dict[datetime, dict[str, Counts]]] = {True: {}, False: {}}
    for row in rows:
        if row.start + width <= until or row.before:
            # How long requests were scored is asked for only where some were refused, and takes space in the record.
            counts = row.counts if row.start in full or not row.counts.scoring else replace(row.counts, scoring=())
            sides[row.before].setdefault(row.start, {})[row.version] = counts
    bins = tuple(
        Bin(
            start=start,
            control=versions.get(control, nothing),
            treatment=versions.get(treatment, nothing),
            share=share_in(max(start, started), start + width, splits, guard=split_guard),
        )
        for start, versions in sorted(sides[False].items())
        if versions.get(control, nothing).requests or versions.get(treatment, nothing).requests
    )
    baseline = tuple(
        Bin(start=start, control=versions[control], treatment=nothing)
        for start, versions in sorted(sides[True].items())
        if versions.get(control, nothing).requests
    )
    return bins, baseline
