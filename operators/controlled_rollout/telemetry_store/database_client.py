"""The database as the server's process sees it: another process, which writes rows and runs queries."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from controlled_rollout.telemetry_store.database_errors import DatabaseError, MachineError
from controlled_rollout.telemetry_store.query_limits import QueryRequest
from controlled_rollout.telemetry_store.responses import (
    ApiResponse,
    error_response,
    low_memory_response,
    timeout_response,
)
from controlled_rollout.telemetry_store.schema import Row

__all__ = ["DatabaseClient"]

END_TIMEOUT_S: Final = 15.0
# A query that has run for so long is a long one, and only so many of those run at once.
LONG_QUERY_S: Final = 5.0
MAX_LONG_QUERIES: Final = 3
STOP_INTERVAL_S: Final = 0.25


class DatabaseClient:
    """The process of the database, and the connections to it.

    The rows are written by one thread; queries come from many.

    Args:
        data: The folder of the database.
    """

    def __init__(self, data: Path) -> None:
        commands, theirs = (Connection(end.detach()) for end in socket.socketpair())
        self._commands = commands
        self._queries, their_queries = socket.socketpair()
        descriptors = (theirs.fileno(), their_queries.fileno())
        module = "controlled_rollout.telemetry_store.database_process"
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", module, str(data), *map(str, descriptors)], pass_fds=descriptors
        )
        theirs.close()
        their_queries.close()
        # One command at a time; `close` waits for a running one.
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._long_queries = threading.BoundedSemaphore(MAX_LONG_QUERIES)
        self._ending = False

    def wait_until_open(self) -> None:
        """Wait until the database is open.

        Raises:
            DatabaseError: It cannot be opened.
        """
        try:
            problem: str = self._commands.recv()
        except (EOFError, OSError) as error:
            raise DatabaseError(f"the database's process ended at its start, code {self._process.wait()}") from error
        if problem:
            raise DatabaseError(problem)

    @property
    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def insert(self, rows: Mapping[str, Sequence[Row]]) -> None:
        """Append rows to their tables in one transaction; they are on disk when this returns.

        Args:
            rows: Rows by table.

        Raises:
            MachineError: The machine is short of something; nothing was written.
            RowsRefusedError: The database refuses a row; nothing was written.
        """
        self._call("insert", rows)

    def delete_before(self, moment: datetime) -> int:
        """Delete one chunk of rows older than `moment`; return the number of deleted rows, 0 if none is left."""
        return int(self._call("delete_before", moment))

    def age_limit_for(self, max_bytes: int) -> datetime | None:
        """Return the time before which rows must be deleted so that the data fits in `max_bytes`; None if it fits."""
        limit: datetime | None = self._call("age_limit_for", max_bytes)
        return limit

    def checkpoint(self) -> None:
        """Have the space of deleted rows freed as soon as no query runs."""
        self._call("checkpoint")

    def _call(self, name: str, *arguments: object) -> Any:
        """Run a method of the database in its process; return its result.

        Raises:
            DatabaseError: It failed.
            MachineError: The process has ended.
        """
        with self._lock:
            try:
                self._commands.send((name, arguments))
                succeeded, result = self._commands.recv()
            except (EOFError, OSError) as error:
                raise MachineError("the database's process has ended") from error
        if not succeeded:
            raise result
        return result

    def query(self, request: QueryRequest, *, stop: threading.Event) -> ApiResponse:
        """Run a query in a process of its own, and wait for its answer. Every failure becomes an error response.

        Args:
            request: The query.
            stop: Set once nobody waits for the answer any more.
        """
        timeout_s = request.timeout_s
        deadline = time.monotonic() + timeout_s
        ours, theirs = socket.socketpair()
        channel = Connection(ours.detach())
        is_long = False
        try:
            with theirs, self._sending:
                socket.send_fds(self._queries, [b"q"], [theirs.fileno()])
            channel.send(request)
            is_answered = _poll(channel, min(LONG_QUERY_S, timeout_s), stop)
            if not is_answered and timeout_s > LONG_QUERY_S:
                is_long = self._long_queries.acquire(blocking=False)
                if not is_long:
                    message = f"{MAX_LONG_QUERIES} queries run for more than {LONG_QUERY_S:g} s already: try later"
                    return error_response(429, "ThrottledError", message)
                is_answered = _poll(channel, deadline - time.monotonic(), stop)
            if not is_answered:
                return timeout_response(timeout_s)
            return self._receive(channel)
        except (EOFError, OSError):
            if self._ending or not self.is_alive:
                return error_response(503, "ServiceUnavailable", "the store is ending")
            if time.monotonic() >= deadline:
                return timeout_response(timeout_s)
            return low_memory_response("the query's process was ended")
        finally:
            if is_long:
                self._long_queries.release()
            # Ends the query if it still runs.
            channel.close()

    def _receive(self, channel: Connection) -> ApiResponse:
        """Receive the answer of a query's process."""
        status, headers = json.loads(channel.recv_bytes())
        return ApiResponse(status, channel.recv_bytes(), headers)

    def wait(self) -> int:
        """Wait until the process has ended; return its exit code."""
        return self._process.wait()

    def end_queries(self) -> None:
        """End all running queries; their callers are answered 503."""
        self._ending = True
        with suppress(DatabaseError):
            self._call("end_queries")

    def close(self) -> int:
        """Write DuckDB's log into the file and end the process; return its exit code."""
        self._ending = True
        with self._lock:
            self._commands.close()
            self._queries.close()
        try:
            return self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _poll(channel: Connection, seconds: float, stop: threading.Event) -> bool:
    """Wait until a channel has something to read or is closed; return False after so many seconds, or once stopped."""
    deadline = time.monotonic() + seconds
    while not stop.is_set():
        left = deadline - time.monotonic()
        if channel.poll(max(0.0, min(STOP_INTERVAL_S, left))):
            return True
        if left <= 0:
            return False
    return False
