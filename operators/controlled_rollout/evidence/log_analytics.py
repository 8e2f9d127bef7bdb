"""Evidence from a Log Analytics workspace, Azure's or the local store's: the same client, the same KQL."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from controlled_rollout.addresses import azure_settings_for
from controlled_rollout.errors import EvidenceUnavailableError
from controlled_rollout.evidence import answers, kql
from controlled_rollout.evidence.bins import SPLIT_GUARD
from controlled_rollout.evidence.metric_store import Answer, Arrivals, StoreRequest, ThrottledError, TooMuchError
from controlled_rollout.evidence.query import Evidence, EvidenceQuery
from controlled_rollout.evidence.rows import CountRow, MetricRow, UserRow
from controlled_rollout.evidence.shared import read_shared, shared_reader

__all__ = ["LogAnalyticsEvidence"]

PUBLIC_ENDPOINT: Final = "https://api.loganalytics.io"
# A look that fails is repeated by the gate, and what the store asks for (Retry-After) is kept for all gates together.
CLIENT_SETTINGS: Final[Mapping[str, Any]] = {"retry_total": 0, "connection_timeout": 5, "read_timeout": 200}
# Azure counts queries over 30 s; where it does not say for how long, that is how long.
THROTTLED_FOR: Final = timedelta(seconds=30)
THROTTLED_AT_MOST: Final = timedelta(minutes=10)

# What to do about an answer, by its HTTP status.
ADVICE: Final[Mapping[int, str]] = {
    204: "the workspace holds no data yet: check that the router's telemetry reaches it",
    400: "the query was refused: check that the workspace has the table AppRequests",
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

    async def thresholds(self, requests: Sequence[StoreRequest]) -> Sequence[Answer[tuple[float, ...]]]:
        """Return control's latency quantiles before each rollout; see `MetricStore.thresholds`."""
        rows = await self._query(kql.baseline_query(requests), "Gate", "Bucket", "Requests")
        return answers.histogram_thresholds(rows, requests)

    async def counts(
        self, requests: Sequence[StoreRequest], *, until: datetime, bin_width: timedelta
    ) -> Sequence[Answer[list[CountRow]]]:
        """Return each request's counts by bin and version; see `MetricStore.counts`."""
        query = kql.until_line(until) + kql.counts_query(requests, bin_width=bin_width)
        thresholds = range(max(len(request.thresholds_ms) for request in requests))
        slow = [f"{kind}{number}" for kind in ("Slow", "Scored") for number in thresholds]
        counted = ("Requests", "Represented", "Errors", "Overloaded", "HungUp", "LeftQueue", "Timed", *slow)
        columns = ("Gate", "Version", "Bin", "Before", *counted)
        return answers.count_rows(await self._query(query, *columns), requests, until=until, bin_width=bin_width)

    async def metrics(self, request: StoreRequest, *, until: datetime) -> list[MetricRow]:
        """Return what the author's metrics were by bin and version; see `MetricStore.metrics`."""
        width = request.key.window.bin_width
        metrics: list[MetricRow] = []
        for name, author in request.key.means:
            query = kql.mean_query(author, request, until=until, bin_width=width)
            rows = await self._query_metric(name, query, "Count", "Mean", "Variance")
            metrics += answers.metric_rows(name, rows, request, until=until, is_category=False)
        for name, author in request.key.categories:
            query = kql.category_query(author, request, until=until, bin_width=width)
            rows = await self._query_metric(name, query, "Category", "Count")
            metrics += answers.metric_rows(name, rows, request, until=until, is_category=True)
        return metrics

    async def users(self, request: StoreRequest, *, until: datetime) -> list[UserRow]:
        """Return the users by bin, version and how they were drawn; see `MetricStore.users`."""
        width = request.key.window.bin_width
        slow = [f"Slow{number}" for number in range(len(request.thresholds_ms))]
        query = kql.users_query(request, until=until, bin_width=width, guard=SPLIT_GUARD)
        rows = await self._query(query, "Version", "Bin", "Before", "Above", "Users", "Errors", "Overloaded", *slow)
        return answers.user_rows(rows, request, until=until)

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
    ) -> Mapping[str, Answer[Arrivals]]:
        """Return what arrived lately, by endpoint; see `MetricStore.arrivals`."""
        query = kql.arrivals_query(first=first, until=until, since=since, lag_since=lag_since, bin_width=bin_width)
        return answers.arrivals_of(await self._query(query, "Endpoint", "Oldest", "LateMs"))

    def queries(self, request: StoreRequest) -> tuple[str, ...]:
        """Return the queries that give the same numbers for this gate alone; see `MetricStore.queries`."""
        width = request.key.window.bin_width
        counts = kql.counts_query([request], bin_width=width)
        means = [kql.mean_query(author, request, until=None, bin_width=width) for _, author in request.key.means]
        categories = [
            kql.category_query(author, request, until=None, bin_width=width) for _, author in request.key.categories
        ]
        baseline = [kql.baseline_query([request])] if request.key.quantiles else []
        users = (
            []
            if request.key.steps is None
            else [kql.users_query(request, until=None, bin_width=width, guard=SPLIT_GUARD)]
        )
        return (*baseline, counts, *means, *categories, *users)

    async def newest(self, endpoint: str, *, now: datetime | None = None) -> datetime | None:
        """Return the time of the endpoint's newest request of the last day; None if there is none.

        Raises:
            EvidenceUnavailableError: The store did not answer.
        """
        end = (now or datetime.now(UTC)) + timedelta(minutes=1)
        rows = await self._query(kql.newest_query(endpoint, start=end - timedelta(days=1), end=end), "Newest")
        return answers.newest_of(rows)

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
            with LogsQueryClient(self._credential, endpoint=self.endpoint, **self._client_settings()) as client:
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
        except EvidenceUnavailableError:
            raise
        except Exception as error:
            # An empty answer (204), a proxy's page, numbers and times that are none: the client cannot read the body.
            status = responses[-1].status_code if responses else None
            raise self._unavailable_error(
                f"answered {status}, which the client cannot read: {_one_line(error)}", status
            ) from error
        if isinstance(result, LogsQueryPartialResult):
            raise TooMuchError(str(self._unavailable_error(f"answered only in part: {result.partial_error}", None)))
        return self._rows_of(result, columns)

    def _client_settings(self) -> dict[str, Any]:
        """Return the settings of the Azure client; what is meant for this machine goes through no proxy."""
        return {**CLIENT_SETTINGS, **azure_settings_for(self.endpoint)}

    def _rows_of(self, result: Any, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of a result's only table by column name; raise if the table has another shape."""
        if len(result.tables) != 1:
            raise self._unavailable_error(f"answered {len(result.tables)} tables instead of one", None)
        table = result.tables[0]
        names = list(table.columns)
        if missing := [column for column in columns if names.count(column) != 1]:
            raise self._unavailable_error(f"answered without the columns {', '.join(missing)}, each once", None)
        rows = [list(row) for row in table.rows]
        if odd := next((row for row in rows if len(row) != len(names)), None):
            raise self._unavailable_error(f"answered a row of {len(odd)} values for {len(names)} columns", None)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def _error_for_status(self, status: int | None, text: str, response: Any) -> EvidenceUnavailableError:
        """Return the error for an HTTP status other than success; its type says whether to wait or to query less."""
        error = self._unavailable_error(f"answered {status}: {text}", status)
        if status in (429, 503):
            return ThrottledError(str(error), _retry_after(getattr(response, "headers", None) or {}, status))
        return TooMuchError(str(error)) if status in (408, 504) else error

    def _unavailable_error(self, what: str, status: int | None) -> EvidenceUnavailableError:
        """Return the error "workspace … at … <what>", with advice for the HTTP status."""
        advice = ADVICE.get(status or 0, "check that it runs and can be reached; the gate holds until it answers")
        return EvidenceUnavailableError(f"workspace {self.workspace_id} at {self.endpoint} {what}. {advice}")


def _retry_after(headers: Mapping[str, str], status: int) -> timedelta:
    """Return how long the store accepts no query, from the header `Retry-After` in seconds or as a date."""
    header = headers.get("Retry-After", "")
    wait = THROTTLED_FOR if status == 429 else timedelta(0)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        wait = (
            timedelta(seconds=float(header))
            if header[:1].isdigit()
            else parsedate_to_datetime(header) - datetime.now(UTC)
        )
    return min(max(wait, timedelta(0)), THROTTLED_AT_MOST)


def _one_line(error: Exception) -> str:
    """Return an error's message on one line, cut to 400 characters."""
    return " ".join((str(error) or type(error).__name__).split())[:400]
