"""Ten clients of each bad kind beside good ones: a steady load on an endpoint, and a query of the telemetry store.

Run as `python -m tests.benchmarks.abuse <kind> <what it needs as JSON>`, it is ten bad clients, until it is killed.
"""

import asyncio
import gzip
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil

from tests.benchmarks.local_workspace import ENDPOINT, Bench, bench
from tests.local.local_target_lab import Load, steady_load
from tests.local.telemetry_lab import message

REPOSITORY = Path(__file__).parents[2]
RATE = 100.0
CLIENTS = 10
SECONDS = 15.0
MEGABYTE = 10**6
ENDLESS_QUERY = (
    "range x from 1 to 1000000 step 1 | extend k = 1 "
    "| join kind=inner (range y from 1 to 1000000 step 1 | extend k = 1) on k | summarize sum(x * y % 7)"
)


@dataclass(frozen=True)
class Targets:
    """What a bad client knows.

    Attributes:
        url: The endpoint's address.
        key: A key of it.
        store: The telemetry store's address.
        workspace: The id of the store's workspace.
        token: The bearer token of queries.
    """

    url: str
    key: str
    store: str
    workspace: str
    token: str


@dataclass(frozen=True)
class Outcome:
    """What good clients saw beside ten bad ones.

    Attributes:
        requests: The requests of good callers.
        failed: Those that were not answered 200.
        p99_ms: The time that 99 of 100 took at most.
        queries: The queries of a good reader of the store.
        failed_queries: Those that were not answered 200.
        slowest_query_s: The time that the slowest took.
        router_mb: The most memory that the router had.
        store_mb: The most memory that a process of the store had.
    """

    requests: int
    failed: int
    p99_ms: float
    queries: int
    failed_queries: int
    slowest_query_s: float
    router_mb: float
    store_mb: float


# The bad clients


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    where = urlsplit(address)
    return await asyncio.open_connection(where.hostname, where.port)


