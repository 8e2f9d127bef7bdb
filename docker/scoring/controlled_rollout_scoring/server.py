"""The HTTP server of a worker: a thread with an event loop of its own, which reads requests and sends answers.

The model runs in other threads (in the main thread, if it takes one request at a time, as in the stock server), so
liveness and refusals are answered while it is busy.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import traceback
from collections.abc import Callable

from controlled_rollout_scoring.connection import Connection
from controlled_rollout_scoring.environ import RequestHead, wsgi_environ
from controlled_rollout_scoring.log import write
from controlled_rollout_scoring.request_queue import Reply, Request, RequestQueue
from controlled_rollout_scoring.responses import TOO_LARGE, Response
from controlled_rollout_scoring.settings import BACKLOG, Settings

MAX_CONNECTIONS = 4096
CHECK_INTERVAL_S = 1.0
# The own address and port of a connection, and the caller's.
Addresses = tuple[tuple[str, int], tuple[str, int]]


class Server:
    """Listens on a socket, reads requests and puts them into the queue; starts when it is created.

    Args:
        listener: The socket.
        requests: The queue.
        settings: The replica's settings.
        watch: Called with each request that is refused because its body is too large, before it is answered; None for
            nothing.

    Attributes:
        loop: The event loop of the server's thread.
        requests: The queue.
        max_body_bytes: The largest request body.
        max_held_bytes: The most bytes of bodies that are held at a time: read in part, waiting, or being scored.
        held_bytes: How many are.
        closing: Whether connections are closed after the answer that they wait for.
    """

    def __init__(
        self,
        listener: socket.socket,
        requests: RequestQueue,
        settings: Settings,
        watch: Callable[[Request], None] | None = None,
    ) -> None:
        self.requests = requests
        self._watch = watch
        self.max_body_bytes = settings.max_body_bytes
        # Enough for the largest ones in every slot, and for as many that are being read meanwhile.
        self.max_held_bytes = 2 * settings.max_body_bytes * settings.slots
        self.held_bytes = 0
        self.closing = False
        self._connections: set[Connection] = set()
        self._listening: asyncio.Server | None = None
        self._closed = threading.Event()
        # Not the policy's loop: the script may have installed another one for itself.
        self.loop = asyncio.SelectorEventLoop()
        listener.setblocking(False)
        listener.listen(BACKLOG)
        threading.Thread(target=self._serve, args=(listener,), name="server", daemon=True).start()

    def close(self) -> None:
        """Refuse new connections, and close each open one after the answer that it waits for."""
        self.loop.call_soon_threadsafe(self._close)

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; False if some are still open after so many seconds."""
        return self._closed.wait(timeout_s)

    def opened(self, connection: Connection) -> None:
        """Keep a connection that a caller has opened, unless there are too many."""
        self._connections.add(connection)
        if self.closing or len(self._connections) > MAX_CONNECTIONS:
            connection.stop()

    def closed(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self._connections.discard(connection)
        self._set_closed_if_so()

    def refuse(self, head: RequestHead, addresses: Addresses, reply: Reply, response: Response) -> None:
        """Answer a request that no slot takes."""
        if response.status == TOO_LARGE and self._watch is not None:
            # The router counts it as answered by this version.
            request = Request(wsgi_environ(head, 0, *addresses), b"", reply)
            request.arrived = time.monotonic()
            self._watch(request)
            reply = request.reply
        reply(response)

    def _serve(self, listener: socket.socket) -> None:
        """Run the event loop, forever; without it the process would be of no use."""
        try:
            self.loop.run_until_complete(self._start(listener))
            self.loop.run_forever()
        except BaseException:
            write(f"the HTTP server failed:\n{traceback.format_exc()}")
        os._exit(1)

    async def _start(self, listener: socket.socket) -> None:
        if listener.family == socket.AF_UNIX:
            self._listening = await self.loop.create_unix_server(
                lambda: Connection(self), sock=listener, backlog=BACKLOG
            )
        else:
            self._listening = await self.loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
        self._check_times()

    def _check_times(self) -> None:
        """End what has taken too long, again and again."""
        now = time.monotonic()
        for connection in list(self._connections):
            connection.check_time(now)
        self.loop.call_later(CHECK_INTERVAL_S, self._check_times)

    def _close(self) -> None:
        self.closing = True
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._connections):
            connection.stop()
        self._set_closed_if_so()

    def _set_closed_if_so(self) -> None:
        if self.closing and not self._connections:
            self._closed.set()
