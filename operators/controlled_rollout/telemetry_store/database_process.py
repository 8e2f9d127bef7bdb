"""The process that holds the database: it writes rows, and forks itself for each query.

It has one thread and does one thing at a time, so that each fork is a consistent copy. DuckDB's log is written into the
file only while no query runs, because a query reads the file as it was when it was forked.

Run as `python -m controlled_rollout.telemetry_store.database_process <data folder> <commands> <queries>`; the last two
are the numbers of inherited sockets.
"""

import logging
import os
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import duckdb  # noqa: TID253 - runs only inside the store's own processes

from controlled_rollout.telemetry_store import query_process
from controlled_rollout.telemetry_store.database import SPILL_FOLDER, Database
from controlled_rollout.telemetry_store.database_errors import DatabaseError
from controlled_rollout.telemetry_store.kql import QueryRefusedError, translate

__all__ = ["run"]

log = logging.getLogger(__name__)

# The process of a store that was killed may need a moment to end.
OPEN_TIMEOUT_S: Final = 5.0
LOG_TO_WRITE_BYTES: Final = 64 * 2**20
# Above this, queries are ended so that the log can be written.
LOG_MAX_BYTES: Final = 512 * 2**20
# The parser is fast only for what it has seen before; what is translated here is known to every fork.
FIRST_QUERY: Final = (
    "let a = AppRequests | where TimeGenerated between (datetime(2026-01-01) .. 1h) and tostring(Properties.e) == 'x'; "
    "union a, AppDependencies | extend v = tostring(Properties.v), b = bin(TimeGenerated, 1m), t = ingestion_time() "
    "| where v in ('p', 'q') and not(Success) or toint(ResultCode) >= 500 "
    "| summarize n = sum(ItemCount), s = sumif(ItemCount, DurationMs > 17.5 * 2), m = max(t) by v, b | order by b asc"
)


@dataclass(frozen=True, slots=True)
class Query:
    """A running query.

    Attributes:
        pid: Its process.
        process: The descriptor of that process; readable once it has ended.
        channel: Where it sends its answer; hung up once nobody waits for that.
        spill: The folder that it may write to.
    """

    pid: int
    process: int
    channel: Connection
    spill: Path


class DatabaseProcess:
    """The loop of the process.

    Args:
        database: The open database.
        commands: Brings what the writer asks, one at a time: a method's name and its arguments.
        queries: Brings the connections of queries, each as a descriptor.
        spill: The folder in which each query gets one.
    """

    def __init__(self, database: Database, commands: Connection, queries: socket.socket, spill: Path) -> None:
        self._database = database
        self._commands = commands
        self._requests = queries
        self._spill = spill
        self._running: dict[int, Query] = {}
        self._poll = select.poll()
        self._poll.register(commands, select.POLLIN)
        self._poll.register(queries, select.POLLIN)
        self._methods: dict[str, Callable[..., Any]] = {
            "insert": database.insert,
            "delete_before": database.delete_before,
            "age_limit_for": database.age_limit_for,
            "checkpoint": self._want_checkpoint,
            "end_queries": self._end_queries,
        }
        self._checkpoint_wanted = False

    def run(self) -> None:
        """Serve until the other end of the commands is closed; then end all queries."""
        try:
            while True:
                for descriptor, event in self._poll.poll():
                    if descriptor == self._commands.fileno():
                        self._run_command()
                    elif descriptor == self._requests.fileno():
                        self._start_query()
                    else:
                        self._see_to_query(descriptor, event)
                self._write_log()
        except (EOFError, ConnectionError):
            log.debug("the store has ended")
        finally:
            self._end_queries()

    def _run_command(self) -> None:
        """Run one method of the database and send back what it returned or raised."""
        name, arguments = self._commands.recv()
        try:
            reply = (True, self._methods[name](*arguments))
        except DatabaseError as error:
            reply = (False, error)
        except duckdb.Error as error:
            reply = (False, DatabaseError(str(error)))
        self._commands.send(reply)

    def _start_query(self) -> None:
        """Fork a process for the query whose connection comes in."""
        _, descriptors, _, _ = socket.recv_fds(self._requests, 1, 1)
        if not descriptors:
            raise EOFError
        channel = Connection(descriptors[0])
        pid = os.fork()
        if pid == 0:
            self._commands.close()
            self._requests.close()
            for query in self._running.values():
                query.channel.close()
            query_process.answer_and_exit(self._database, channel, self._spill / str(os.getpid()))
        query = Query(pid, os.pidfd_open(pid), channel, self._spill / str(pid))
        self._running |= {query.process: query, channel.fileno(): query}
        self._poll.register(query.process, select.POLLIN)
        # Not readable: only whether the other end was closed.
        self._poll.register(channel, 0)

    def _see_to_query(self, descriptor: int, event: int) -> None:
        """End a query for whose answer nobody waits, and clear up after one that has ended."""
        query = self._running.get(descriptor)
        if query is None:
            return
        if descriptor != query.process:
            os.kill(query.pid, signal.SIGKILL)
        os.waitpid(query.pid, 0)
        self._poll.unregister(query.process)
        self._poll.unregister(query.channel)
        del self._running[query.process], self._running[query.channel.fileno()]
        os.close(query.process)
        query.channel.close()
        shutil.rmtree(query.spill, ignore_errors=True)

    def _end_queries(self) -> None:
        """End all running queries."""
        for query in set(self._running.values()):
            self._see_to_query(query.channel.fileno(), select.POLLHUP)

    def _want_checkpoint(self) -> None:
        """Have the log written as soon as no query runs."""
        self._checkpoint_wanted = True

    def _write_log(self) -> None:
        """Write the database's log into its file if it is due and no query runs; end queries if it has become large."""
        size = self._database.log_bytes()
        if not self._checkpoint_wanted and size < LOG_TO_WRITE_BYTES:
            return
        if size >= LOG_MAX_BYTES and self._running:
            log.warning("%d queries are ended to write %d bytes of log", len(self._running) // 2, size)
            self._end_queries()
        if not self._running:
            self._checkpoint_wanted = False
            try:
                self._database.checkpoint()
            except duckdb.Error as error:
                log.error("the log cannot be written into the file: %s", error)


def run(data: Path, commands: Connection, queries: socket.socket) -> int:
    """Open the database, tell so, and serve until the other end is closed; return the exit code."""
    # A signal to the whole group is for the store, which ends this process when all rows are written.
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    spill = data / SPILL_FOLDER
    shutil.rmtree(spill, ignore_errors=True)
    try:
        database = _open(data)
    except DatabaseError as error:
        commands.send(str(error))
        return 1
    commands.send("")
    with suppress(QueryRefusedError):
        translate(FIRST_QUERY)
    DatabaseProcess(database, commands, queries, spill).run()
    database.close()
    shutil.rmtree(spill, ignore_errors=True)
    return 0


def _open(data: Path) -> Database:
    """Open the database, and wait for the end of a process that still has it open."""
    deadline = time.monotonic() + OPEN_TIMEOUT_S
    while True:
        try:
            return Database(data)
        except DatabaseError as error:
            if "Conflicting lock" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    folder, commands_descriptor, queries_descriptor = sys.argv[1:]
    sys.exit(run(Path(folder), Connection(int(commands_descriptor)), socket.socket(fileno=int(queries_descriptor))))
