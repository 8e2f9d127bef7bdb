"""Raw samples of a router's counters -> how much each grew, and in which bin. Pure.

Not PromQL's increase(): that one extrapolates to the edges of its window and gives parts of requests.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.evidence.bins import floor_to_bin

__all__ = ["Growth", "Sample", "binned", "bound_at_least", "growths", "quantile_bounds"]

# A scrape tells of the time before it: one that falls on a bin's edge belongs to the bin that ends there.
JUST_BEFORE: Final = timedelta(milliseconds=1)

# When it was scraped, in seconds since 1970, and what the counter said.
Sample = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Growth:
    """By how much a counter grew up to a moment: between that scrape and the one before."""

    at: datetime
    number: int


def growths(samples: Sequence[Sample], scrapes: Sequence[Sample], *, longest: timedelta) -> list[Growth]:
    """Return a counter's growth from scrape to scrape.

    A counter that went back began anew: it counts from 0. One that was not there at the scrape before began since
    then. What grew in a gap longer than `longest` is left out: nobody knows in which bin it was.

    Args:
        samples: The counter's, oldest first.
        scrapes: Those of the same router's age in seconds, oldest first: when it was scraped, whatever it knew then.
        longest: The longest gap between two scrapes that still tells the bin.
    """
    found = []
    times = [time for time, _ in scrapes]
    before: Sample | None = None
    for time, value in samples:
        if before is None:
            before = _beginning(time, times, scrapes, longest)
        if before is not None and time - before[0] <= longest.total_seconds():
            number = value - before[1] if value >= before[1] else value
            found.append(Growth(datetime.fromtimestamp(time, UTC), round(number)))
        before = (time, value)
    return found


def _beginning(time: float, times: Sequence[float], scrapes: Sequence[Sample], longest: timedelta) -> Sample | None:
    """Return when a counter that is seen for the first time was 0; None where that is not known."""
    place = bisect_left(times, time)
    if place > 0:
        return times[place - 1], 0.0
    age = scrapes[place][1] if place < len(scrapes) and times[place] == time else None
    return (time - age, 0.0) if age is not None and age <= longest.total_seconds() else None


def binned(grown: Iterable[Growth], *, width: timedelta, started: datetime) -> dict[tuple[datetime, bool], int]:
    """Return the growth in each bin, before and since `started`."""
    found: dict[tuple[datetime, bool], int] = {}
    for one in grown:
        key = (floor_to_bin(one.at - JUST_BEFORE, width), one.at <= started)
        found[key] = found.get(key, 0) + one.number
    return found


def bound_at_least(bounds: Iterable[float], value: float) -> float | None:
    """Return the smallest of a histogram's bounds that is not below `value`; None where there is none."""
    return min((bound for bound in bounds if bound >= value), default=None)


def quantile_bounds(cumulative: Mapping[float, int], quantiles: Sequence[float], *, fewest: int) -> tuple[float, ...]:
    """Return the bounds below which at least such parts of the requests lie.

    Args:
        cumulative: Requests that took at most so many milliseconds, by the histogram's bounds; the infinite one holds
            them all.
        quantiles: Which parts.
        fewest: With fewer requests nothing is known.

    Returns:
        One bound a quantile: the next above it, so up to a whole bucket too high. Empty where too few requests were
        seen, or one of the quantiles lies beyond the last bound.
    """
    total = max(cumulative.values(), default=0)
    if total < fewest:
        return ()
    finite = sorted(bound for bound in cumulative if bound != float("inf"))
    found = [next((bound for bound in finite if cumulative[bound] >= part * total), None) for part in quantiles]
    known = tuple(bound for bound in found if bound is not None)
    return known if len(known) == len(quantiles) else ()
