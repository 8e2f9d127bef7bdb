"""The requests that callers send, what became of them, and which of them the metric store shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import answers
from controlled_rollout.evidence.metric_store import Answer, Arrivals, StoreRequest
from controlled_rollout.evidence.rows import CountRow, MetricRow, UserRow
from controlled_rollout.gate import Counts
from tests.invariants.simulated_clock import SimulatedClock, moment, seconds

__all__ = ["BIN_S", "Rows", "SimulatedMetricStore", "SimulatedTraffic"]

BIN_S: Final = 10.0
# What a store may answer that cannot be.
NONSENSE: Final[tuple[dict[str, Any], ...]] = ({"Errors": 10**6}, {"Requests": -1}, {"Errors": "NaN"}, {"Bin": None})
REQUESTS_PER_S: Final = 8.0
# So long after the request a row is visible, unless telemetry is late.
INGESTION_S: Final = 1.0


@dataclass(slots=True)
class Rows:
    """Rows of requests to one version that began and arrived together.

    Attributes:
        version: Who answered.
        began, arrived: In seconds of the clock.
        requests, errors: How many rows, and how many of them are errors.
        real: Whether the router counted these requests, each once; False for forged rows and for copies.
    """

    version: str
    began: float
    arrived: float
    requests: int
    errors: int
    real: bool = True


@dataclass
class SimulatedTraffic:
    """Constant traffic to one endpoint; the same share of each version's answers are errors, without chance.

    Without chance, a version that is as good as control never alarms: each alarm of a test is one that must be.

    Attributes:
        error_rates: By version; 0 for those that are not named.
        quiet: Whether nobody calls at present.
        late_until: Rows of requests before that moment arrive then.
        lost: Versions whose rows never arrive at present.
        rows: All rows.
        counted: What the router has counted for each version.
    """

    clock: SimulatedClock
    error_rates: dict[str, float] = field(default_factory=dict)
    quiet: bool = False
    late_until: float = 0.0
    lost: set[str] = field(default_factory=set)
    rows: list[Rows] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)
    _parts: dict[tuple[str, str], float] = field(default_factory=dict)

    def send(self, shares: Mapping[str, float], begin: float, end: float) -> None:
        """Send the requests of [begin, end): a fraction of them to each version."""
        if self.quiet:
            return
        while begin < end:
            stop = min(end, (begin // BIN_S + 1) * BIN_S)
            for version, share in shares.items():
                self._send_to(version, REQUESTS_PER_S * share * (stop - begin), begin, stop)
            begin = stop

    def _send_to(self, version: str, expected: float, begin: float, end: float) -> None:
        """Send requests to one version; fractions of requests are kept for the next time."""
        requests = self._whole(version, "requests", expected)
        errors = min(requests, self._whole(version, "errors", requests * self.error_rates.get(version, 0.0)))
        if not requests:
            return
        self.counted[version] = self.counted.get(version, 0) + requests
        if version not in self.lost:
            arrived = max(end + INGESTION_S, self.late_until)
            self.rows.append(Rows(version, begin, arrived, requests, errors))

    def _whole(self, version: str, what: str, expected: float) -> int:
        """Return the whole part of what has come together, and keep the rest."""
        total = self._parts.get((version, what), 0.0) + expected
        whole = int(total + 1e-9)
        self._parts[version, what] = total - whole
        return whole

    def total(self, version: str, begin: float, end: float) -> Counts:
        """Return the sum of a version's real rows that began and arrived between two moments."""
        rows = [
            rows
            for rows in self.rows
            if rows.version == version and rows.real and begin <= rows.began and rows.arrived <= end
        ]
        return Counts(sum(part.requests for part in rows), sum(part.errors for part in rows))

    def forget(self, version: str) -> None:
        """Forget what the router has counted for a version that is deleted."""
        self.counted.pop(version, None)

    def add_rows(self, version: str, requests: int, errors: int) -> None:
        """Add rows that no request of a caller stands behind, such as a stranger's or copies."""
        now = self.clock.seconds
        self.rows.append(Rows(version, now - 2 * BIN_S, now, requests, errors, real=False))


