"""What a look asks of a metric store, and the evidence that it gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Protocol

from controlled_rollout.collection_settings import Collection
from controlled_rollout.evidence.window import EvidenceWindow
from controlled_rollout.gate import Aggregates, Bin, Gate

__all__ = [
    "CLOCKS_DIFFER",
    "CountedPeriod",
    "Evidence",
    "EvidenceQuery",
    "EvidenceSource",
    "RouterCounts",
    "SplitChange",
]

# The clocks of the routers and of the process that looks may differ by so much.
CLOCKS_DIFFER: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class SplitChange:
    """From this moment on the treatment's set part of control's and its own traffic is `share` (0 to 1).

    Attributes:
        at: When the revision that set it was stored.
        share: None where neither has traffic.
        revision: The revision that set it; 0 where it counts as served since `at`.
    """

    at: datetime
    share: float | None
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that one look read from the metric store.

    Attributes:
        bins: Closed bins since the rollout began, oldest first, both versions' counts in each. Bins without a single
            request are left out.
        baseline: Control's bins before the rollout (the treatment's counts are zero).
        thresholds_ms: Control's latency quantiles before the rollout in milliseconds, one per `gate.latency_quantiles`,
            and what gives the gate's `max_latency` with the tolerance; empty when there was too little traffic before
            the rollout to know them.
        until: Where the newest closed bin ends: later evidence was not read.
        queries: What gives these numbers when the store is queried by hand, with `until` left open. A query that serves
            several gates at once gives each the same.
        lag: How long after the ends of their bins all but the latest hundredth of the newest rows came; None where the
            store does not tell.
        cuts: By metric that is a collected column what control's quantiles before the rollout give: the upper edges of
            the buckets, or the two bounds of values that are clipped.
        unseen: What of the collected data cannot be seen, in a sentence; the bins have nothing of it then. Empty if all
            is seen, or the gate judges no column.
        aggregates: What the expectations about all rows together found at the present share; None before that.
    """

    bins: tuple[Bin, ...]
    baseline: tuple[Bin, ...]
    thresholds_ms: tuple[float, ...]
    until: datetime
    queries: tuple[str, ...]
    lag: timedelta | None = None
    cuts: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    unseen: str = ""
    aggregates: Aggregates | None = None


@dataclass(frozen=True, slots=True)
class RouterCounts:
    """What a router had counted at one moment.

    Attributes:
        at: The moment.
        requests: Requests sent to each version since the router started.
        unsent: Requests for each version that the router answered itself because it could not send them: no healthy
            replica, no connection. A request that is tried again may count again.
        routers: The processes that counted, and since when each has counted; empty where they are not known.
        served: The newest revision whose whole split the router served at that moment; 0 where it is not known.
    """

    at: datetime
    requests: Mapping[str, int]
    unsent: Mapping[str, int] = field(default_factory=dict)
    routers: Mapping[str, datetime] = field(default_factory=dict)
    served: int = 0

    def of(self, version: str) -> int:
        """Return how many requests of a version were counted, sent or not."""
        return self.requests.get(version, 0) + self.unsent.get(version, 0)


@dataclass(frozen=True, slots=True)
class CountedPeriod:
    """Two readings of the router's counts between which nothing that was counted was lost.

    Attributes:
        first: The earlier reading.
        last: The later one.
    """

    first: RouterCounts
    last: RouterCounts

    def goes_on_with(self, later: RouterCounts) -> bool:
        """Return whether a later reading has all counts of the last one: the same routers count on, and none less."""
        kept = all(later.routers.get(name) == since for name, since in self.last.routers.items())
        return kept and all(later.of(version) >= self.last.of(version) for version in self.last.requests)

    def until(self, later: RouterCounts) -> "CountedPeriod":
        """Return the period from the same first reading to a later one."""
        return CountedPeriod(self.first, later)


@dataclass(frozen=True, slots=True)
class EvidenceQuery:
    """What a look asks of the metric store.

    Attributes:
        endpoint: The endpoint's name.
        control: Control's name.
        treatment: The treatment's name.
        started: When the rollout began: the baseline ends here.
        now: The time of the look: bins that ended less than `window.allowed_lag` ago are not closed.
        window: How the evidence is read.
        splits: The splits that were set, oldest first.
        gate: Gives the latency quantiles, the tolerance and the author's metrics.
        clusters: What the router calls the replicas of each version; for a store that knows only the router's names.
        baseline_from: The baseline does not reach behind this moment, such as control's creation; None: it may.
        collected: What control and treatment keep of their inputs and predictions; a version that collects nothing is
            left out.
    """

    endpoint: str
    control: str
    treatment: str
    started: datetime
    now: datetime
    window: EvidenceWindow
    splits: Sequence[SplitChange]
    gate: Gate
    clusters: Mapping[str, str] = field(default_factory=dict)
    baseline_from: datetime | None = None
    collected: Mapping[str, Collection] = field(default_factory=dict)


class EvidenceSource(Protocol):
    """A metric store that knows what callers saw."""

    async def read(self, query: EvidenceQuery) -> Evidence:
        """Return all closed bins of a rollout.

        Raises:
            EvidenceUnavailableError: The store did not answer, refused, throttled, or answered only in part.
        """
        ...
