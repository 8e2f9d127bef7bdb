"""The load generator's counts, as a small JSON file that is replaced in one step."""

import math
import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LatencyHistogram", "LoadReport", "VersionReport", "read_report", "write_atomically"]

# Each bucket is 2 % wider than the one before, so that a quantile is at most 2 % too high.
GROWTH: Final = 1.02
SMALLEST_S: Final = 1e-5


class LatencyHistogram:
    """A histogram of latencies in buckets of equal relative width, for quantiles in little memory."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._total = 0

    def add(self, latency_s: float) -> None:
        """Count one latency."""
        bucket = max(0, math.ceil(math.log(max(latency_s, SMALLEST_S) / SMALLEST_S, GROWTH)))
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._total += 1

    def quantile_ms(self, q: float) -> float:
        """Return the upper edge of the bucket that holds the q-quantile, in milliseconds; 0 if nothing was counted."""
        rank = math.ceil(q * self._total)
        counted = 0
        for bucket in sorted(self._counts):
            counted += self._counts[bucket]
            if counted >= rank:
                return 1000 * SMALLEST_S * GROWTH**bucket
        return 0.0


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionReport(_Message):
    """The requests of one version, as callers saw them.

    Attributes:
        requests: Requests that have an answer or have failed.
        failures: How many failed, by the error.
        p50_ms: Median latency since the beginning, from the moment when a request was due.
        p95_ms: The same for 95 % of the requests.
        recent_requests: Requests of the last five seconds.
        recent_p50_ms: Their median latency.
        recent_p95_ms: The latency that 95 % of them stay below.
    """

    requests: int
    failures: dict[str, int] = Field(default_factory=dict)
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    recent_requests: int = 0
    recent_p50_ms: float | None = None
    recent_p95_ms: float | None = None

    @property
    def failed(self) -> int:
        """The number of failed requests."""
        return sum(self.failures.values())


class LoadReport(_Message):
    """The requests of all versions, as callers saw them.

    Attributes:
        started: When the first request was sent, as a Unix time.
        written: When the report was written, as a Unix time.
        seconds: How long requests have been sent.
        rate: Requests per second that are sent.
        in_flight: Requests that have no answer yet.
        behind_ms: The most that a request was sent too late, because the generator itself was kept from running.
        finished: Whether this is the last report.
        versions: By the name in the response's header.
    """

    started: float
    written: float
    seconds: float
    rate: float
    in_flight: int = 0
    behind_ms: float = 0.0
    finished: bool = False
    versions: dict[str, VersionReport] = Field(default_factory=dict)

    @property
    def requests(self) -> int:
        """The number of requests that have an answer or have failed."""
        return sum(version.requests for version in self.versions.values())

    @property
    def failed(self) -> int:
        """The number of failed requests."""
        return sum(version.failed for version in self.versions.values())

    def failed_of(self, version: str) -> int:
        """Return the number of failed requests of one version."""
        return self.versions[version].failed if version in self.versions else 0

    def recent_split(self) -> dict[str, float]:
        """Return the share of each version in the requests of the last seconds, in per cent."""
        total = sum(version.recent_requests for version in self.versions.values())
        if not total:
            return {}
        return {name: 100 * version.recent_requests / total for name, version in self.versions.items()}


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def read_report(path: Path) -> LoadReport | None:
    """Return the newest report; None before there is one."""
    try:
        return LoadReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
