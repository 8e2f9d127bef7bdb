"""What the routers have counted in the last minute, and the demand that it shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Final, NamedTuple

__all__ = ["DOWN_WINDOW_S", "Demand", "History", "Reading"]

# How long a smaller number of replicas must have been enough before replicas are taken away.
DOWN_WINDOW_S: Final = 60.0
# After so long without a reading nobody knows what was in between: the minute begins anew.
GAP_S: Final = 10.0
# Of readings that come faster the highest counts, so that a history is never longer than 121 readings.
SHORTEST_INTERVAL_S: Final = 0.5
# How far a burst is extrapolated.
LOOKAHEAD_S: Final = 3.0
# A burst is two rises one after the other, of the means of so many readings.
GROUP: Final = 2
# The demand is the mean of so many readings: each is one moment, and varies by chance.
MEAN_OF: Final = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """What all routers together count for a version at one moment.

    Attributes:
        busy: Requests that were sent to replicas and are not answered yet (`upstream_rq_active`).
        queued: Requests that wait in the routers (`upstream_rq_pending_active`).
    """

    busy: float
    queued: float = 0.0

    @property
    def demand(self) -> float:
        """The slots that these requests take, or would take if there were enough; a gauge below 0 counts as 0."""
        return max(0.0, self.busy) + max(0.0, self.queued)


class Estimate(NamedTuple):
    """The demand over some readings, in slots.

    Attributes:
        mean: Their mean; in a burst what it will be in a moment.
        least: The mean less its standard error: what the readings show beyond chance.
    """

    mean: float
    least: float


class Demand(NamedTuple):
    """The demand that was known at one moment.

    Attributes:
        at: The moment in seconds since 1970.
        latest: Slots, by the reading of that moment alone.
        estimates: By the last four readings, and of a burst if there is one.
        asked: How many replicas were asked for at that moment because there were too few; 0 if there were enough.
    """

    at: float
    latest: float
    estimates: tuple[Estimate, ...]
    asked: int = 0


@dataclass(frozen=True, slots=True)
class History:
    """What has been read so far: immutable, at most 121 readings. An empty one is that of a process that just started.

    Attributes:
        demands: The demand of each reading of the last minute, oldest first.
        since: Since when there was no gap between readings; None before the first.
        changed: When the number of replicas was last changed; None if it was not.
    """

    demands: tuple[Demand, ...] = ()
    since: float | None = None
    changed: float | None = None

    def with_reading(self, reading: Reading, now: float) -> "History":
        """Return the history with one more reading; without those that are too old, or later than `now`.

        Args:
            reading: The reading.
            now: When it was made, in seconds since 1970.
        """
        kept = [demand for demand in self.demands if now - DOWN_WINDOW_S <= demand.at <= now]
        since = self.since if kept and self.since is not None and now - kept[-1].at <= GAP_S else now
        # A clock that was set back: what seemed to be a minute was none.
        since = min(since, now)
        kept = [demand for demand in kept if demand.at >= since]
        at, highest, asked = now, reading.demand, 0
        if kept and now - kept[-1].at < SHORTEST_INTERVAL_S:
            same = kept.pop()
            at, highest, asked = same.at, max(same.latest, reading.demand), same.asked
        latest = [*(demand.latest for demand in kept), highest]
        estimates = [_estimate(latest[-MEAN_OF:]), *_extrapolated_demand(latest, kept, at)]
        return replace(self, demands=(*kept, Demand(at, highest, tuple(estimates), asked)), since=since)

    def with_asked(self, replicas: int, now: float) -> "History":
        """Return the history with the number of replicas that its newest reading has asked for at `now`."""
        newest = self.demands[-1]._replace(asked=replicas)
        return replace(self, demands=(*self.demands[:-1], newest), changed=now)

    @property
    def whole(self) -> Estimate:
        """The demand over all its readings, of which there is at least one."""
        return _estimate([demand.latest for demand in self.demands])

    def shows_whole_window(self, now: float) -> bool:
        """Return whether the readings before `now` cover the time that a smaller number has to have been enough."""
        return self.since is not None and now - self.since >= DOWN_WINDOW_S


def _estimate(readings: Sequence[float]) -> Estimate:
    """Return mean and least demand of some readings; one alone may be chance."""
    number = len(readings)
    mean = sum(readings) / number
    if number < 2:
        return Estimate(mean, 0.0)
    variance = sum((reading - mean) ** 2 for reading in readings) / (number - 1)
    return Estimate(mean, mean - sqrt(variance / number))


def _extrapolated_demand(latest: Sequence[float], kept: Sequence[Demand], now: float) -> Iterator[Estimate]:
    """Yield the demand of the next moment if it goes on growing as fast; nothing if it does not grow fast."""
    if len(latest) < 3 * GROUP:
        return
    ends = (len(latest) - 2 * GROUP, len(latest) - GROUP, len(latest))
    first, second, third = (sum(latest[end - GROUP : end]) / GROUP for end in ends)
    # The last difference: one step, which falls into two groups, is not a burst either.
    rise = min(second - first, third - second, GROUP * (latest[-1] - latest[-2]))
    # The number of open requests varies by its square root (Poisson) even if the load does not.
    if rise > sqrt(max(second, 1.0)):
        seconds = max(now - kept[-GROUP].at, GROUP * SHORTEST_INTERVAL_S)
        demand = third + min(rise / seconds * LOOKAHEAD_S, third)
        yield Estimate(demand, demand)
