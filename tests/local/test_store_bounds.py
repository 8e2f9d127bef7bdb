"""The telemetry store under queries and uploads that want too much: the others are answered."""

import gzip
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.local.telemetry_lab import Process, message, stores
from tests.polling import wait_until

GIBIBYTE = 2**30
NEVER_ENDS = (
    "range x from 1 to 1000000 step 1 | extend k = 1 "
    "| join kind=inner (range y from 1 to 1000000 step 1 | extend k = 1) on k | summarize sum(x * y % 7)"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with stores(tmp_path_factory.mktemp("store") / "data") as start:
        yield start()


def ask(store: Process, query: str, *, wait_s: int | None = None) -> tuple[int, str]:
    """Send a query; return the answer's status and its text."""
    headers = {"Authorization": "Bearer any"} | ({} if wait_s is None else {"Prefer": f"wait={wait_s}"})
    with httpx.Client(timeout=60) as http:
        answer = http.post(f"{store.url}/v1/workspaces/{store.workspace}/query", json={"query": query}, headers=headers)
    return answer.status_code, answer.text


def children(store: Process) -> list[psutil.Process]:
    return psutil.Process(store.popen.pid).children(recursive=True)


class PeakMemory:
    """The most memory that a process and its children had while the block ran, in bytes."""

    def __init__(self, store: Process) -> None:
        self._store = store
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            for process in (psutil.Process(self._store.popen.pid), *children(self._store)):
                try:
                    self.bytes = max(self.bytes, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    continue


@pytest.mark.parametrize(
    "query",
    [
        "range x from 1 to 1000000000 step 1 | count",
        "print x = range(1, 1000000000) | mv-expand x | summarize make_list(x)",
        "range x from 1 to 30000000 step 1 | extend s = strcat('some longer text ', x) | summarize make_list(s)",
        "print x = strcat_array(repeat('0123456789', 100000000), '')",
    ],
)
def test_a_query_that_wants_all_memory_is_refused_within_its_time_and_gets_one_gibibyte(
    store: Process, query: str
) -> None:
    store.send({"endpoint": "small"})
    started = time.monotonic()
    with PeakMemory(store) as peak:
        status, text = ask(store, query, wait_s=8)

    assert status in (400, 504), text
    assert json.loads(text)["error"]["message"]
    assert time.monotonic() - started < 9
    assert peak.bytes < GIBIBYTE
    assert store.rows("AppRequests | where tostring(Properties.endpoint) == 'small' | take 1 | count") == [[1]]


def test_a_query_is_ended_at_its_deadline_and_nothing_of_it_is_left(store: Process) -> None:
    before = len(children(store))
    started = time.monotonic()

    status, text = ask(store, NEVER_ENDS, wait_s=1)

    assert (status, json.loads(text)["error"]["code"]) == (504, "GatewayTimeout")
    assert time.monotonic() - started < 2
    wait_until(lambda: len(children(store)) == before, "the query's process has ended")


def test_a_query_ends_when_its_client_hangs_up(store: Process) -> None:
    before = len(children(store))

    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{store.url}/v1/workspaces/{store.workspace}/query",
            json={"query": NEVER_ENDS},
            headers={"Authorization": "Bearer any", "Prefer": "wait=600"},
            timeout=1,
        )

    wait_until(lambda: len(children(store)) == before, "the query's process has ended")


def test_ten_endless_queries_keep_no_short_one_and_no_upload_from_being_answered(store: Process) -> None:
    endless: list[int] = []
    threads = [threading.Thread(target=lambda: endless.append(ask(store, NEVER_ENDS, wait_s=4)[0])) for _ in range(10)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(children(store)) > 5, "five queries run")

    assert store.send({"endpoint": "beside"}).status_code == 200
    assert store.http.get("/healthz").elapsed.total_seconds() < 1
    query = "AppRequests | where tostring(Properties.endpoint) == 'beside' | count"
    status, text = ask(store, query, wait_s=20)

    assert (status, json.loads(text)["tables"][0]["rows"]) == (200, [[1]])
    for thread in threads:
        thread.join(30)
    # Five run until their end, the others have waited in vain for as long.
    assert sorted(set(endless)) in ([429, 504], [504])


def bombs() -> Iterator[tuple[str, bytes]]:
    """Yield small packed bodies that unpack to millions of items, with the path that they are sent to."""
    for spans in (500_000, 4_000_000):
        scope = message(2, message(2, b"") * spans)
        yield "/v1/traces", message(1, scope)
        yield "/v1/traces", message(1, message(2, message(2, message(9, b"") * spans)))
    yield "/v2.1/track", b"[" + b"[]," * 20_000_000 + b"0]"
    yield "/v2.1/track", b"\n" * 60_000_000
    yield "/v2.1/track", b"[" * 60_000_000


def test_small_uploads_that_unpack_to_millions_of_items_are_refused_while_others_are_answered(store: Process) -> None:
    packed = [(path, gzip.compress(body)) for path, body in bombs()]
    statuses: list[int] = []

    def send(path: str, body: bytes) -> None:
        kind = "application/x-protobuf" if path == "/v1/traces" else "application/json"
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        statuses.append(httpx.post(store.url + path, content=body, headers=headers, timeout=60).status_code)

    longest = 0.0
    threads = [threading.Thread(target=send, args=arguments) for arguments in packed]
    with PeakMemory(store) as peak:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            started = time.monotonic()
            assert store.send({"endpoint": "beside bombs"}).status_code == 200
            longest = max(longest, time.monotonic() - started)

    assert statuses == [413] * len(packed)
    assert longest < 2
    assert peak.bytes < GIBIBYTE


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-protobuf\r\n"
        b"Content-Length: 900000\r\n\r\n" + b"x" * 60_000,
    ],
    ids=["silent", "half a body"],
)
def test_more_idle_connections_than_descriptors_keep_nobody_from_being_answered(store: Process, sent: bytes) -> None:
    resource.prlimit(store.popen.pid, resource.RLIMIT_NOFILE, (1_024, 20_000))
    with ExitStack() as idle:
        for _ in range(1_100):
            connection = idle.enter_context(
                socket.create_connection(("127.0.0.1", httpx.URL(store.url).port), timeout=10)
            )
            with suppress(ConnectionError):
                connection.sendall(sent)
        for _ in range(20):
            started = time.monotonic()
            assert httpx.get(f"{store.url}/healthz", timeout=5).status_code == 200
            assert store.send({"endpoint": "beside idle"}).status_code == 200
            assert time.monotonic() - started < 2


def test_a_store_whose_database_is_killed_ends_and_its_rows_are_there_after_the_next_start(tmp_path: Path) -> None:
    with stores(tmp_path / "data") as start:
        first: Any = start()
        first.send({"endpoint": "kept"})
        assert first.rows("AppRequests | count") == [[1]]
        [database] = psutil.Process(first.popen.pid).children()
        database.kill()

        _, errors = first.popen.communicate(timeout=30)

        assert first.popen.returncode == 1
        assert "database's process ended" in errors
        assert start().rows("AppRequests | count") == [[1]]
