"""Evidence from a Log Analytics workspace, Azure's or the local store's: the same client, the same KQL."""

import asyncio
import contextlib
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import kql
from controlled_rollout.evidence.bins import thresholds
from controlled_rollout.evidence.metric_store import Arrivals, StoreRequest, ThrottledError, TooMuchError
from controlled_rollout.evidence.query import Evidence, EvidenceQuery
from controlled_rollout.evidence.rows import CountRow, MetricRow
from controlled_rollout.evidence.shared import read_shared, shared_reader
from controlled_rollout.gate import Counts, Moments

__all__ = ["LogAnalyticsEvidence"]

PUBLIC_ENDPOINT: Final = "https://api.loganalytics.io"
# A look that fails is repeated by the gate, and what the store asks for (Retry-After) is kept for all gates together.
CLIENT_SETTINGS: Final[Mapping[str, Any]] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 200}
# Azure counts queries over 30 s; where it does not say for how long, that is how long.
THROTTLED_FOR: Final = timedelta(seconds=30)
THROTTLED_AT_MOST: Final = timedelta(minutes=10)

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


class LogAnalyticsEvidence:
    """Evidence from the table AppRequests of a Log Analytics workspace.

    Args:
        endpoint: Base URL of the query API; None for Azure's public one.
        workspace_id: The workspace's id.
        credential: An `azure.core.credentials.TokenCredential`; gates with equal ones share what is read.
        enforce_https: False only for a store on this machine.
    """

    def __init__(self, *, endpoint: str | None, workspace_id: str, credential: Any, enforce_https: bool = True) -> None:
        """Store the settings; nothing is connected before the first query."""
        self.endpoint = (endpoint or PUBLIC_ENDPOINT).rstrip("/")
        self.workspace_id = workspace_id
        self._credential = credential
        self._enforce_https = enforce_https

    def __repr__(self) -> str:
        """Return the store's address and workspace id, without the credential."""
        return f"LogAnalyticsEvidence(endpoint={self.endpoint!r}, workspace_id={self.workspace_id!r})"

    async def read(self, query: EvidenceQuery) -> Evidence:
        """Read the closed bins of a rollout; see `EvidenceSource.read`.

        Control's quantiles come first: they set what the counts call slow. With fewer than 100 requests before the
        rollout there are none, and latency is not counted.
        """
        reader = shared_reader((type(self), self.endpoint, self.workspace_id, self._credential), self)
        return await read_shared(reader, self, query)

    async def thresholds(self, requests: Sequence[StoreRequest]) -> list[tuple[float, ...]]:
        """Return control's latency quantiles before each rollout; see `MetricStore.thresholds`."""
        histograms: list[dict[int, int]] = [{} for _ in requests]
        for row in await self._query(kql.baseline_query(requests), "Gate", "Bucket", "Requests"):
            histograms[_checked_whole_number(row["Gate"])][_checked_whole_number(row["Bucket"])] = (
                _checked_whole_number(row["Requests"])
            )
        return [
            thresholds(histogram, request.key.quantiles)
            for request, histogram in zip(requests, histograms, strict=True)
        ]

    async def counts(
        self, requests: Sequence[StoreRequest], *, until: datetime, bin_width: timedelta
    ) -> list[list[CountRow]]:
        """Return each request's counts by bin and version; see `MetricStore.counts`."""
        query = kql.until_line(until) + kql.counts_query(requests, bin_width=bin_width)
        slow = [f"Slow{number}" for number in range(max(len(request.thresholds_ms) for request in requests))]
        counts: list[list[CountRow]] = [[] for _ in requests]
        for row in await self._query(query, "Gate", "Version", "Bin", "Before", "Requests", "Errors", *slow):
            number = _checked_whole_number(row["Gate"])
            counts[number].append(_count_row(row, slow[: len(requests[number].thresholds_ms)]))
        return counts

    async def metrics(self, request: StoreRequest, *, until: datetime) -> list[MetricRow]:
        """Return what the author's metrics were by bin and version; see `MetricStore.metrics`."""
        metrics: list[MetricRow] = []
        for name, author in request.key.means:
            query = kql.mean_query(author, request, until=until, bin_width=request.key.window.bin_width)
            rows = await self._query_metric(name, query, "Count", "Mean", "Variance")
            metrics += [_mean_row(name, row) for row in rows]
        for name, author in request.key.categories:
            query = kql.category_query(author, request, until=until, bin_width=request.key.window.bin_width)
            metrics += _category_rows(name, await self._query_metric(name, query, "Category", "Count"))
        return metrics

    async def _query_metric(self, metric: str, query: str, *columns: str) -> list[dict[str, Any]]:
        """Run the query of one of the author's metrics; an error names the metric."""
        try:
            return await self._query(query, "Version", "Bin", "Before", *columns)
        except ThrottledError:
            raise
        except EvidenceUnavailableError as error:
            raise EvidenceUnavailableError(f"the query of the metric {metric!r}: {error}") from error

    async def arrivals(
        self, *, first: datetime, until: datetime, since: datetime, lag_since: datetime, bin_width: timedelta
    ) -> Mapping[str, Arrivals]:
        """Return what arrived lately, by endpoint; see `MetricStore.arrivals`."""
        query = kql.arrivals_query(first=first, until=until, since=since, lag_since=lag_since, bin_width=bin_width)
        rows = await self._query(query, "Endpoint", "Oldest", "LateMs")
        return {str(row["Endpoint"]): _arrivals(row) for row in rows}

    def queries(self, request: StoreRequest) -> tuple[str, ...]:
        """Return the queries that give the same numbers for this gate alone; see `MetricStore.queries`."""
        width = request.key.window.bin_width
        counts = kql.counts_query([request], bin_width=width)
        means = [kql.mean_query(author, request, until=None, bin_width=width) for _, author in request.key.means]
        categories = [
            kql.category_query(author, request, until=None, bin_width=width) for _, author in request.key.categories
        ]
        baseline = [kql.baseline_query([request])] if request.key.quantiles else []
        return (*baseline, counts, *means, *categories)

    async def newest(self, endpoint: str, *, now: datetime | None = None) -> datetime | None:
        """Return the time of the endpoint's newest request of the last day; None if there is none.

        Raises:
            EvidenceUnavailableError: The store did not answer.
        """
        end = (now or datetime.now(UTC)) + timedelta(minutes=1)
        rows = await self._query(kql.newest_query(endpoint, start=end - timedelta(days=1), end=end), "Newest")
        moment = rows[0]["Newest"] if rows else None
        return moment.astimezone(UTC) if isinstance(moment, datetime) else None

    async def _query(self, text: str, *columns: str) -> list[dict[str, Any]]:
        """Run one KQL query in a thread and return its rows; raise for anything but a complete answer.

        The client is the synchronous one in a thread: the asynchronous one would need an HTTP library of its own.
        """
        return await asyncio.to_thread(self._query_blocking, text, columns)

    def _query_blocking(self, text: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Run one KQL query, blocking, and return its rows by column name; raise for anything but a complete answer."""
        try:
            from azure.core.exceptions import AzureError, HttpResponseError
            from azure.monitor.query import LogsQueryClient, LogsQueryPartialResult
        except ImportError as error:
            raise EvidenceUnavailableError(
                f"reading {self.endpoint} needs a package that is missing ({error.name}): "
                "install airflow-provider-controlled-rollout with the extra azure or local"
            ) from error
        responses: list[Any] = []

        def keep_response(response: Any) -> None:
            """Keep the HTTP response, whose status is needed if the client cannot read the body."""
            responses.append(response.http_response)

        try:
            with LogsQueryClient(self._credential, endpoint=self.endpoint, **CLIENT_SETTINGS) as client:
                result = client.query_workspace(
                    self.workspace_id,
                    text,
                    timespan=None,
                    enforce_https=self._enforce_https,
                    raw_response_hook=keep_response,
                )
        except HttpResponseError as error:
            raise self._error_for_status(error.status_code, _one_line(error), error.response) from error
        except (AzureError, OSError) as error:
            raise self._unavailable_error(f"did not answer: {_one_line(error)}", None) from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # An empty answer (204) or a proxy's page: the client cannot read the body.
            status = responses[-1].status_code if responses else None
            raise self._unavailable_error(
                f"answered {status}, which the client cannot read: {_one_line(error)}", status
            ) from error
        if isinstance(result, LogsQueryPartialResult):
            raise TooMuchError(str(self._unavailable_error(f"answered only in part: {result.partial_error}", None)))
        if len(result.tables) != 1:
            raise self._unavailable_error(f"answered {len(result.tables)} tables instead of one", None)
        table = result.tables[0]
        missing = [column for column in columns if column not in table.columns]
        if missing:
            raise self._unavailable_error(f"answered without the columns {', '.join(missing)}", None)
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows]

    def _error_for_status(self, status: int | None, text: str, response: Any) -> EvidenceUnavailableError:
        """Return the error for an HTTP status other than success; its type says whether to wait or to query less."""
        error = self._unavailable_error(f"answered {status}: {text}", status)
        if status in (429, 503):
            return ThrottledError(str(error), _retry_after(getattr(response, "headers", None) or {}, status))
        return TooMuchError(str(error)) if status in (408, 504) else error

    def _unavailable_error(self, what: str, status: int | None) -> EvidenceUnavailableError:
        """Return the error "workspace … at … <what>", with advice for the HTTP status."""
        advice = ADVICE.get(status or 0, "see that it runs and can be reached; the gate holds until it answers")
        return EvidenceUnavailableError(f"workspace {self.workspace_id} at {self.endpoint} {what}. {advice}")


def _retry_after(headers: Mapping[str, str], status: int) -> timedelta:
    """Return how long the store accepts no query, from the header `Retry-After` in seconds or as a date."""
    header = headers.get("Retry-After", "")
    wait = THROTTLED_FOR if status == 429 else timedelta(0)
    with contextlib.suppress(ValueError, TypeError):
        wait = (
            timedelta(seconds=float(header))
            if header[:1].isdigit()
            else parsedate_to_datetime(header) - datetime.now(UTC)
        )
    return min(max(wait, timedelta(0)), THROTTLED_AT_MOST)


def _one_line(error: Exception) -> str:
    """Return an error's message on one line, cut to 400 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:400]


def _checked_whole_number(value: object) -> int:
    """Return a value of the answer as an integer; raise EvidenceUnavailableError for NaN, null and others."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number) or number != int(number):
        raise EvidenceUnavailableError(
            f"the metric store answered {value!r} instead of a whole number: check the telemetry's schema"
        )
    return int(number)


def _bin_key(row: Mapping[str, Any]) -> tuple[datetime, str, bool]:
    """Return a row's bin start, version, and whether the bin lies before the rollout's start."""
    start = row["Bin"]
    if not isinstance(start, datetime) or not isinstance(row["Before"], bool):
        raise EvidenceUnavailableError(
            f"the metric store answered Bin={start!r}, Before={row['Before']!r}, not a time and a boolean"
        )
    return start.astimezone(UTC), str(row["Version"]), row["Before"]


def _arrivals(row: Mapping[str, Any]) -> Arrivals:
    """Return a row's oldest time and lag of recently ingested requests."""
    oldest, late_ms = row["Oldest"], row["LateMs"]
    lag = None
    # NaN comes as text where no row was counted.
    if isinstance(late_ms, int | float) and math.isfinite(late_ms):
        lag = timedelta(milliseconds=max(0.0, late_ms))
    return Arrivals(oldest.astimezone(UTC) if isinstance(oldest, datetime) else None, lag)


def _count_row(row: Mapping[str, Any], slow: Sequence[str]) -> CountRow:
    """Return a row's requests, errors and slow requests of one version in one bin."""
    counts = Counts(
        requests=_checked_whole_number(row["Requests"]),
        errors=_checked_whole_number(row["Errors"]),
        slow=tuple(_checked_whole_number(row[name]) for name in slow),
    )
    return CountRow(*_bin_key(row), counts)


def _mean_row(name: str, row: Mapping[str, Any]) -> MetricRow:
    """Return a row's values of a numeric metric: count, mean and sample variance of one version in one bin."""
    count = _checked_whole_number(row["Count"])
    # A single value has no sample variance: null, or NaN as text.
    variance = _checked_float(name, row["Variance"]) if count > 1 else 0.0
    return MetricRow(
        *_bin_key(row), name, Moments(count, _checked_float(name, row["Mean"]) if count else 0.0, variance)
    )


def _category_rows(name: str, rows: Sequence[Mapping[str, Any]]) -> list[MetricRow]:
    """Join the rows per category into one row per version and bin, with the count of each category."""
    tallies: dict[tuple[datetime, str, bool], dict[str, int]] = {}
    for row in sorted(rows, key=lambda row: str(row["Category"])):
        tallies.setdefault(_bin_key(row), {})[str(row["Category"])] = _checked_whole_number(row["Count"])
    return [MetricRow(*key, name, tally) for key, tally in tallies.items()]


def _checked_float(name: str, value: object) -> float:
    """Return a metric's value as a float; raise EvidenceUnavailableError unless it is a finite number."""
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number):
        raise EvidenceUnavailableError(
            f"the query of the metric {name!r} answered {value!r} instead of a finite number: every Value in it has "
            "to be one"
        )
    return number
