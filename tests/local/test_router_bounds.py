"""The local router under callers who want too much: the others are answered. And what old clients speak."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest
import requests

from controlled_rollout.endpoint import Endpoint
from tests.local.local_target_lab import Lab, steady_load
from tests.polling import until

MEGABYTE = 10**6
UNFINISHED = 8
# Half of it is where Envoy begins to end the largest requests; the rest is what it is and what comes in meanwhile.
MOST_BYTES = 900 * 2**20

SCRIPT = """
from azureml_inference_server_http.api.aml_request import rawhttp

def init():
    pass

@rawhttp
def run(request):
    return {"bytes": len(request.get_data()), "headers": sorted(name.lower() for name, _ in request.headers.items())}
"""


async def serve(lab: Lab, name: str) -> tuple[str, str]:
    """Serve an endpoint that tells how many bytes it got; return its URL and a key."""
    endpoint = Endpoint(name=name).create_version(
        "one", image=await lab.image(script=SCRIPT), num_replicas=1, max_request_wait_time=20_000
    )
    _, status = await lab.serve(endpoint)
    await lab.ready(name, "one")
    return status.url, (await lab.target.keys(name)).primary


async def router(lab: Lab) -> psutil.Process:
    pid = (await lab.target.processes())["router"]
    assert pid is not None
    return psutil.Process(pid)


@contextmanager
def peak_memory(process: psutil.Process) -> Iterator[Callable[[], int]]:
    """Watch a process's memory while the block runs; yield what returns the most that it had, in bytes."""
    ended = threading.Event()
    most = [0]

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield lambda: most[0]
    finally:
        ended.set()
        thread.join()


@asynccontextmanager
async def unfinished_bodies(url: str, key: str, *, megabytes: int, number: int) -> AsyncIterator[None]:
    """Send all but the last bytes of large requests at once, and keep the connections open while the block runs."""
    where = urlsplit(url)
    size = megabytes * MEGABYTE
    head = (
        f"POST {where.path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Length: {size + 10}\r\n\r\n"
    ).encode()
    chunk = b"x" * MEGABYTE

    async def send(writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(head)
            for _ in range(megabytes):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            return

    async with AsyncExitStack() as connections:
        writers = []
        for _ in range(number):
            _, writer = await asyncio.open_connection(where.hostname, where.port)
            connections.callback(writer.transport.abort)
            writers.append(writer)
        await asyncio.gather(*map(send, writers))
        yield


async def test_unfinished_large_bodies_end_each_other_and_nobody_else(lab: Lab) -> None:
    url, key = await serve(lab, "unfinished")
    before = await router(lab)

    with peak_memory(before) as peak:
        async with steady_load(url, key, rate=50) as load, unfinished_bodies(url, key, megabytes=90, number=UNFINISHED):
            await load.more(50)

    assert load.failed == {}, load.refusals
    assert peak() < MOST_BYTES
    assert (await router(lab)).pid == before.pid
    # Who was ended had reached no version: nothing of it counts as a version's failure.
    await until(lambda: by_code(lab, "unfinished").get("200", 0) >= load.sent, "the spans of all good requests")
    assert set(by_code(lab, "unfinished")) == {"200"}


def by_code(lab: Lab, endpoint: str) -> dict[str, int]:
    """Return how many requests of an endpoint's versions telemetry has, by status."""
    about = f"tostring(Properties.endpoint) == '{endpoint}' and isnotempty(tostring(Properties.version))"
    return dict(rows(lab, f"AppRequests | where {about} | summarize sum(ItemCount) by ResultCode"))


def rows(lab: Lab, query: str) -> list[list[Any]]:
    """Return the rows that the workspace's telemetry store answers a query with."""
    answer = httpx.post(
        f"{lab.state.telemetry_url}/v1/workspaces/{lab.state.telemetry_workspace_id}/query",
        json={"query": query},
        headers={"Authorization": f"Bearer {lab.state.telemetry_token_file.read_text().strip()}"},
        timeout=30,
    )
    found: list[list[Any]] = answer.json()["tables"][0]["rows"]
    return found


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [10, 300_000, 5 * MEGABYTE])
async def test_a_body_of_any_size_reaches_the_version_once_with_its_length(lab: Lab, size: int, chunked: bool) -> None:
    url, key = await serve(lab, "sizes")

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, size, 65_536):
            yield b"x" * min(65_536, size - start)

    async with httpx.AsyncClient(timeout=30) as caller:
        content = parts() if chunked else b"x" * size
        answer = await caller.post(url, content=content, headers={"Authorization": f"Bearer {key}"})
    # The router refuses it before it has the body, and then reads no more: a client that reads nothing before it has
    # sent everything, as this one, would find its connection broken.
    refused = await asyncio.to_thread(requests.post, url, data=b"x" * size, timeout=30)

    assert answer.status_code == 200
    assert answer.headers["azureml-model-deployment"] == "one"
    assert answer.json()["bytes"] == size
    assert "content-length" in answer.json()["headers"]
    assert not {"authorization", "x-controlled-rollout-large-body"} & set(answer.json()["headers"])
    assert refused.status_code == 401
    request_id = answer.headers["x-request-id"]
    about = f"tostring(Properties) contains '{request_id}'"
    spans = f"AppRequests | where {about} | project tostring(Properties.version), tostring(Properties.routed_by)"
    await until(lambda: rows(lab, spans), "the request's span")
    assert rows(lab, spans) == [["one", "weights"]]


async def exchange(url: str, request: str) -> tuple[str, bytes]:
    """Send a request word for word; return the first line of the answer, and all of it."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(request.encode())
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer.partition(b"\r\n")[0].decode(), answer


@pytest.mark.parametrize("host", ["", "Host: localhost\r\n"])
async def test_clients_of_http_1_0_are_answered(lab: Lab, host: str) -> None:
    url, key = await serve(lab, "old")
    path = urlsplit(url).path

    score, answer = await exchange(
        url, f"POST {path} HTTP/1.0\r\n{host}Authorization: Bearer {key}\r\nContent-Length: 2\r\n\r\n{{}}"
    )
    health, _ = await exchange(url, f"GET /healthz HTTP/1.0\r\n{host}\r\n")

    assert score.split()[1] == "200", answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["bytes"] == 2
    assert health.split()[1] == "200"


async def test_idle_connections_end_and_the_router_is_not_replaced_for_them(lab: Lab) -> None:
    url, key = await serve(lab, "idle")
    where = urlsplit(url)
    before = await router(lab)

    with ExitStack() as connections:
        idle = [connections.enter_context(socket.create_connection((where.hostname, where.port))) for _ in range(1_100)]
        for connection in idle:
            connection.setblocking(False)
        loop = asyncio.get_running_loop()
        async with steady_load(url, key, rate=50) as load:
            await load.more(50)
            ended = await asyncio.wait_for(asyncio.gather(*(loop.sock_recv(each, 1) for each in idle)), 30)

    assert load.failed == {}, load.refusals
    assert set(ended) == {b""}
    assert (await router(lab)).pid == before.pid
