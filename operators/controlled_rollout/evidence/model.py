"""What a look at the metric store gives, and who can give it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.rows import CountRow, MetricRow
from controlled_rollout.evidence.window import EvidenceWindow
from controlled_rollout.gate import Bin, Gate

__all__ = [
    "Arrival",
    "Ask",
    "Evidence",
    "EvidenceSource",
    "Question",
    "Reading",
    "SplitChange",
    "Store",
    "Subject",
    "ThrottledError",
    "TooMuchError",
]


@dataclass(frozen=True, slots=True)
class SplitChange:
    """From this moment on the treatment's set part of control's and its own traffic is `share` (0 to 1).

    Attributes:
        at: When the revision that set it was stored.
        share: None where neither has traffic.
    """

    at: datetime
    share: float | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that one look read.

    Attributes:
        bins: Closed bins since the rollout began, oldest first, both versions' counts in each. Bins without a single
            request are left out.
        baseline: Control's bins before the rollout (the treatment's counts are zero).
        thresholds_ms: Control's latency quantiles before the rollout in milliseconds, one per `gate.latency_quantiles`;
            empty when there was too little traffic before the rollout to know them.
        until: Where the newest closed bin ends: evidence after that moment was not looked at.
        queries: What gives these numbers when it is asked of the store by hand, with `until` left open. A query that
            serves several gates at once gives each the same.
        lag: How long after the ends of their bins all but the latest hundredth of the newest rows have come; None where
            the store does not tell.
    """

    bins: tuple[Bin, ...]
    baseline: tuple[Bin, ...]
    thresholds_ms: tuple[float, ...]
    until: datetime
    queries: tuple[str, ...]
    lag: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What a router has counted at one moment.

    Attributes:
        at: When it was asked.
        requests: Requests sent to each version since the router started.
    """

    at: datetime
    requests: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Question:
    """What a look asks of the metric store.

    Attributes:
        endpoint: The endpoint's name.
        control: Control's name.
        treatment: The treatment's name.
        started: When the rollout began: the baseline ends here.
        now: The time of the look.
        window: How the evidence is read.
        splits: The splits that were set, oldest first.
        gate: Gives the latency quantiles and the tolerance.
        clusters: What the router calls the replicas of each version; for a store that knows only the router's names.
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


class EvidenceSource(Protocol):
    """A metric store that knows what callers saw."""

    async def read(self, question: Question) -> Evidence:
        """Read the closed bins of a rollout, all of them, every time.

        Raises:
            EvidenceUnavailableError: The store did not answer, refused, throttled, or answered only in part.
        """
        ...


class ThrottledError(EvidenceUnavailableError):
    """The store asks to be left alone for a while.

    Attributes:
        retry_after: For how long.
    """

    def __init__(self, message: str, retry_after: timedelta) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TooMuchError(EvidenceUnavailableError):
    """A query took too long or would have given too many rows: a smaller one may be answered."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is the same for all looks of one gate on one rollout: who asks alike is answered once.

    Attributes:
        endpoint, control, treatment: Whose requests.
        started: When the rollout began.
        window: How the evidence is read.
        quantiles: The latency quantiles that are judged.
        tolerance: The relative slow-down of the treatment that is tolerated.
        means, categories: The author's queries for numeric and for categorical metrics, as (name, KQL).
        clusters: What the router calls control's and the treatment's replicas.
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

    @property
    def first(self) -> datetime:
        """Where the baseline begins."""
        return self.started - self.window.baseline_length

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the author's metrics that are asked for."""
        return tuple(name for name, _ in (*self.means, *self.categories))

    def cluster_of(self, version: str) -> str:
        """Return what the router calls a version's replicas."""
        return dict(self.clusters)[version]

    @classmethod
    def of(cls, question: Question) -> "Subject":
        """Return what a question has in common with the next one about the same rollout."""
        versions = (question.control, question.treatment)
        return cls(
            endpoint=question.endpoint,
            control=question.control,
            treatment=question.treatment,
            started=question.started,
            window=question.window,
            quantiles=tuple(question.gate.latency_quantiles),
            tolerance=question.gate.latency_tolerance,
            means=tuple((name, mean.kql) for name, mean in question.gate.means.items() if mean.kql),
            categories=tuple((name, one.kql) for name, one in question.gate.categories.items() if one.kql),
            clusters=tuple((name, question.clusters[name]) for name in versions if name in question.clusters),
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """What a store is asked for one subject.

    Attributes:
        subject: Whose counts.
        since: From which bin on.
        thresholds_ms: Control's frozen quantiles in milliseconds; empty where latency is not judged.
    """

    subject: Subject
    since: datetime
    thresholds_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Arrival:
    """What has arrived of an endpoint since a moment.

    Attributes:
        oldest: When the oldest of these requests began.
        lag: How long after the ends of their bins all but the latest hundredth came; not below 0.
    """

    oldest: datetime
    lag: timedelta


class Store(Protocol):
    """A metric store as the shared reader asks it: for many gates at once.

    All methods raise `EvidenceUnavailableError` where the answer is not complete.
    """

    async def thresholds(self, asks: Sequence[Ask]) -> list[tuple[float, ...]]:
        """Return control's latency quantiles before each rollout, in milliseconds; empty with too few requests."""
        ...

    async def counts(self, asks: Sequence[Ask], *, until: datetime, bin_width: timedelta) -> list[list[CountRow]]:
        """Return each ask's counts by bin and version, from its `since` until `until`."""
        ...

    async def metrics(self, ask: Ask, *, until: datetime) -> list[MetricRow]:
        """Return what the author's metrics were by bin and version, from the ask's `since` until `until`.

        Raises:
            EvidenceUnavailableError: Also where the author's query cannot be run; only this gate is blind then.
        """
        ...

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrival]:
        """Return what has arrived since a moment, by endpoint; empty where the store does not tell."""
        ...

    def queries(self, ask: Ask) -> tuple[str, ...]:
        """Return what a person would ask the store by hand to get the same numbers."""
        ...
