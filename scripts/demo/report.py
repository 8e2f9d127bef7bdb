"""What the load generator counts, as it tells it to others: one small JSON file, replaced whole."""

import math
import os
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["LatencyHistogram", "LoadReport", "VersionReport", "read_report", "write_atomically"]

# Buckets grow by 2 %: a quantile read from them is at most so much too high.
GROWTH: Final = 1.02
SMALLEST_S: Final = 1e-5


class LatencyHistogram:
    """Latencies in buckets of equal relative width: quantiles of any number of requests in little memory."""

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
        wanted = math.ceil(q * self._total)
        seen = 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                return 1000 * SMALLEST_S * GROWTH**bucket
        return 0.0


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionReport(_Message):
    """What callers saw of one version.

    Attributes:
        requests: Requests that have come to their end.
        failures: How many failed, by kind.
        p50_ms, p95_ms: Latency since the beginning, from the moment when a request was due.
        recent_requests, recent_p50_ms, recent_p95_ms: The same of the last five seconds.
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
        """All failures."""
        return sum(self.failures.values())


class LoadReport(_Message):
    """What callers saw.

    Attributes:
        started, written: Unix times.
        seconds: How long requests have been sent.
        rate: Requests per second that were asked for.
        in_flight: Requests that have no answer yet.
        behind_ms: The most that a request was sent after it was due, because the generator itself did not get to it.
        finished: Whether this is the last report.
        versions: By the name that the answer's header gave.
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
        """All requests that have come to their end."""
        return sum(version.requests for version in self.versions.values())

    @property
    def failed(self) -> int:
        """All failures."""
        return sum(version.failed for version in self.versions.values())

    def failed_of(self, version: str) -> int:
        """Return the failures of one version."""
        return self.versions[version].failed if version in self.versions else 0

    def recent_split(self) -> dict[str, float]:
        """Return the per cent of the last seconds' requests that each version answered."""
        total = sum(version.recent_requests for version in self.versions.values())
        if not total:
            return {}
        return {name: 100 * version.recent_requests / total for name, version in self.versions.items()}


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole: a reader sees the old text or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def read_report(path: Path) -> LoadReport | None:
    """Return the newest report, None before there is one."""
    try:
        return LoadReport.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
