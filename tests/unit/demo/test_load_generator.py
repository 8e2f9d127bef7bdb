"""The load generator, against a server in this process with scripted responses."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from scripts.demo.load_generator import LoadGenerator, LoadSettings, Response, response_error
from scripts.demo.load_report import LoadReport, read_report

GOOD = b'{"predictions": [7]}'


def response(body: bytes = GOOD, *, status: int = 200, version: str | None = "first", more: str = "") -> bytes:
    header = f"azureml-model-deployment: {version}\r\n" if version else ""
    return f"HTTP/1.1 {status} X\r\n{header}{more}content-length: {len(body)}\r\n\r\n".encode() + body


class Server:
    """Answers the n-th request with `answer(n)`; None closes the connection without an answer."""

    def __init__(self, answer: Callable[[int], bytes | None], delay_s: Callable[[int], float] = lambda _: 0.0) -> None:
        self.answer = answer
        self.delay_s = delay_s
        self.heads: list[str] = []
        self.connections = 0
        self.port = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            head = await self.read(reader)
            self.heads.append(head)
            number = len(self.heads)
            await asyncio.sleep(self.delay_s(number))
            if (reply := self.answer(number)) is None:
                return
            writer.write(reply)

    async def read(self, reader: asyncio.StreamReader) -> str:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        await reader.readexactly(int(head.lower().split("content-length: ")[1].split("\r\n")[0]))
        return head


@contextlib.asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        server.tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await server.handle(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in server.tasks:
            task.cancel()
        await asyncio.gather(*server.tasks, return_exceptions=True)


async def run_until(server: Server, tmp_path: Path, enough: int, **changes: float) -> LoadReport:
    """Send to `server` until it has seen `enough` requests; return the last report."""
    (tmp_path / "key").write_text("a-secret-key")
    (tmp_path / "requests").write_text('{"data": [[1]]}\n{"data": [[2]]}')
    settings = LoadSettings(
        host="127.0.0.1",
        port=server.port,
        path="/score",
        key_file=str(tmp_path / "key"),
        requests_file=str(tmp_path / "requests"),
        rows=1,
        report_file=str(tmp_path / "report.json"),
        **{"rate": 200.0, **changes},
    )
    load = LoadGenerator(settings)
    running = asyncio.create_task(load.run())
    try:
        async with asyncio.timeout(10):
            while len(server.heads) < enough:
                await asyncio.sleep(0.01)
    finally:
        load.stop()
        await running
    report = read_report(tmp_path / "report.json")
    assert report is not None
    return report


async def test_every_request_is_counted_by_the_version_that_answered(tmp_path: Path) -> None:
    async with serving(Server(lambda n: response(version="second" if n % 4 == 0 else "first"))) as server:
        report = await run_until(server, tmp_path, 40)

    assert report.finished
    assert report.requests == len(server.heads)
    assert report.failed == 0
    assert report.versions["second"].requests == len(server.heads) // 4
    assert report.recent_split()["second"] == pytest.approx(25, abs=3)


async def test_the_key_travels_as_bearer_and_connections_are_kept(tmp_path: Path) -> None:
    async with serving(Server(lambda _: response())) as server:
        await run_until(server, tmp_path, 30)

    assert all("Authorization: Bearer a-secret-key\r\n" in head for head in server.heads)
    assert server.connections < len(server.heads) / 2


async def test_failures_are_counted_by_version_and_kind_and_not_retried(tmp_path: Path) -> None:
    answers = {
        1: response(status=500, version="second"),
        2: response(b'{"predictions": [11]}'),
        3: response(b"oops"),
        4: response(status=503, version=None),
        5: None,
    }
    async with serving(Server(lambda n: answers.get(n, response()))) as server:
        report = await run_until(server, tmp_path, 20)

    assert report.versions["second"].failures == {"status 500": 1}
    assert report.versions["first"].failures == {"bad shape": 1, "not JSON": 1}
    assert report.versions["no version"].failures == {"status 503": 1, "connection: IncompleteReadError": 1}
    assert report.requests == len(server.heads)


async def test_a_stall_shows_in_the_latency_of_the_requests_that_it_held_back(tmp_path: Path) -> None:
    # One answer takes half a second; at 200 requests per second 100 more are due meanwhile.
    turn = asyncio.Lock()

    class OneAtATime(Server):
        async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head = await self.read(reader)
                async with turn:
                    self.heads.append(head)
                    await asyncio.sleep(0.5 if len(self.heads) == 20 else 0)
                    writer.write(response())

    async with serving(OneAtATime(lambda _: None)) as server:
        report = await run_until(server, tmp_path, 140)

    assert report.failed == 0
    # A closed loop would have counted one slow request in 140.
    assert report.versions["first"].p50_ms > 50


async def test_missing_response_fails_after_the_timeout(tmp_path: Path) -> None:
    async with serving(Server(lambda _: response(), delay_s=lambda n: 5.0 if n == 3 else 0.0)) as server:
        report = await run_until(server, tmp_path, 80, timeout_s=0.2)

    assert report.versions["no version"].failures == {"no answer in time": 1}


async def test_unreachable_server_fails_every_request(tmp_path: Path) -> None:
    server = Server(lambda _: None)
    async with serving(server):
        pass
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await run_until(server, tmp_path, 1)

    report = read_report(tmp_path / "report.json")
    assert report is not None
    assert report.failed == report.requests


async def test_chunked_responses_are_read(tmp_path: Path) -> None:
    chunked = (
        b"HTTP/1.1 200 OK\r\nazureml-model-deployment: first\r\ntransfer-encoding: chunked\r\n\r\n"
        b'10\r\n{"predictions": \r\n4\r\n[7]}\r\n0\r\n\r\n'
    )
    async with serving(Server(lambda _: chunked)) as server:
        report = await run_until(server, tmp_path, 10)

    assert report.failed == 0


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ({"predictions": [0, 9]}, None),
        ({"predictions": [1]}, "bad shape"),
        ({"predictions": [1, 2, 3]}, "bad shape"),
        ({"predictions": [1, 10]}, "bad shape"),
        ({"predictions": [1, -1]}, "bad shape"),
        ({"predictions": [1, 2.0]}, "bad shape"),
        ({"predictions": [1, True]}, "bad shape"),
        ({"predictions": "12"}, "bad shape"),
        ({"answers": [1, 2]}, "bad shape"),
        ([1, 2], "bad shape"),
    ],
)
def test_response_needs_one_digit_per_row(body: object, fault: str | None) -> None:
    answer = Response(200, "first", json.dumps(body).encode(), keep_alive=True)

    assert response_error(answer, rows=2) == fault