def head_of(targets: Targets, length: int, *, key: str | None = None) -> bytes:
    where = urlsplit(targets.url)
    return (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key or targets.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


async def send_nothing(targets: Targets) -> None:
    """Open a hundred connections to router and store each, and wait until they are closed."""
    opened = [await connect(address) for _ in range(100) for address in (targets.url, targets.store)]
    for reader, writer in opened:
        with suppress(ConnectionError):
            await reader.read()
        writer.transport.abort()


async def send_head_slowly(targets: Targets) -> None:
    """Send the head of a request a byte a second."""
    reader, writer = await connect(targets.url)
    for number in range(len(head := head_of(targets, 10))):
        writer.write(head[number : number + 1])
        await writer.drain()
        await asyncio.sleep(1)
    await reader.read()


async def send_body_slowly(targets: Targets) -> None:
    """Send ten bodies at half a byte a second each."""

    async def upload() -> None:
        _, writer = await connect(targets.url)
        writer.write(head_of(targets, 1_000))
        for _ in range(1_000):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(2)

    await asyncio.gather(*(upload() for _ in range(10)))


async def send_body(targets: Targets, megabytes: int, missing: int = 0) -> None:
    """Send a large body, and wait for the answer; all but some bytes of it, and wait for ever."""
    reader, writer = await connect(targets.url)
    writer.write(head_of(targets, megabytes * MEGABYTE))
    for number in range(megabytes):
        writer.write(b"1" * (MEGABYTE - (missing if number == megabytes - 1 else 0)))
        await writer.drain()
    await reader.read(1)
    if missing:
        await asyncio.sleep(60)
    writer.transport.abort()


async def send_nonsense(targets: Targets) -> None:
    """Send what is no HTTP."""
    for address in (targets.url, targets.store):
        reader, writer = await connect(address)
        writer.write(b"\x16\x03\x01\x00\xff" * 200 + b"\r\n\r\n")
        await reader.read()
        writer.transport.abort()


async def send_wrong_key(targets: Targets) -> None:
    """Send requests with a wrong key one after the other on one connection."""
    reader, writer = await connect(targets.url)
    while True:
        writer.write(head_of(targets, 2, key="wrong") + b"{}")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        await reader.readexactly(length)


async def ask_store(targets: Targets, query: str) -> None:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        await client.post(
            f"{targets.store}/v1/workspaces/{targets.workspace}/query",
            json={"query": query},
            headers={"Authorization": f"Bearer {targets.token}", "Prefer": "wait=8"},
        )


async def upload_bomb(targets: Targets) -> None:
    """Send a few kilobytes that unpack to millions of items, to both interfaces of the store."""
    spans = gzip.compress(message(1, message(2, message(2, b"") * 4_000_000)))
    items = gzip.compress(b"[" + b"[]," * 20_000_000 + b"0]")
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
        while True:
            for path, body, kind in (
                ("/v1/traces", spans, "application/x-protobuf"),
                ("/v2.1/track", items, "application/json"),
            ):
                headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
                await client.post(targets.store + path, content=body, headers=headers)


KINDS: dict[str, tuple[str, Callable[[Targets], Awaitable[None]]]] = {
    "2,000 connections that send nothing": ("10 s to the first byte; 2,000 (router), 512 (store)", send_nothing),
    "heads, a byte a second": ("10 s", send_head_slowly),
    "100 bodies, half a byte a second": ("60 s; they wait in the router", send_body_slowly),
    "bodies of 90 MB, unfinished": ("512 MB in sum, the largest end first", lambda t: send_body(t, 90, missing=9)),
    "bodies of 90 MB": ("the same", lambda t: send_body(t, 90)),
    "bodies of 101 MB": ("100 MB: 413", lambda t: send_body(t, 101)),
    "nonsense": ("400", send_nonsense),
    "wrong keys, as fast as they can": ("401", send_wrong_key),
    "queries for 10⁹ rows": (
        "1 GiB each: 400",
        lambda t: ask_store(t, "range x from 1 to 1000000000 step 1 | count"),
    ),
    "endless queries": ("8 s as asked; five at once: 504, 429", lambda t: ask_store(t, ENDLESS_QUERY)),
    "uploads that unpack to 4 to 20 million items": ("20,000 items: 413", upload_bomb),
}


async def be_bad(kind: str, targets: Targets) -> None:
    """Be ten clients of one kind, again and again."""
    _, client = KINDS[kind]

    async def again() -> None:
        while True:
            with suppress(OSError, EOFError, httpx.HTTPError, asyncio.IncompleteReadError):
                await client(targets)
            await asyncio.sleep(0.1)

    print("begun", flush=True)
    await asyncio.gather(*(again() for _ in range(CLIENTS)))


# The good ones


class Watch:
    """The most memory of router and store, and the queries of a good reader, while the block runs."""

    def __init__(self, running: Bench, targets: Targets) -> None:
        pids = asyncio.run(running.lab.target.processes())
        self._router, self._store = (psutil.Process(pids[name] or 0) for name in ("router", "telemetry store"))
        self._targets = targets
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._look, self._ask)]
        self.router_bytes = self.store_bytes = 0
        self.queries_s: list[float] = []
        self.failed_queries = 0

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.router_bytes = max(self.router_bytes, self._router.memory_info().rss)
            for process in (self._store, *self._store.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    self.store_bytes = max(self.store_bytes, process.memory_info().rss)

    def _ask(self) -> None:
        address = f"{self._targets.store}/v1/workspaces/{self._targets.workspace}/query"
        headers = {"Authorization": f"Bearer {self._targets.token}", "Prefer": "wait=60"}
        while not self._ended.wait(0.5):
            began = time.monotonic()
            try:
                answer = httpx.post(address, json={"query": "AppRequests | count"}, headers=headers, timeout=60)
                self.failed_queries += answer.status_code != 200
            except httpx.HTTPError:
                self.failed_queries += 1
            self.queries_s.append(time.monotonic() - began)


@contextmanager
def bad_clients(kind: str, targets: Targets) -> Iterator[None]:
    """Run ten bad clients in a process of their own; none for an empty kind."""
    if not kind:
        yield
        return
    command = [sys.executable, "-m", "tests.benchmarks.abuse", kind, json.dumps(asdict(targets))]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


async def load_for(targets: Targets, seconds: float) -> Load:
    async with steady_load(targets.url, targets.key, rate=RATE) as load:
        await asyncio.sleep(seconds)
    return load


def measure(*, seconds: float = SECONDS) -> dict[str, Outcome]:
    """Each kind of bad client for so many seconds, and none to compare with, on one workspace."""
    outcomes = {}
    with bench() as running:
        state = running.lab.state
        targets = Targets(
            url=asyncio.run(running.lab.url(ENDPOINT)),
            key=asyncio.run(running.lab.target.keys(ENDPOINT)).primary,
            store=state.telemetry_url,
            workspace=state.telemetry_workspace_id or "",
            token=state.telemetry_token_file.read_text().strip(),
        )
        for kind in ("", *KINDS):
            with bad_clients(kind, targets), Watch(running, targets) as watch:
                load = asyncio.run(load_for(targets, seconds))
            outcomes[kind] = Outcome(
                requests=load.sent,
                failed=sum(load.failed.values()),
                p99_ms=1000 * sorted(load.latencies_s)[int(0.99 * len(load.latencies_s))],
                queries=len(watch.queries_s),
                failed_queries=watch.failed_queries,
                slowest_query_s=max(watch.queries_s, default=0.0),
                router_mb=watch.router_bytes / MEGABYTE,
                store_mb=watch.store_bytes / MEGABYTE,
            )
    return outcomes


if __name__ == "__main__":
    asyncio.run(be_bad(sys.argv[1], Targets(**json.loads(sys.argv[2]))))