@dataclass
class SimulatedMetricStore:
    """The metric store of the simulated traffic, as the shared reader queries it.

    Attributes:
        traffic: By endpoint.
        unavailable_until: In seconds of the clock: queries before fail.
        nonsense_until: Answers before have more errors than requests.
    """

    clock: SimulatedClock
    traffic: dict[str, SimulatedTraffic]
    unavailable_until: float = 0.0
    nonsense_until: float = 0.0

    def _check(self) -> None:
        """Raise EvidenceUnavailableError during an outage."""
        if self.clock.seconds < self.unavailable_until:
            raise EvidenceUnavailableError("the simulated metric store does not answer")

    async def thresholds(self, requests: Sequence[StoreRequest]) -> list[tuple[float, ...]]:
        self._check()
        return [() for _ in requests]

    async def counts(
        self, requests: Sequence[StoreRequest], *, until: datetime, bin_width: timedelta
    ) -> Sequence[Answer[list[CountRow]]]:
        self._check()
        rows = [
            {"Gate": number, **row}
            for number, request in enumerate(requests)
            for row in self._counts(request, seconds(until), bin_width.total_seconds())
        ]
        if self.clock.seconds < self.nonsense_until and rows:
            rows[-1] = {**rows[-1], **NONSENSE[int(self.clock.seconds) % len(NONSENSE)]}
        return answers.count_rows(rows, requests, until=until, bin_width=bin_width)

    def _counts(self, request: StoreRequest, until: float, width: float) -> list[dict[str, Any]]:
        """Return one request's counts by bin, version and side of the rollout's start, as a store answers them."""
        since, started, now = seconds(request.since), seconds(request.key.started), self.clock.seconds
        versions = request.key.control, request.key.treatment
        sums: dict[tuple[float, str, bool], list[int]] = {}
        for rows in self.traffic[request.key.endpoint].rows:
            if since <= rows.began < until and rows.arrived <= now and rows.version in versions:
                total = sums.setdefault((rows.began // width * width, rows.version, rows.began < started), [0, 0])
                total[0] += rows.requests
                total[1] += rows.errors
        return [
            {
                "Bin": moment(begin), "Version": version, "Before": before, "Requests": total, "Errors": errors,
                "Represented": total, "Overloaded": 0, "Timed": 0, "HungUp": 0, "LeftQueue": 0,
            }
            for (begin, version, before), (total, errors) in sums.items()
        ]  # fmt: skip

    async def metrics(self, request: StoreRequest, *, until: datetime) -> list[MetricRow]:
        self._check()
        return []

    async def users(self, request: StoreRequest, *, until: datetime) -> list[UserRow]:
        raise EvidenceUnavailableError("no rollout here counts users")

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrivals]:
        self._check()
        begin, end, new, recent = map(seconds, (first, until, since, lag_since))
        found = {name: self._arrivals(name, begin, end, new, recent, bin_width) for name in self.traffic}
        return {name: arrivals for name, arrivals in found.items() if arrivals is not None}

    def _arrivals(
        self, endpoint: str, begin: float, end: float, new: float, recent: float, bin_width: timedelta
    ) -> Arrivals | None:
        """Return what arrived of one endpoint's requests; None if nothing did."""
        now, width = self.clock.seconds, bin_width.total_seconds()
        oldest = lag = None
        for rows in self.traffic[endpoint].rows:
            if begin <= rows.began < end and rows.arrived <= now:
                if rows.arrived >= new and (oldest is None or rows.began < oldest):
                    oldest = rows.began
                if rows.arrived >= recent:
                    lag = max(lag or 0.0, rows.arrived - (rows.began // width + 1) * width)
        if oldest is None and lag is None:
            return None
        return Arrivals(None if oldest is None else moment(oldest), None if lag is None else timedelta(seconds=lag))

    def queries(self, request: StoreRequest) -> tuple[str, ...]:
        return ("simulated",)
