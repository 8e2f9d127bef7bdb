"""Whether what was collected is all there: if it is not, the gate cannot judge by it. Pure.

Three things have to fit: every replica has shipped what it collected up to the end of the newest closed bin, none has
dropped anything since the rollout began, and as many requests were collected as the metric store has answered ones.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controlled_rollout.errors import EvidenceUnavailableError

__all__ = ["SILENT", "Collected", "ReplicaState", "incomplete", "replica_state"]

# A replica that has not reported for so long has ended without saying so; what of it is missing shows in the counts.
SILENT: Final = timedelta(minutes=10)
# So many requests fewer may be collected than answered, and so large a part: the two are counted by two clocks.
SPARE_REQUESTS: Final = 5
SPARE_PART: Final = 0.02
# Of a share of the requests, so many standard deviations fewer.
DEVIATIONS: Final = 6.0
# The newest bins with so many answered requests have to fit by themselves: a long complete past hides what is missing.
NEWEST_REQUESTS: Final = 200


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What the collector says of one replica.

    Attributes:
        replica: Its name.
        shipped_until: What was collected up to this time is in the storage.
        dropped: Requests that were not kept, because the disk was full or the bound was reached.
        unreadable: Records that could not be read.
        lost_at: When the collector last saw one of the two grow; None if it has not.
        watched_since: Since when it has looked at them.
        pending_bytes: What waits to be shipped.
        final: The replica has ended, and everything is in the storage.
        updated: When this was written.
        captured: Requests, and calls of scripts' collectors, that were captured.
    """

    replica: str
    shipped_until: datetime
    dropped: int
    unreadable: int
    lost_at: datetime | None
    watched_since: datetime
    pending_bytes: int
    final: bool
    updated: datetime
    captured: int = 0


@dataclass(frozen=True, slots=True)
class Collected:
    """The requests of one version in one closed bin.

    Attributes:
        start: When the bin begins.
        answered: How many the version answered without an error, by the metric store.
        collected: How many are in the storage.
    """

    start: datetime
    answered: float
    collected: int


def replica_state(name: str, content: bytes) -> ReplicaState:
    """Return what a state file says.

    Args:
        name: The file's name in the storage.
        content: Its content: JSON, times in seconds since 1970.

    Raises:
        EvidenceUnavailableError: It is not what a collector writes.
    """
    try:
        values = json.loads(content)
        lost_at = values.get("lost_at")
        return ReplicaState(
            replica=str(values["replica"]),
            shipped_until=_time(values["shipped_until"]),
            dropped=_count(values["dropped"]),
            unreadable=_count(values["unreadable"]),
            lost_at=None if lost_at is None else _time(lost_at),
            watched_since=_time(values["watched_since"]),
            pending_bytes=_count(values.get("pending_bytes", 0)),
            final=values["final"] is True,
            updated=_time(values["updated"]),
            captured=_count(values.get("captured", 0)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise EvidenceUnavailableError(
            f"{name} does not say what its replica has shipped ({error!r}): collectors write it every few seconds"
        ) from error


def _time(value: Any) -> datetime:
    """Return a time that is given in seconds since 1970."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no time")
    return datetime.fromtimestamp(value, UTC)


def _count(value: Any) -> int:
    """Return a number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def incomplete(
    version: str,
    states: Iterable[ReplicaState],
    bins: Sequence[Collected],
    *,
    share: float,
    started: datetime,
    until: datetime,
    now: datetime,
) -> str:
    """Return a sentence on what of a version's collected data is missing; empty if it is complete.

    Args:
        version: The version's name.
        states: Those of all its replicas.
        bins: Its requests in closed bins, oldest first.
        share: The part of the requests that it collects.
        started: When the rollout began.
        until: Where the newest closed bin ends.
        now: The time of the look.
    """
    relevant = [one for one in states if one.updated >= started]
    answered = sum(one.answered for one in bins)
    if not relevant and answered * share > SPARE_REQUESTS:
        return (
            f"no replica of version {version!r} has reported what it collected since {started:%H:%M:%S}, and it "
            f"answered {answered:,.0f} requests: check that its collector runs and may write to the storage"
        )
    return (
        _lost_sentence(version, relevant, started)
        or _late_sentence(version, relevant, bins, until, now)
        or _missing_sentence(version, bins, share)
    )


def _lost_sentence(version: str, states: Sequence[ReplicaState], started: datetime) -> str:
    """Return a sentence if replicas have dropped something, or could not read it, since the rollout began."""
    # A collector that began to look later does not know when it was.
    lost = [one for one in states if one.dropped + one.unreadable > 0 and (one.lost_at or one.watched_since) >= started]
    if not lost:
        return ""
    dropped, unreadable = (sum(getattr(one, name) for one in lost) for name in ("dropped", "unreadable"))
    return (
        f"{dropped:,} records of version {version!r} were dropped and {unreadable:,} were unreadable (replica "
        f"{lost[0].replica}{' and others' if len(lost) > 1 else ''}): what is left is not all, and is not judged; give "
        "the spool more room (spool_mb), or collect a smaller share"
    )


def _late_sentence(
    version: str, states: Sequence[ReplicaState], bins: Sequence[Collected], until: datetime, now: datetime
) -> str:
    """Return a sentence if a replica has not shipped everything up to the end of the newest closed bin.

    The state of a replica that gets no requests is written less often: it is late only if the version got some since.
    """
    asked = max((one.start for one in bins if one.answered), default=None)
    late = [
        one
        for one in states
        if not one.final
        and one.shipped_until < until
        and now - one.updated <= SILENT
        and (one.pending_bytes > 0 or (asked is not None and _bin_end(asked, bins, until) > one.shipped_until))
    ]
    if not late:
        return ""
    last = min(late, key=lambda one: one.shipped_until)
    return (
        f"collected data of version {version!r} is late: replica {last.replica} has shipped what it collected up to "
        f"{last.shipped_until:%H:%M:%S}, {(until - last.shipped_until).total_seconds():,.0f} s less than is judged, "
        f"and {last.pending_bytes:,} bytes wait"
        + (f"; {len(late)} replicas are late" if len(late) > 1 else "")
        + ": check that its collector reaches the storage, or allow more with allowed_lag"
    )


def _bin_end(start: datetime, bins: Sequence[Collected], until: datetime) -> datetime:
    """Return the latest moment that the requests of a bin may be of: where the next one begins."""
    return min((one.start for one in bins if one.start > start), default=until)


def _missing_sentence(version: str, bins: Sequence[Collected], share: float) -> str:
    """Return a sentence if fewer requests were collected than the metric store has answered ones."""
    newest, answered = len(bins), 0.0
    while newest and answered < NEWEST_REQUESTS:
        newest -= 1
        answered += bins[newest].answered
    for some in (bins, bins[newest:]):
        answered = sum(one.answered for one in some)
        collected = sum(one.collected for one in some)
        expected = share * answered
        spare = SPARE_REQUESTS + SPARE_PART * expected + DEVIATIONS * math.sqrt(expected * (1 - share))
        if collected < expected - spare:
            return (
                f"of version {version!r} {collected:,} requests are in the storage since {some[0].start:%H:%M:%S}, and "
                f"it answered {answered:,.0f}"
                + (f" of which {share:g} are collected" if share < 1 else "")
                + ": the missing ones may be others, so nothing is judged by those that are there"
            )
    return ""
