"""Evidence from a Log Analytics workspace, Azure's or the local store's: the same client, the same KQL."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controlled_rollout.endpoint import check_name
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence.bins import (
    BUCKETS_PER_E,
    FASTEST_MS,
    CountRow,
    bins_of,
    check_bin_width,
    closed_until,
    thresholds,
)
from controlled_rollout.evidence.model import Evidence, Question
from controlled_rollout.gate import Counts

__all__ = ["LogAnalyticsEvidence", "baseline_query", "counts_query", "newest_query"]

PUBLIC_ENDPOINT: Final = "https://api.loganalytics.io"
# A look that fails is repeated by the gate: the client itself must not hold it up with minutes of retries.
CLIENT_SETTINGS: Final[Mapping[str, Any]] = {
    "retry_total": 1,
    "retry_backoff_factor": 0.5,
    "connection_timeout": 5,
    "read_timeout": 200,
}

# What to do about an answer, by its HTTP status.
ADVICE: Final[Mapping[int, str]] = {
    204: "the workspace holds no data yet: see that the router's telemetry reaches it",
    400: "the query was refused: see that the workspace has the table AppRequests",
    401: "sign-in was refused: check the credential of the workspace's connection",
    403: "no permission: give the identity the role Log Analytics Reader (a new role may take an hour to count)",
    404: "check the workspace id",
    429: "too many queries: look less often",
    504: "the query took too long: use wider bins or a shorter baseline",
}


def _requests_of(endpoint: str, start: datetime, end: datetime) -> str:
    """The requests that the weights sent to an endpoint's versions; rows that do not say who chose count as such."""
    return (
        "AppRequests\n"
        f"| where TimeGenerated >= {_datetime(start)} and TimeGenerated < {_datetime(end)}\n"
        f"| where tostring(Properties.endpoint) == '{check_name(endpoint)}'"
        " and tostring(Properties.routed_by) != 'header'\n"
    )


def baseline_query(endpoint: str, control: str, *, start: datetime, end: datetime) -> str:
    """Return the KQL of control's latency histogram: requests by logarithmic bucket of milliseconds."""
    return (
        f"{_requests_of(endpoint, start, end)}"
        f"| where tostring(Properties.version) == '{check_name(control)}'\n"
        f"| extend Bucket = bin(log(max_of(DurationMs, {_real(FASTEST_MS)})) * {_real(BUCKETS_PER_E)}, 1.0)\n"
        "| summarize Requests = sum(ItemCount) by Bucket"
    )


def counts_query(
    endpoint: str,
    treatment: str,
    *,
    start: datetime,
    started: datetime,
    end: datetime,
    bin_width: timedelta,
    thresholds_ms: Sequence[float],
    tolerance: float,
) -> str:
    """Return the KQL of the versions' counts by bin, before and since the rollout began.

    Other versions are not filtered out: reading a property once more for each row costs more than a few more rows.
    """
    slow = "".join(
        f",\n    Slow{number} = sumif(ItemCount, DurationMs > {_real(threshold)} * Tolerated)"
        for number, threshold in enumerate(thresholds_ms)
    )
    return (
        f"{_requests_of(endpoint, start, end)}"
        "| extend Version = tostring(Properties.version)\n"
        f"| extend Tolerated = iff(Version == '{check_name(treatment)}', {_real(1 + tolerance)}, 1.0)\n"
        "| summarize Requests = sum(ItemCount),\n"
        f"    Errors = sumif(ItemCount, toint(ResultCode) >= 500 or ResultCode == '0'){slow}\n"
        f"    by Version, Bin = bin(TimeGenerated, {bin_width // timedelta(milliseconds=1)}ms),"
        f" Before = TimeGenerated < {_datetime(started)}"
    )


def newest_query(endpoint: str, *, start: datetime, end: datetime) -> str:
    """Return the KQL of when the newest request of an endpoint began."""
    return f"{_requests_of(endpoint, start, end)}| summarize Newest = max(TimeGenerated)"


def _datetime(moment: datetime) -> str:
    """A KQL literal; a moment without a zone would silently be another one."""
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    return f"datetime({moment.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S.%f')}Z)"


def _real(number: float) -> str:
    """A KQL literal of a finite number: digits and a point, nothing else."""
    if not math.isfinite(number):
        raise ValueError(f"{number!r} is not finite")
    return f"{number:.6f}"


