"""From raw samples of a router's counters to how much each grew in each bin. Pure.

Not PromQL's increase(), which extrapolates to the edges of its window and gives fractions of requests.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.evidence.bins import floor_to_bin

__all__ = ["Growth", "Sample", "bound_at_least", "growth_by_bin", "growths", "quantile_bounds"]

# A scrape covers the time before it: one that falls on a bin's edge belongs to the bin that ends there.
JUST_BEFORE: Final = timedelta(milliseconds=1)

# The time of the scrape in seconds since 1970, and the counter's value.
Sample = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Growth:
    """By how much a counter grew between the scrape at `at` and the one before."""

    at: datetime
    number: int


def growths(samples: Sequence[Sample], scrapes: Sequence[Sample], *, longest: timedelta) -> list[Growth]:
    """Return by how much a counter grew between each two scrapes; a reset of the counter is recognised.

    A counter that decreased was restarted: it counts from 0. One that was missing at the scrape before started since
    then. Growth in a gap longer than `longest` is left out: its bin is not known.

    Args:
        samples: The counter's samples, oldest first.
        scrapes: Samples of the same router's age in seconds, oldest first: they show every scrape of it.
        longest: The longest gap between two scrapes whose growth is assigned to a bin.
    """
    result = []
    times = [time for time, _ in scrapes]
    before: Sample | None = None
    for time, value in samples:
        if before is None:
            before = _sample_before_first(time, times, scrapes, longest)
        if before is not None and time - before[0] <= longest.total_seconds():
            number = value - before[1] if value >= before[1] else value
            result.append(Growth(datetime.fromtimestamp(time, UTC), round(number)))
        before = (time, value)
    return result


def _sample_before_first(
    time: float, times: Sequence[float], scrapes: Sequence[Sample], longest: timedelta
) -> Sample | None:
    """Return a sample of 0 from before a counter's first sample, which is at `time`; None if it is not known."""
    index = bisect_left(times, time)
    if index > 0:
        return times[index - 1], 0.0
    age = scrapes[index][1] if index < len(scrapes) and times[index] == time else None
    return (time - age, 0.0) if age is not None and age <= longest.total_seconds() else None


def growth_by_bin(grown: Iterable[Growth], *, width: timedelta, started: datetime) -> dict[tuple[datetime, bool], int]:
    """Sum a counter's growth per bin; the key is the bin's start and whether it lies before the rollout's start."""
    by_bin: dict[tuple[datetime, bool], int] = {}
    for growth in grown:
        key = (floor_to_bin(growth.at - JUST_BEFORE, width), growth.at <= started)
        by_bin[key] = by_bin.get(key, 0) + growth.number
    return by_bin


def bound_at_least(bounds: Iterable[float], value: float) -> float | None:
    """Return the smallest of a histogram's bounds that is not below a value; None if all are below it."""
    return min((bound for bound in bounds if bound >= value), default=None)


def quantile_bounds(cumulative: Mapping[float, int], quantiles: Sequence[float], *, fewest: int) -> tuple[float, ...]:
    """Return the histogram bounds at or above the given quantiles; empty with fewer requests than `fewest`.

    Args:
        cumulative: Requests that took at most so many milliseconds, by the histogram's bounds; the infinite one counts
            all.
        quantiles: Which quantiles, each in (0, 1).
        fewest: With fewer requests none is known.

    Returns:
        One bound per quantile: the next above it, so up to a whole bucket too high. Empty with too few requests, or
        where a quantile lies beyond the last bound.
    """
    total = max(cumulative.values(), default=0)
    if total < fewest:
        return ()
    finite = sorted(bound for bound in cumulative if bound != float("inf"))
    bounds = [next((bound for bound in finite if cumulative[bound] >= part * total), None) for part in quantiles]
    known = tuple(bound for bound in bounds if bound is not None)
    return known if len(known) == len(quantiles) else ()
