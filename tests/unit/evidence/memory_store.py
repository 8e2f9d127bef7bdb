"""A metric store in memory: rows become visible when they arrive, and it can refuse on request."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from statistics import mean, variance

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.bins import floor_to_bin
from controlled_rollout.evidence.metric_store import Arrivals, StoreRequest
from controlled_rollout.evidence.rows import CountRow, MetricRow, UserRow
from controlled_rollout.gate import Counts, Moments

T0 = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
S = timedelta(seconds=1)


@dataclass(frozen=True)
class Row:
    """A request, or a value of the author's metric.

    Attributes:
        began, arrived: In seconds after T0.
        version: Who answered.
        error: Whether it failed.
        ms: How long it took.
        value: The metric's value; None for a request.
    """

    began: float
    arrived: float
    version: str
    error: bool = False
    ms: float = 10.0
    value: float | None = None


@dataclass
class MemoryStore:
    """A metric store of one endpoint, `digits`.

    Attributes:
        rows: Everything that it ever gets.
        now: The present: what arrives later is not visible yet.
        refuses: Errors for the next queries, by their name.
        queries_sent: The queries so far, by name.
    """

    rows: list[Row]
    now: datetime = T0
    refuses: dict[str, list[EvidenceUnavailableError]] = field(default_factory=dict)
    queries_sent: list[str] = field(default_factory=list)

    def _note(self, query: str) -> None:
        self.queries_sent.append(query)
        if self.refuses.get(query):
            raise self.refuses[query].pop(0)

    def _visible(self, *, metric: bool = False) -> list[tuple[datetime, datetime, Row]]:
        rows = [(T0 + row.began * S, T0 + row.arrived * S, row) for row in self.rows]
        return [row for row in rows if row[1] <= self.now and (row[2].value is not None) == metric]

    async def thresholds(self, requests: Sequence[StoreRequest]) -> list[tuple[float, ...]]:
        self._note("thresholds")
        return [self._quantiles(request) for request in requests]

    def _quantiles(self, request: StoreRequest) -> tuple[float, ...]:
        key = request.key
        durations = sorted(
            row.ms
            for began, _, row in self._visible()
            if row.version == key.control and key.first <= began < key.started
        )
        return tuple(durations[int(q * len(durations))] for q in key.quantiles) if durations else ()

    async def counts(
        self, requests: Sequence[StoreRequest], *, until: datetime, bin_width: timedelta
    ) -> list[list[CountRow]]:
        self._note("counts")
        return [self._counts(request, until) for request in requests]

    def _counts(self, request: StoreRequest, until: datetime) -> list[CountRow]:
        groups: dict[tuple[datetime, str, bool], list[Row]] = {}
        for began, _, row in self._visible():
            if request.since <= began < until:
                key = floor_to_bin(began, request.key.window.bin_width), row.version, began < request.key.started
                groups.setdefault(key, []).append(row)
        return [
            CountRow(
                *key,
                Counts(
                    requests=len(rows),
                    errors=sum(row.error for row in rows),
                    slow=tuple(sum(row.ms > limit for row in rows) for limit in request.thresholds_ms),
                ),
            )
            for key, rows in groups.items()
        ]

    async def metrics(self, request: StoreRequest, *, until: datetime) -> list[MetricRow]:
        self._note("metrics")
        groups: dict[tuple[datetime, str, bool], list[float]] = {}
        for began, _, row in self._visible(metric=True):
            if request.since <= began < until and row.value is not None:
                key = floor_to_bin(began, request.key.window.bin_width), row.version, began < request.key.started
                groups.setdefault(key, []).append(row.value)
        return [
            MetricRow(*key, name, Moments(len(values), mean(values), variance(values) if len(values) > 1 else 0.0))
            for name in request.key.metrics
            for key, values in groups.items()
        ]

    async def users(self, request: StoreRequest, *, until: datetime) -> list[UserRow]:
        raise EvidenceUnavailableError("no rollout here counts users")

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrivals]:
        self._note("arrivals")
        rows = [(began, arrived) for began, arrived, _ in self._visible() if first <= began < until]
        oldest = min((began for began, arrived in rows if arrived >= since), default=None)
        lags = [arrived - floor_to_bin(began, bin_width) - bin_width for began, arrived in rows if arrived >= lag_since]
        lag = max(max(lags), timedelta(0)) if lags else None
        return {"digits": Arrivals(oldest, lag)} if oldest is not None or lag is not None else {}

    def queries(self, request: StoreRequest) -> tuple[str, ...]:
        return ("AppRequests",)
