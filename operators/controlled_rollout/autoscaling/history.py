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
# Readings that come faster replace one another, so that a history is never longer than 120 readings.
SHORTEST_INTERVAL_S: Final = 0.5
# How far a burst is extrapolated.
LOOKAHEAD_S: Final = 3.0
# A burst is two rises one after the other, of the means of so many readings.
GROUP: Final = 2


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


class Demand(NamedTuple):
    """The demand of one moment.

    Attributes:
        at: The moment in seconds since 1970.
        latest: Slots, by one reading.
        sustained: Slots, by the mean of two readings, a burst extrapolated.
    """

    at: float
    latest: float
    sustained: float


@dataclass(frozen=True, slots=True)
class History:
    """What has been read so far: immutable, at most 120 readings. An empty one is that of a process that just started.

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
        if kept and now - kept[-1].at < SHORTEST_INTERVAL_S:
            kept = kept[:-1]
        latest = [*(demand.latest for demand in kept), reading.demand]
        return replace(self, demands=(*kept, Demand(now, latest[-1], _sustained(latest, kept, now))), since=since)

    def shows_whole_window(self, now: float) -> bool:
        """Return whether the readings before `now` cover the time that a smaller number has to have been enough."""
        return self.since is not None and now - self.since >= DOWN_WINDOW_S


def _sustained(latest: Sequence[float], kept: Sequence[Demand], now: float) -> float:
    """Return the mean demand of the last readings, and of what follows if it is about to grow on as it does."""
    means = list(_group_means(latest))
    if len(means) < 3:
        return means[0]
    rises = (means[0] - means[1], means[1] - means[2])
    # The number of open requests varies by its square root (Poisson) even if the load does not: that is no burst.
    if min(rises) <= sqrt(max(means[1], 1.0)):
        return means[0]
    seconds = max(now - kept[-GROUP].at, GROUP * SHORTEST_INTERVAL_S)
    return means[0] + min(min(rises) / seconds * LOOKAHEAD_S, means[0])


def _group_means(latest: Sequence[float]) -> Iterator[float]:
    """Yield the means of the last readings in groups, the newest first: at least one, and at most three whole ones."""
    newest = latest[-GROUP:]
    yield sum(newest) / len(newest)
    for end in (len(latest) - GROUP, len(latest) - 2 * GROUP):
        if end >= GROUP:
            yield sum(latest[end - GROUP : end]) / GROUP
