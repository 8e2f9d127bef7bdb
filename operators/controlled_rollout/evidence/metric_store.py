"""How the shared reader queries a metric store: for many gates at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias, TypeVar

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.query import EvidenceQuery
from controlled_rollout.evidence.rows import CountRow, MetricRow, UserRow
from controlled_rollout.evidence.window import EvidenceWindow

__all__ = [
    "Answer",
    "Arrivals",
    "MetricStore",
    "QueryKey",
    "StoreRequest",
    "ThrottledError",
    "TooMuchError",
    "UnreadableError",
]

Value = TypeVar("Value")
# What one gate gets of an answer for many: a value, or why its part of the answer is unreadable.
Answer: TypeAlias = Value | EvidenceUnavailableError


class ThrottledError(EvidenceUnavailableError):
    """The store wants no queries for a while.

    Attributes:
        retry_after: For how long.
    """

    def __init__(self, message: str, retry_after: timedelta) -> None:
        """Store the message, and how long the store accepts no query."""
        super().__init__(message)
        self.retry_after = retry_after


class TooMuchError(EvidenceUnavailableError):
    """A query took too long or would have given too many rows: a smaller one may be answered."""


class UnreadableError(EvidenceUnavailableError):
    """The store answered something that cannot be: a smaller query may show which gate's part it is."""


@dataclass(frozen=True, slots=True)
class QueryKey:
    """What is the same for all looks of one gate on one rollout: equal keys share one answer.

    Attributes:
        endpoint, control, treatment: Whose requests.
        started: When the rollout began.
        window: How the evidence is read.
        quantiles: The latency quantiles that are judged.
        tolerance: The relative slow-down of the treatment that is tolerated.
        means, categories: The author's queries for numeric and for categorical metrics, as (name, KQL).
        clusters: What the router calls control's and the treatment's replicas.
        baseline_from: The baseline does not reach behind this moment; None: it may.
        limit_ms: The gate's `max_latency` in milliseconds; None if it has none.
        steps: Where the gate counts users: since when the treatment had which part of the traffic, oldest first; None
            where it counts requests.
    """

    endpoint: str
    control: str
    treatment: str
    started: datetime
    window: EvidenceWindow
    quantiles: tuple[float, ...]
    tolerance: float
    means: tuple[tuple[str, str], ...] = ()
    categories: tuple[tuple[str, str], ...] = ()
    clusters: tuple[tuple[str, str], ...] = ()
    baseline_from: datetime | None = None
    limit_ms: float | None = None
    steps: tuple[tuple[datetime, float], ...] | None = None

    @property
    def first(self) -> datetime:
        """The time at which the baseline begins."""
        first = self.started - self.window.baseline_length
        return first if self.baseline_from is None else min(max(first, self.baseline_from), self.started)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the author's metrics."""
        return tuple(name for name, _ in (*self.means, *self.categories))

    def cluster_of(self, version: str) -> str:
        """Return the name of a version's Envoy cluster, under which the router counts its requests."""
        return dict(self.clusters)[version]

    def with_limit(self, thresholds_ms: tuple[float, ...]) -> tuple[float, ...]:
        """Return control's quantiles and, after them, what gives `max_latency` with the tolerance; none if none."""
        if not thresholds_ms or self.limit_ms is None:
            return thresholds_ms
        return (*thresholds_ms, self.limit_ms / (1 + self.tolerance))

    @classmethod
    def of(cls, query: EvidenceQuery) -> "QueryKey":
        """Return the part of a query that all looks of one gate on one rollout share."""
        versions = (query.control, query.treatment)
        return cls(
            endpoint=query.endpoint,
            control=query.control,
            treatment=query.treatment,
            started=query.started,
            window=query.window,
            quantiles=tuple(query.gate.latency_quantiles),
            tolerance=query.gate.latency_tolerance,
            means=tuple((name, mean.kql) for name, mean in query.gate.means.items() if mean.kql),
            categories=tuple((name, category.kql) for name, category in query.gate.categories.items() if category.kql),
            clusters=tuple((name, query.clusters[name]) for name in versions if name in query.clusters),
            baseline_from=query.baseline_from,
            steps=tuple((change.at, change.share or 0.0) for change in query.splits)
            if query.gate.unit == "user"
            else None,
            limit_ms=None if (limit := query.gate.max_latency) is None else limit.duration.total_seconds() * 1_000,
        )


@dataclass(frozen=True, slots=True)
class StoreRequest:
    """What is requested from a store for one key.

    Attributes:
        key: Whose counts.
        since: From which bin on.
        thresholds_ms: Control's frozen quantiles in milliseconds, after them what gives `max_latency`; empty where
            latency is not judged.
    """

    key: QueryKey
    since: datetime
    thresholds_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrivals:
    """What arrived lately of one endpoint's requests in closed bins.

    Attributes:
        oldest: When the oldest request began that arrived since the process asked before; None if none did.
        lag: How long after the ends of their bins all but the latest hundredth of the newest arrivals came, not below
            0; None if there are none.
    """

    oldest: datetime | None
    lag: timedelta | None


class MetricStore(Protocol):
    """A metric store as the shared reader queries it.

    All methods raise `EvidenceUnavailableError` where the answer is not complete. Where only one gate's part of an
    answer is unreadable, the error stands in the place of that part.
    """

    async def thresholds(self, requests: Sequence[StoreRequest]) -> Sequence[Answer[tuple[float, ...]]]:
        """Return control's latency quantiles before each rollout, in milliseconds; empty with too few requests."""
        ...

    async def counts(
        self, requests: Sequence[StoreRequest], *, until: datetime, bin_width: timedelta
    ) -> Sequence[Answer[list[CountRow]]]:
        """Return each request's counts by bin and version, between its `since` and `until`."""
        ...

    async def metrics(self, request: StoreRequest, *, until: datetime) -> list[MetricRow]:
        """Return the author's metrics by bin and version, between the request's `since` and `until`.

        Raises:
            EvidenceUnavailableError: Also where the author's query cannot be run; only that gate is blind then.
        """
        ...

    async def users(self, request: StoreRequest, *, until: datetime) -> list[UserRow]:
        """Return the users by bin, version and how they were drawn, from the request's `since` to `until`.

        Raises:
            EvidenceUnavailableError: Also where the store knows no users.
        """
        ...

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
    ) -> Mapping[str, Answer[Arrivals]]:
        """Return by endpoint how old and how late recently ingested rows are; endpoints without such rows are left out.

        Args:
            first: The oldest moment that any of the gates reads.
            until: Where the newest closed bin ends.
            since: `Arrivals.oldest` is of what arrived since then.
            lag_since: `Arrivals.lag` is of what arrived since then.
            bin_width: The length of a bin.
        """
        ...

    def queries(self, request: StoreRequest) -> tuple[str, ...]:
        """Return the queries with which a person gets the same numbers from the store."""
        ...
