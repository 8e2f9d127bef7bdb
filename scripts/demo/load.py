"""The load generator: a process of its own that sends requests at a steady rate and counts what callers see.

The rate does not depend on the answers (an open loop), and a latency counts from the moment when its request was due:
a server that stalls cannot hide the requests that it kept from being sent. No request is ever repeated.

Run as `python -m scripts.demo.load <settings file>`; SIGTERM ends it, and so does the end of its parent.
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

from scripts.demo.report import LatencyHistogram, LoadReport, VersionReport, write_atomically

VERSION_HEADER: Final = "azureml-model-deployment"
# Answers without the header come from the router alone.
NO_VERSION: Final = "no version"
WRITE_INTERVAL_S: Final = 0.5
DRAIN_S: Final = 5.0
RECENT_S: Final = 5.0
MOST_CONNECTIONS: Final = 64
LOGGED_FAILURES: Final = 50


@dataclass(frozen=True)
class Settings:
    """What to send, where to, how fast.

    Attributes:
        host, port, path: Where the requests go.
        key_file: A file that only its owner can read, with the endpoint's primary key.
        requests_file: One JSON body per line; they are sent in turn.
        rows: How many predictions each body asks for.
        report_file: Where the counters go.
        rate: Requests per second.
        timeout_s: A request without an answer after so long has failed.
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
class Answer:
    """An HTTP answer."""

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
        """Connect."""
        return cls(*await asyncio.open_connection(host, port))

    async def send(self, request: bytes) -> Answer:
        """Send a request and read its answer.

        Raises:
            OSError, EOFError, ValueError: The connection broke, or what came is not HTTP.
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
        return Answer(
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
        """Close it at once, whatever is on its way."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close it."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


def fault_of(answer: Answer, rows: int) -> str | None:
    """Return what is wrong with an answer, None if nothing is: status 200 and `rows` digits are asked for."""
    if answer.status != 200:
        return f"status {answer.status}"
    try:
        said = json.loads(answer.body)
    except ValueError:
        return "not JSON"
    predictions = said.get("predictions") if isinstance(said, dict) else None
    if not isinstance(predictions, list) or len(predictions) != rows:
        return "bad shape"
    if not all(type(digit) is int and 0 <= digit <= 9 for digit in predictions):
        return "bad shape"
    return None


class Counters:
    """What was seen, by version, since the beginning and lately."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._started = time.time()
        self._begun = time.monotonic()
        self._requests: dict[str, int] = {}
        self._failures: dict[str, dict[str, int]] = {}
        self._latencies: dict[str, LatencyHistogram] = {}
        self._recent: deque[tuple[float, str, float]] = deque()
        self._behind_s = 0.0

    def count(self, version: str, latency_s: float, fault: str | None) -> None:
        """Count one request that has come to its end."""
        self._requests[version] = self._requests.get(version, 0) + 1
        self._latencies.setdefault(version, LatencyHistogram()).add(latency_s)
        self._recent.append((time.monotonic(), version, latency_s))
        if fault:
            kinds = self._failures.setdefault(version, {})
            kinds[fault] = kinds.get(fault, 0) + 1

    def late(self, seconds: float) -> None:
        """Note how late a request was sent: large values mean that this process itself was kept from running."""
        self._behind_s = max(self._behind_s, seconds)

    def report(self, *, in_flight: int, finished: bool) -> LoadReport:
        """Return the counters as they are now."""
        now = time.monotonic()
        while self._recent and self._recent[0][0] < now - RECENT_S:
            self._recent.popleft()
        recent: dict[str, list[float]] = {}
        for _, version, latency_s in self._recent:
            recent.setdefault(version, []).append(latency_s)
        return LoadReport(
            written=time.time(),
            seconds=now - self._begun,
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


class Load:
    """Sends the requests and keeps the counters."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._counters = Counters(settings.rate)
        self._idle: list[Connection] = []
        self._slots = asyncio.Semaphore(MOST_CONNECTIONS)
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
        """Send nothing new, wait for the answers that are due, write the last report."""
        self._stopping.set()

    async def run(self) -> None:
        """Send until stopped."""
        writer = asyncio.create_task(self._write_reports())
        parent = os.getppid()
        begun = time.monotonic()
        number = 0
        while not self._stopping.is_set() and os.getppid() == parent:
            due = begun + number / self._settings.rate
            if (wait := due - time.monotonic()) > 0:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), wait)
                    break
            self._counters.late(time.monotonic() - due)
            task = asyncio.create_task(self._one(self._requests[number % len(self._requests)], due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            number += 1
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=DRAIN_S)
        writer.cancel()
        # A request that is still without an answer has been sent and not served: cancelled, it counts as failed.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in self._idle))
        self._write(finished=True)

    async def _one(self, request: bytes, due: float) -> None:
        version = NO_VERSION
        fault: str | None
        try:
            async with asyncio.timeout(self._settings.timeout_s), self._slots:
                answer = await self._exchange(request)
            version = answer.version
            fault = fault_of(answer, self._settings.rows)
            said = answer.body[:200].decode(errors="replace")
        except TimeoutError:
            fault, said = "no answer in time", ""
        except asyncio.CancelledError:
            fault, said = "no answer at the end", ""
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            fault, said = f"connection: {type(error).__name__}", str(error)
        self._counters.count(version, time.monotonic() - due, fault)
        if fault and self._logged < LOGGED_FAILURES:
            self._logged += 1
            print(f"{time.strftime('%H:%M:%S')} {version}: {fault} {said}", flush=True)

    async def _exchange(self, request: bytes) -> Answer:
        connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = await Connection.open(self._settings.host, self._settings.port)
        try:
            answer = await connection.send(request)
        except BaseException:
            connection.abort()
            raise
        if answer.keep_alive:
            self._idle.append(connection)
        else:
            await connection.close()
        return answer

    async def _write_reports(self) -> None:
        while True:
            self._write(finished=False)
            await asyncio.sleep(WRITE_INTERVAL_S)

    def _write(self, *, finished: bool) -> None:
        report = self._counters.report(in_flight=len(self._tasks), finished=finished)
        write_atomically(Path(self._settings.report_file), report.model_dump_json())


def main(settings_file: str) -> None:
    """Run the load that a settings file describes."""
    settings = Settings(**json.loads(Path(settings_file).read_text(encoding="utf-8")))

    async def run() -> None:
        load = Load(settings)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)
        await load.run()

    # Ctrl-C reaches the whole foreground group: the demo itself says when the load ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(run())


if __name__ == "__main__":
    main(sys.argv[1])
