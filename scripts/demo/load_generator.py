"""The load generator: a process of its own that sends requests at a steady rate and counts their responses.

The rate does not depend on the responses (an open loop), and a latency counts from the moment when its request was due,
so that a slow server does not hide the requests that wait. No request is repeated.

Run as `python -m scripts.demo.load_generator <settings file>`; SIGTERM ends it, and so does the end of its parent.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from scripts.demo.load_report import LatencyHistogram, LoadReport, VersionReport, write_atomically

VERSION_HEADER: Final = "azureml-model-deployment"
# The router's own responses have no version header.
NO_VERSION: Final = "no version"
WRITE_INTERVAL_S: Final = 0.5
DRAIN_S: Final = 5.0
RECENT_S: Final = 5.0
MAX_CONNECTIONS: Final = 64
MAX_LOGGED_FAILURES: Final = 50


@dataclass(frozen=True)
class LoadSettings:
    """The requests, their destination and their rate.

    Attributes:
        host: The router's host.
        port: The router's port.
        path: The endpoint's path.
        key_file: A file that only its owner can read, with the endpoint's primary key.
        requests_file: One JSON body per line; they are sent in turn.
        rows: How many predictions each body asks for.
        report_file: Receives the counts.
        rate: Requests per second.
        timeout_s: A request without a response after so many seconds has failed.
    """

    host: str
    port: int
    path: str
    key_file: str
    requests_file: str
    rows: int
    report_file: str
    rate: float
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP response.

    Attributes:
        status: The status.
        version: The version in its header.
        body: The body.
        keep_alive: Whether the connection can be used again.
    """

    status: int
    version: str
    body: bytes
    keep_alive: bool


class Connection:
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int) -> "Connection":
        """Open a connection."""
        return cls(*await asyncio.open_connection(host, port))

    async def send(self, request: bytes) -> Response:
        """Send a request and read its response.

        Raises:
            OSError: The connection broke.
            EOFError: It was closed too early.
            ValueError: The response is not HTTP.
        """
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.split("\r\n")
        headers = {}
        for line in lines:
            name, separator, value = line.partition(":")
            if separator:
                headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await self._chunks()
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        return Response(
            status=int(status_line.split(" ", 2)[1]),
            version=headers.get(VERSION_HEADER, NO_VERSION),
            body=body,
            keep_alive=headers.get("connection", "").lower() != "close",
        )

    async def _chunks(self) -> bytes:
        parts = []
        while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
            parts.append(await self._reader.readexactly(size))
            await self._reader.readexactly(2)
        await self._reader.readuntil(b"\r\n")
        return b"".join(parts)

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def response_error(response: Response, rows: int) -> str | None:
    """Return what is wrong with a response; None if it has status 200 and `rows` digits."""
    if response.status != 200:
        return f"status {response.status}"
    try:
        document = json.loads(response.body)
    except ValueError:
        return "not JSON"
    predictions = document.get("predictions") if isinstance(document, dict) else None
    if not isinstance(predictions, list) or len(predictions) != rows:
        return "bad shape"
    if not all(type(digit) is int and 0 <= digit <= 9 for digit in predictions):
        return "bad shape"
    return None


class LoadCounters:
    """Counts of requests by version, since the beginning and in the last seconds.

    Args:
        rate: Requests per second that are sent.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._started = time.time()
        self._started_s = time.monotonic()
        self._requests: dict[str, int] = {}
        self._failures: dict[str, dict[str, int]] = {}
        self._latencies: dict[str, LatencyHistogram] = {}
        self._recent: deque[tuple[float, str, float]] = deque()
        self._behind_s = 0.0

    def count(self, version: str, latency_s: float, error: str | None) -> None:
        """Count one request that has a response or has failed.

        Args:
            version: The version that answered.
            latency_s: Seconds since the request was due.
            error: Why it failed; None if it did not.
        """
        self._requests[version] = self._requests.get(version, 0) + 1
        self._latencies.setdefault(version, LatencyHistogram()).add(latency_s)
        self._recent.append((time.monotonic(), version, latency_s))
        if error:
            failures = self._failures.setdefault(version, {})
            failures[error] = failures.get(error, 0) + 1

    def note_delay(self, seconds: float) -> None:
        """Note how late a request was sent; large values mean that this process was kept from running."""
        self._behind_s = max(self._behind_s, seconds)

    def report(self, *, in_flight: int, finished: bool) -> LoadReport:
        """Return the counts so far."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()
        recent: dict[str, list[float]] = {}
        for _, version, latency_s in self._recent:
            recent.setdefault(version, []).append(latency_s)
        return LoadReport(
            written=time.time(),
            seconds=now - self._started_s,
            started=self._started,
            rate=self._rate,
            in_flight=in_flight,
            behind_ms=1000 * self._behind_s,
            finished=finished,
            versions={
                version: VersionReport(
                    requests=requests,
                    failures=dict(self._failures.get(version, {})),
                    p50_ms=self._latencies[version].quantile_ms(0.5),
                    p95_ms=self._latencies[version].quantile_ms(0.95),
                    recent_requests=len(recent.get(version, ())),
                    recent_p50_ms=_quantile_ms(recent.get(version, []), 0.5),
                    recent_p95_ms=_quantile_ms(recent.get(version, []), 0.95),
                )
                for version, requests in self._requests.items()
            },
        )


