"""One query in a process of its own, which the kernel ends at its deadline and holds to its memory limit.

The process is a fork of the one that holds the database, so it sees the rows of that moment and opens nothing. DuckDB
neither counts all that it allocates nor looks at an interrupt everywhere: `range(1, 1000000000)` alone took 14 GB and
could not be stopped.
"""

import ctypes
import json
import os
import resource
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NoReturn

from controlled_rollout.telemetry_store.database import Database
from controlled_rollout.telemetry_store.query import run_query
from controlled_rollout.telemetry_store.query_limits import QueryRequest
from controlled_rollout.telemetry_store.responses import ApiResponse, low_memory_response

__all__ = ["answer_and_exit"]

PR_SET_PDEATHSIG: Final = 1
THREADS: Final = 4
# What DuckDB counts; the rest of the limit is for what it does not count, and for the encoded answer.
DUCKDB_MEMORY: Final = "256MB"
# The least that is left above what the forked process has mapped already.
MIN_ADDITIONAL_BYTES: Final = 512 * 2**20
REQUEST_TIMEOUT_S: Final = 10.0
# Queries give way to the router and to uploads.
NICENESS: Final = 2
OUT_OF_MEMORY_SCORE: Final = 1_000

_libc: Final = ctypes.CDLL(None, use_errno=True)


def answer_and_exit(database: Database, channel: Connection, spill: Path) -> NoReturn:
    """Read one `QueryRequest` from a channel, answer it there, and end the process. Call it in a forked child.

    Args:
        database: The database as it was when the process was forked.
        channel: The sender's connection.
        spill: The folder that the query may write to.
    """
    with suppress(BaseException):
        # Ends when the database's process does.
        _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        _end_after(REQUEST_TIMEOUT_S)
        request: QueryRequest = channel.recv()
        _end_after(request.timeout_s)
        # Made now: there may be no memory for it later.
        low_memory = low_memory_response("the query's process may not allocate more")
        try:
            database.restrict_to_queries(spill, threads=THREADS, memory_limit=DUCKDB_MEMORY)
            _limit_memory(request.limits.max_memory_bytes)
            response = run_query(
                database,
                request.query,
                timespan=request.timespan,
                workspace_id=request.workspace_id,
                limits=request.limits,
                with_statistics=request.with_statistics,
            )
        except MemoryError:
            response = low_memory
        channel.send_bytes(_head_of(response))
        channel.send_bytes(response.body)
    # Without closing the database, which is its parent's.
    os._exit(0)


def _end_after(seconds: float) -> None:
    """Let the kernel end this process after so many seconds, whatever it is doing then."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))


def _limit_memory(max_bytes: int) -> None:
    """Limit this process's address space, and make it the first one that a machine without memory kills."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = max(max_bytes, pages * resource.getpagesize() + MIN_ADDITIONAL_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OUT_OF_MEMORY_SCORE), encoding="ascii")


def _head_of(response: ApiResponse) -> bytes:
    """Return a response without its body as JSON."""
    return json.dumps([response.status, dict(response.headers)]).encode()
