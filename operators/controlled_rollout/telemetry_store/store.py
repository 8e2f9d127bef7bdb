"""The telemetry store without its HTTP interface: accepts rows, answers queries."""

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from controlled_rollout.telemetry_store.database_client import DatabaseClient
from controlled_rollout.telemetry_store.query_limits import QueryLimits, QueryRequest
from controlled_rollout.telemetry_store.responses import ApiResponse, error_response
from controlled_rollout.telemetry_store.schema import Row
from controlled_rollout.telemetry_store.writer import NotWrittenError, Writer

__all__ = ["TelemetryStore"]

# Azure runs as many queries of one caller at once; beyond so many that wait, callers are told to come later.
MAX_RUNNING_QUERIES: Final = 5
MAX_UNANSWERED_QUERIES: Final = 100
# The part of a query's timeout, and the most seconds of it, that are left for its answer.
ANSWER_PART: Final = 0.1
MAX_ANSWER_S: Final = 0.5


class TelemetryStore:
    """Accepts the rows of uploads and answers queries.

    Args:
        database: The rows on disk.
        writer: Writes accepted rows to the database.
        workspace_id: The Log Analytics workspace that the store stands for.

    Attributes:
        limits: The limits of one query.
    """

    def __init__(self, database: DatabaseClient, writer: Writer, workspace_id: str) -> None:
        self.workspace_id = workspace_id
        self.limits = QueryLimits()
        self._database = database
        self._writer = writer
        self._threads = ThreadPoolExecutor(MAX_RUNNING_QUERIES, "query")
        self._slots = asyncio.Semaphore(MAX_RUNNING_QUERIES)
        self._unanswered = 0

    def accept(self, rows: Mapping[str, Sequence[Row]], size: int, *, may_fill: bool = True) -> None:
        """Hand the rows of one upload to the writer. Every query that starts later sees them.

        Args:
            rows: Rows by table.
            size: The upload's size in memory, in bytes.
            may_fill: Whether it may take the half of the buffer that is kept for the router.

        Raises:
            BufferFullError: Too many rows wait to be written; none was accepted.
        """
        self._writer.add(rows, size, may_fill=may_fill)

    async def query(self, body: object, prefer: str) -> ApiResponse:
        """Run a KQL query from a request's JSON body and its `Prefer` header, without blocking the event loop.

        Args:
            body: The request's JSON document, with `query`, `timespan` and `workspaces`.
            prefer: The header Prefer, which may hold `wait=<seconds>` and `include-statistics=true`.
        """
        if not isinstance(body, dict):
            return error_response(400, "BadArgumentError", "the body is not a JSON object with a query")
        for workspace in body.get("workspaces") or ():
            if not self.is_workspace(workspace):
                return self.unknown_workspace_response(workspace)
        preferences = dict(pair.strip().lower().partition("=")[::2] for pair in prefer.split(","))
        wait = preferences.get("wait", "")
        timeout_s = min(float(wait), self.limits.max_timeout_s) if wait.isdecimal() else self.limits.timeout_s
        timeout_s -= min(MAX_ANSWER_S, timeout_s * ANSWER_PART)
        deadline = time.monotonic() + timeout_s
        if self._unanswered >= MAX_UNANSWERED_QUERIES:
            return error_response(
                429, "ThrottledError", f"{self._unanswered} queries are running or waiting: try later"
            )

        stop = threading.Event()

        def run_in_thread() -> ApiResponse:
            """Run the query in a worker thread."""
            return self.run_query_blocking(
                body.get("query"),
                body.get("timespan"),
                timeout_s=max(0.0, deadline - time.monotonic()),
                with_statistics=preferences.get("include-statistics") == "true",
                stop=stop,
            )

        self._unanswered += 1
        try:
            async with asyncio.timeout(timeout_s):
                await self._slots.acquire()
            try:
                query = asyncio.get_running_loop().run_in_executor(self._threads, run_in_thread)
                try:
                    return await asyncio.shield(query)
                except asyncio.CancelledError:
                    stop.set()
                    # Its place is free once its process has been told to end.
                    await asyncio.wait({query})
                    raise
            finally:
                self._slots.release()
        except TimeoutError:
            message = f"{MAX_RUNNING_QUERIES} queries run, and none has ended for {timeout_s:g} s"
            return error_response(429, "ThrottledError", message)
        finally:
            self._unanswered -= 1

    def run_query_blocking(
        self, query: object, timespan: object, *, timeout_s: float, with_statistics: bool, stop: threading.Event
    ) -> ApiResponse:
        """Run one KQL query over all rows accepted before this call. Blocks the calling thread.

        Args:
            query: The KQL, if it is text.
            timespan: An ISO 8601 duration or interval laid over TimeGenerated; None for all rows.
            timeout_s: After so many seconds the query is stopped.
            with_statistics: Whether the response tells how long the query took.
            stop: Set once nobody waits for the answer any more.
        """
        deadline = time.monotonic() + timeout_s
        try:
            self._writer.flush(timeout_s)
        except NotWrittenError as error:
            return error_response(503, "ServiceUnavailable", str(error))
        request = QueryRequest(
            query, timespan, self.workspace_id, self.limits, max(0.0, deadline - time.monotonic()), with_statistics
        )
        return self._database.query(request, stop=stop)

    def is_workspace(self, workspace_id: object) -> bool:
        """Whether `workspace_id` is the store's own Log Analytics workspace id."""
        return str(workspace_id).lower() == self.workspace_id

    def unknown_workspace_response(self, workspace_id: object) -> ApiResponse:
        """Return the HTTP error for a query whose Log Analytics workspace id is not this store's."""
        return error_response(404, "WorkspaceNotFoundError", f"The workspace {workspace_id!r} could not be found")

    def end_queries(self) -> None:
        """End all queries, both queued and running."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._database.end_queries()