class LogAnalyticsEvidence:
    """What callers saw, from the table AppRequests of a workspace.

    Args:
        endpoint: Base URL of the query API; None for Azure's public one.
        workspace_id: The workspace's id.
        credential: An `azure.core.credentials.TokenCredential`.
        enforce_https: False only for a store on this machine.
    """

    def __init__(self, *, endpoint: str | None, workspace_id: str, credential: Any, enforce_https: bool = True) -> None:
        self.endpoint = (endpoint or PUBLIC_ENDPOINT).rstrip("/")
        self.workspace_id = workspace_id
        self._credential = credential
        self._enforce_https = enforce_https

    def __repr__(self) -> str:
        return f"LogAnalyticsEvidence(endpoint={self.endpoint!r}, workspace_id={self.workspace_id!r})"

    async def read(self, question: Question) -> Evidence:
        """Read the closed bins of a rollout; see `EvidenceSource.read`.

        Control's quantiles come first: they set what the counts call slow. With fewer than 100 requests before the
        rollout there are none, and latency is not counted.
        """
        check_bin_width(question.bin_width)
        until = closed_until(question.now, allowed_lag=question.allowed_lag, width=question.bin_width)
        started = question.started
        first = started - question.baseline_length
        histogram_kql = baseline_query(question.endpoint, question.control, start=first, end=started)
        histogram = [
            (_whole(row["Bucket"]), _whole(row["Requests"]))
            for row in await self._ask(histogram_kql, "Bucket", "Requests")
        ]
        limits = thresholds(dict(histogram), question.gate.latency_quantiles)
        counts_kql = counts_query(
            question.endpoint,
            question.treatment,
            start=first,
            started=started,
            end=max(until, started),
            bin_width=question.bin_width,
            thresholds_ms=limits,
            tolerance=question.gate.latency_tolerance,
        )
        slow = [f"Slow{number}" for number in range(len(limits))]
        rows = await self._ask(counts_kql, "Version", "Bin", "Before", "Requests", "Errors", *slow)
        bins, baseline = bins_of(
            (_count_row(row, slow) for row in rows),
            control=question.control,
            treatment=question.treatment,
            width=question.bin_width,
            started=started,
            until=until,
            splits=question.splits,
            kinds=len(limits),
        )
        return Evidence(bins, baseline, limits, until, (histogram_kql, counts_kql))

    async def newest(self, endpoint: str, *, now: datetime | None = None) -> datetime | None:
        """Return when the newest request of the last day began; None when there is none.

        Raises:
            EvidenceUnavailableError: The store did not answer.
        """
        end = (now or datetime.now(UTC)) + timedelta(minutes=1)
        rows = await self._ask(newest_query(endpoint, start=end - timedelta(days=1), end=end), "Newest")
        moment = rows[0]["Newest"] if rows else None
        return moment.astimezone(UTC) if isinstance(moment, datetime) else None

    async def _ask(self, kql: str, *columns: str) -> list[dict[str, Any]]:
        """Run one query to its end; anything but a complete answer is an error, never zeros.

        The client is the synchronous one in a thread: the asynchronous one would need an HTTP library of its own.
        """
        return await asyncio.to_thread(self._ask_now, kql, columns)

    def _ask_now(self, kql: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        try:
            from azure.core.exceptions import AzureError, HttpResponseError
            from azure.monitor.query import LogsQueryClient, LogsQueryPartialResult
        except ImportError as error:
            raise EvidenceUnavailableError(
                f"reading {self.endpoint} needs a package that is missing ({error.name}): "
                "install airflow-provider-controlled-rollout with the extra azure or local"
            ) from None
        statuses: list[int] = []

        def note(response: Any) -> None:
            statuses.append(response.http_response.status_code)

        try:
            with LogsQueryClient(self._credential, endpoint=self.endpoint, **CLIENT_SETTINGS) as client:
                result = client.query_workspace(
                    self.workspace_id, kql, timespan=None, enforce_https=self._enforce_https, raw_response_hook=note
                )
        except HttpResponseError as error:
            raise self._unavailable(f"answered {error.status_code}: {_one_line(error)}", error.status_code) from None
        except (AzureError, OSError) as error:
            raise self._unavailable(f"did not answer: {_one_line(error)}", None) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # An empty answer (204) or a proxy's page: the client trips over the body.
            status = statuses[-1] if statuses else None
            raise self._unavailable(
                f"answered {status}, which the client cannot read: {_one_line(error)}", status
            ) from None
        if isinstance(result, LogsQueryPartialResult):
            raise self._unavailable(f"answered only in part: {result.partial_error}", None)
        if len(result.tables) != 1:
            raise self._unavailable(f"answered {len(result.tables)} tables where one was asked for", None)
        table = result.tables[0]
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise self._unavailable(f"answered without the columns {', '.join(missing)}", None)
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows]

    def _unavailable(self, what: str, status: int | None) -> EvidenceUnavailableError:
        advice = ADVICE.get(status or 0, "see that it runs and can be reached; the gate holds until it answers")
        return EvidenceUnavailableError(f"workspace {self.workspace_id} at {self.endpoint} {what}. {advice}")


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:400]


def _whole(value: object) -> int:
    """Return a count; NaN (which comes as text), null and anything else that is none are a broken answer."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number != int(number):
        raise EvidenceUnavailableError(
            f"the metric store answered {value!r} where a whole number was asked for: see the telemetry's schema"
        )
    return int(number)


def _count_row(row: Mapping[str, Any], slow: Sequence[str]) -> CountRow:
    start = row["Bin"]
    if not isinstance(start, datetime) or not isinstance(row["Before"], bool):
        raise EvidenceUnavailableError(
            f"the metric store answered Bin={start!r}, Before={row['Before']!r}, not a time and a truth"
        )
    counts = Counts(
        requests=_whole(row["Requests"]),
        errors=_whole(row["Errors"]),
        slow=tuple(_whole(row[name]) for name in slow),
    )
    return CountRow(start.astimezone(UTC), str(row["Version"]), row["Before"], counts)
