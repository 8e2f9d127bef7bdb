"""Bounds on the connections of the store: how many, and how long each may keep it waiting.

uvicorn has none of these: a client that connects and sends nothing, half a request, or reads no answer, would stay for
as long as it likes, and keep a descriptor and what is buffered for it.
"""

import asyncio
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from controlled_rollout.telemetry_store.responses import error_response

__all__ = ["Connections", "Timeouts"]

MAX_CONNECTIONS: Final = 512
# What unread answers of all clients may hold in memory before more queries are refused.
MAX_UNREAD_BYTES: Final = 256 * 2**20
QUERY_PATHS: Final = ("/query", "/$batch")
# A client that reads an answer more slowly than so many bytes in `read_s` has stopped.
LEAST_READ_BYTES: Final = 64 * 2**10
LOOK_INTERVAL_S: Final = 0.5


class Timeouts:
    """How long a client may keep the store waiting, in seconds.

    Attributes:
        head_s: For the head of a request, from its first byte or from the connection on.
        body_s: For the body.
        read_s: For taking the next part of an answer.
    """

    def __init__(self, head_s: float = 10.0, body_s: float = 30.0, read_s: float = 10.0) -> None:
        self.head_s = head_s
        self.body_s = body_s
        self.read_s = read_s


class Connections:
    """All connections of the store, and the application as it is served to them.

    Args:
        app: The application.
        max_connections: With more, the one whose client has kept the store waiting longest is closed.
        timeouts: How long a client may keep the store waiting.
    """

    def __init__(
        self, app: ASGIApp, *, max_connections: int = MAX_CONNECTIONS, timeouts: Timeouts | None = None
    ) -> None:
        self._app = app
        self._max_connections = max_connections
        self.timeouts = timeouts or Timeouts()
        self._open: dict[object, _Connection] = {}
        self._next_look: asyncio.TimerHandle | None = None

    def protocol(self, **arguments: Any) -> asyncio.Protocol:
        """Return the protocol of one connection; uvicorn calls this with the arguments of its own protocol."""
        from uvicorn.protocols.http.auto import AutoHTTPProtocol

        return _Connection(self, AutoHTTPProtocol(**arguments))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, and note on its connection what it is waiting for."""
        connection = self._open.get(_address(scope.get("client")))
        if connection is None:
            await self._app(scope, receive, send)
        elif self.unread_bytes > MAX_UNREAD_BYTES and scope["path"].endswith(QUERY_PATHS):
            message = f"{self.unread_bytes} bytes of answers were not read yet: read them, or try later"
            refusal = error_response(429, "ThrottledError", message)
            await Response(refusal.body, refusal.status, refusal.headers, "application/json")(scope, receive, send)
        else:
            await connection.serve(self._app, scope, receive, send)

    @property
    def unread_bytes(self) -> int:
        """What is buffered of answers that clients have not read yet, in bytes."""
        return sum(connection.unread_bytes for connection in self._open.values())

    def add(self, connection: "_Connection") -> None:
        """Keep a new connection; close another one if there are too many."""
        if len(self._open) >= self._max_connections:
            waiting = [each for each in self._open.values() if each.is_waiting_for_client]
            if not waiting:
                connection.abort()
                return
            min(waiting, key=lambda each: (each.was_served, each.waiting_since)).abort()
        self._open[connection.address] = connection
        if self._next_look is None:
            self._close_overdue()

    def discard(self, connection: "_Connection") -> None:
        """Forget a connection that is closed."""
        if self._open.get(connection.address) is connection:
            del self._open[connection.address]

    def _close_overdue(self) -> None:
        """Close the connections whose time is over, and call this again later while connections are open."""
        loop = asyncio.get_running_loop()
        for connection in list(self._open.values()):
            if connection.is_overdue(loop.time()):
                connection.abort()
        self._next_look = loop.call_later(LOOK_INTERVAL_S, self._close_overdue) if self._open else None


class _Connection(asyncio.Protocol):
    """One connection, in front of uvicorn's protocol.

    Args:
        connections: All connections.
        protocol: uvicorn's protocol, which parses and answers the requests.
    """

    def __init__(self, connections: Connections, protocol: asyncio.Protocol) -> None:
        self._connections = connections
        self._protocol = protocol
        self._timeouts = connections.timeouts
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._unread_before = 0
        self.address: object = None
        # Whether it has brought a request that was neither refused nor open to all.
        self.was_served = False
        # Since when its client keeps the store waiting, and until when it may; None while the store works for it.
        self.waiting_since = self._loop.time()
        self._deadline: float | None = None
        self.is_waiting_for_client = True

    def _wait_for_client(self, seconds: float | None) -> None:
        """Note that it is the client's turn, for so many seconds at most; None without a limit of our own."""
        self.is_waiting_for_client = True
        self.waiting_since = self._loop.time()
        self._deadline = None if seconds is None else self.waiting_since + seconds

    def _work_for_client(self) -> None:
        """Note that it is the store's turn."""
        self.is_waiting_for_client = False
        self._deadline = None

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the time-out of the first request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - of a TCP server
        self._transport = transport
        self.address = _address(transport.get_extra_info("peername"))
        self._wait_for_client(self._timeouts.head_s)
        self._protocol.connection_made(transport)
        self._connections.add(self)

    def data_received(self, data: bytes) -> None:
        """Start the time-out of the next request's head with its first byte."""
        if self.is_waiting_for_client and self._deadline is None:
            self._wait_for_client(self._timeouts.head_s)
        self._protocol.data_received(data)

    def eof_received(self) -> bool | None:
        """Pass on that the client sends nothing more."""
        return self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Start the time-out of reading: the client is behind."""
        self._unread_before = self.unread_bytes
        self._wait_for_client(self._timeouts.read_s)
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """End the time-out of reading."""
        self._unread_before = 0
        self._wait_for_client(None)
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._connections.discard(self)
        self._protocol.connection_lost(exc)

    # What the connections ask

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request whose head is complete."""
        headers = dict(scope["headers"])
        if b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0":
            self._wait_for_client(self._timeouts.body_s)
        else:
            self._work_for_client()

        async def receive_and_note() -> Message:
            """Return the next part of the request; after the last it is the store's turn."""
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                self._work_for_client()
            return message

        async def send_and_note(message: Message) -> None:
            """Send a part of the answer; its head tells whether the client may be here."""
            if message["type"] == "http.response.start" and message["status"] < 400 and scope["path"] != "/healthz":
                self.was_served = True
            await send(message)

        try:
            await app(scope, receive_and_note, send_and_note)
        finally:
            if not self._unread_before:
                self._wait_for_client(None)

    def is_overdue(self, now: float) -> bool:
        """Return whether the client has kept the store waiting for too long."""
        if self._deadline is None or now < self._deadline:
            return False
        if self._unread_before:
            unread = self.unread_bytes
            if unread <= self._unread_before - LEAST_READ_BYTES:
                self._unread_before = unread
                self._deadline = now + self._timeouts.read_s
                return False
        return True

    @property
    def unread_bytes(self) -> int:
        """What is buffered of answers that the client has not read, in bytes."""
        return 0 if self._transport is None else self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """Close the connection at once."""
        self._connections.discard(self)
        if self._transport is not None:
            self._transport.abort()


def _address(client: Any) -> tuple[str, int] | None:
    """Return the address of a client as both asyncio and uvicorn have it; None without one."""
    return None if not client else (str(client[0]), int(client[1]))
