"""Clients of the telemetry store that keep it waiting, and too many of them."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from controlled_rollout.telemetry_store.connections import Connections, Timeouts

HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
ANSWER_BYTES = 32 * 2**20
Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open = Callable[[], AbstractAsyncContextManager[Client]]


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    """Read the body; answer with a large one where the path says so, and after a while where it says that."""
    while (await receive()).get("more_body"):
        pass
    if scope["path"] == "/slow":
        await asyncio.sleep(1)
    body = b"x" * (ANSWER_BYTES if scope["path"] == "/large" else 2)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(**settings: Any) -> AsyncIterator[Open]:
    """Serve the application; yield what opens a connection to it."""
    connections = Connections(application, **settings)
    http = cast("type[asyncio.Protocol]", connections.protocol)
    server = uvicorn.Server(
        uvicorn.Config(connections, http=http, interface="asgi3", lifespan="off", log_level="error")
    )
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))

    @asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    try:
        yield connect
    finally:
        server.should_exit = True
        server.force_exit = True
        await task


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def status(client: Client, request: bytes) -> bytes:
    """Send a request, and return the first line of the answer."""
    reader, writer = client
    writer.write(request)
    return await asyncio.wait_for(reader.readline(), 5)


async def is_closed(client: Client) -> bool:
    try:
        return await asyncio.wait_for(client[0].read(), 10) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HEAD, HEAD + b"half"], ids=["nothing", "head", "no body", "body"])
async def test_a_client_that_does_not_send_its_request_is_disconnected(sent: bytes) -> None:
    async with serving(timeouts=Timeouts(head_s=0.2, body_s=0.2)) as connect, connect() as client:
        client[1].write(sent)

        assert await is_closed(client)


async def test_bytes_that_trickle_in_do_not_extend_the_time_for_a_later_request() -> None:
    async with serving(timeouts=Timeouts(head_s=0.5)) as connect, connect() as client:
        assert await status(client, get("/")) == b"HTTP/1.1 200 OK\r\n"

        async def trickle() -> None:
            for _ in range(200):
                client[1].write(b"G")
                await asyncio.sleep(0.05)

        task = asyncio.create_task(trickle())
        await asyncio.wait({task, asyncio.create_task(is_closed(client))}, return_when="FIRST_COMPLETED")
        assert not task.done()
        task.cancel()


async def test_a_client_that_does_not_read_its_answer_is_disconnected() -> None:
    async with serving(timeouts=Timeouts(read_s=0.3)) as connect, connect() as client:
        client[1].transport.pause_reading()  # type: ignore[attr-defined]
        client[1].write(get("/large"))
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            while not client[1].transport.is_closing():
                client[1].write(b" ")
                await asyncio.sleep(0.05)


async def test_a_request_may_take_longer_than_a_client_may_wait() -> None:
    async with serving(timeouts=Timeouts(head_s=0.2, body_s=0.2, read_s=0.2)) as connect, connect() as client:
        assert await status(client, get("/slow")) == b"HTTP/1.1 200 OK\r\n"


async def test_the_client_that_has_waited_longest_makes_room_for_a_new_one_and_one_that_was_served_last() -> None:
    async with serving(max_connections=3) as connect, connect() as served, connect() as oldest, connect() as newer:
        assert await status(served, get("/")) == b"HTTP/1.1 200 OK\r\n"

        async with connect() as good:
            assert await status(good, get("/")) == b"HTTP/1.1 200 OK\r\n"

            assert await is_closed(oldest)
            assert await status(newer, get("/")) == b"HTTP/1.1 200 OK\r\n"
            await served[0].readexactly(len(b"content-length: 2\r\n"))
