"""The times within which every request had the same chance to go to the treatment. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

from controlled_rollout.evidence import SplitChange

__all__ = ["Period", "periods_of"]

# A change of the split is served so long after it was stored at most; requests of that time are left out.
SETTLES: Final = timedelta(minutes=1)
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Period:
    """A time within which every request had the same chance to go to the treatment.

    Attributes:
        begin: Requests that arrived from then on.
        end: Requests that arrived before.
    """

    begin: datetime
    end: datetime


def periods_of(since: datetime, until: datetime, splits: Sequence[SplitChange] = ()) -> tuple[Period, ...]:
    """Return the times within which the split was the same and both versions had traffic, oldest first.

    Requests of one period may be compared whatever else changed in it; requests of two may not be added up, because the
    treatment's share of them differs. Where the splits are not known each UTC day is a period.

    Args:
        since: When the first of the requests arrived.
        until: When all had arrived.
        splits: The splits that were set, oldest first; the first tells the split at `since` if it was set before.
    """
    if not splits:
        return tuple(_days_of(since, until))
    result = []
    ends = [*(change.at for change in splits[1:]), until]
    for change, end in zip(splits, ends, strict=True):
        begin = max(since, change.at + SETTLES if change.at > since else since)
        if change.share is not None and 0 < change.share < 1 and begin < min(end, until):
            result.append(Period(begin, min(end, until)))
    return tuple(result)


def _days_of(since: datetime, until: datetime) -> list[Period]:
    """Return the parts of a time that lie in one UTC day each."""
    days, begin = [], since
    while begin < until:
        midnight = datetime.combine(begin.astimezone(UTC).date(), time(), UTC) + DAY
        days.append(Period(begin, min(midnight, until)))
        begin = midnight
    return days