def _quantile_ms(latencies_s: list[float], q: float) -> float | None:
    if not latencies_s:
        return None
    return 1000 * sorted(latencies_s)[min(len(latencies_s) - 1, int(q * len(latencies_s)))]


class LoadGenerator:
    """Sends the requests and counts the responses.

    Args:
        settings: What to send, where to and how fast.
    """

    def __init__(self, settings: LoadSettings) -> None:
        self._settings = settings
        self._counters = LoadCounters(settings.rate)
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._logged = 0
        key = Path(settings.key_file).read_text(encoding="ascii").strip()
        head = (
            f"POST {settings.path} HTTP/1.1\r\nHost: {settings.host}:{settings.port}\r\n"
            f"Authorization: Bearer {key}\r\nContent-Type: application/json\r\n"
        )
        bodies = Path(settings.requests_file).read_bytes().splitlines()
        self._requests = [head.encode() + b"Content-Length: %d\r\n\r\n%b" % (len(body), body) for body in bodies]

    def stop(self) -> None:
        """Send no further request; `run` then waits for the responses and writes the last report."""
        self._stopping.set()

    async def run(self) -> None:
        """Send requests until `stop` is called or the parent process ends."""
        writer = asyncio.create_task(self._write_reports())
        parent = os.getppid()
        started_s = time.monotonic()
        number = 0
        while not self._stopping.is_set() and os.getppid() == parent:
            due = started_s + number / self._settings.rate
            if (wait := due - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), wait)
                    break
            self._counters.note_delay(time.monotonic() - due)
            task = asyncio.create_task(self._send(self._requests[number % len(self._requests)], due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)
        writer.cancel()
        # A request without a response is cancelled and counts as failed.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in self._idle))
        self._write(finished=True)

    async def _send(self, request: bytes, due: float) -> None:
        version = NO_VERSION
        error: str | None
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._slots:
                response = await self._exchange(request)
            version = response.version
            error = response_error(response, self._settings.rows)
            detail = response.body[:200].decode(errors="replace")
        except TimeoutError:
            error, detail = "no answer in time", ""
        except asyncio.CancelledError:
            error, detail = "no answer at the end", ""
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as failure:
            error, detail = f"connection: {type(failure).__name__}", str(failure)
        self._counters.count(version, time.monotonic() - due, error)
        if error and self._logged < MAX_LOGGED_FAILURES:
            self._logged += 1
            print(f"{time.strftime('%H:%M:%S')} {version}: {error} {detail}", flush=True)

    async def _exchange(self, request: bytes) -> Response:
        connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = await Connection.open(self._settings.host, self._settings.port)
        try:
            response = await connection.send(request)
        except BaseException:
            connection.abort()
            raise
        if response.keep_alive:
            self._idle.append(connection)
        else:
            await connection.close()
        return response

    async def _write_reports(self) -> None:
        while True:
            self._write(finished=False)
            await asyncio.sleep(WRITE_INTERVAL_S)

    def _write(self, *, finished: bool) -> None:
        report = self._counters.report(in_flight=len(self._tasks), finished=finished)
        write_atomically(Path(self._settings.report_file), report.model_dump_json())


def main(settings_file: str) -> None:
    """Send the load that a settings file describes."""
    settings = LoadSettings(**json.loads(Path(settings_file).read_text(encoding="utf-8")))

    async def run() -> None:
        load = LoadGenerator(settings)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)
        await load.run()

    # Ctrl-C reaches all processes of the terminal; the demo ends this one itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1])
