"""What a look at the metric store gives, and who can give it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from controlled_rollout.gate import Bin, Gate

__all__ = ["Evidence", "EvidenceSource", "Question", "Reading", "SplitChange"]


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
        lag: How late all but the latest hundredth of the newest rows have come; None where the store does not tell.
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
        bin_width: The length of a bin.
        allowed_lag: How late a row may arrive: bins that end later than `now - allowed_lag` are not closed.
        baseline_length: How far before `started` the baseline reaches.
        splits: The splits that were set, oldest first.
        gate: Gives the latency quantiles and the tolerance.
    """

    endpoint: str
    control: str
    treatment: str
    started: datetime
    now: datetime
    bin_width: timedelta
    allowed_lag: timedelta
    baseline_length: timedelta
    splits: Sequence[SplitChange]
    gate: Gate


class EvidenceSource(Protocol):
    """A metric store that knows what callers saw."""

    async def read(self, question: Question) -> Evidence:
        """Read the closed bins of a rollout, all of them, every time.

        Raises:
            EvidenceUnavailableError: The store did not answer, refused, throttled, or answered only in part.
        """
        ...
