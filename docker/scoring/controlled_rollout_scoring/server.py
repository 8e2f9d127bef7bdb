"""An adapter to granian's HTTP server. It uses granian's private interfaces, which is why the version is pinned.

granian's own WSGI loop keeps a Python thread for each request in flight and responds when that thread returns. Here a
request goes into the queue at once, and the thread that scores it responds later: the model runs in the main thread, as
it does in the stock server, and the server's threads stay free for liveness and refusals.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from granian._futures import _new_cbscheduler
from granian._granian import SocketHolder, WorkerSignal, WSGIWorker
from granian.http import HTTP1Settings

from controlled_rollout_scoring.request_queue import Request, RequestQueue
from controlled_rollout_scoring.responses import HEALTHY, Response, incomplete, too_large
from controlled_rollout_scoring.settings import BACKLOG, Settings

READ_SIZE = 1 << 20
# Longer than the router keeps idle connections: if this end closed first, a request could be lost on the way.
IDLE_TIMEOUT_MS = 2 * 60 * 60 * 1000
MAX_CONNECTIONS = 4096


class Server:
    """Listens on a socket, reads requests and puts them into the queue; starts when it is created."""

    def __init__(self, listener: socket.socket, requests: RequestQueue, settings: Settings) -> None:
        self._requests = requests
        self._max_body_bytes = settings.max_body_bytes
        self._signal = WorkerSignal()
        self._closed = threading.Event()
        self._signal.add_cb(self._closed.set)
        unix = listener.family == socket.AF_UNIX
        # Every admitted request may hold a thread with a slow upload; two more answer liveness and refusals meanwhile.
        threads = settings.slots + settings.queue_length + 2
        listener.listen(BACKLOG)
        holder = SocketHolder(listener.detach(), unix, BACKLOG)
        http1 = HTTP1Settings(header_read_timeout=IDLE_TIMEOUT_MS)
        worker = WSGIWorker(
            1, (None, holder), None, 1, 1, threads, 30, MAX_CONNECTIONS, "1", http1, None, None, *NO_TLS, (None, None)
        )
        # granian's scheduler asks for an event loop; for WSGI it never runs it.
        self._loop = asyncio.new_event_loop()
        serve = worker.serve_mtr_uds if unix else worker.serve_mtr
        serve(_new_cbscheduler(self._loop, self._receive, impl_asyncio=True), self._loop, self._signal)

    def close(self) -> None:
        """Refuse new connections, and close each open one after the response that it waits for."""
        self._signal.set()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; False if some are still open after so many seconds."""
        return self._closed.wait(timeout_s)

    def _receive(self, protocol: Any, environ: dict[str, Any]) -> None:
        """Read a request and put it into the queue. granian calls this in one of its threads after the headers."""

        def reply(response: Response) -> None:
            if isinstance(response.body, bytes):
                protocol.response_bytes(response.status, response.headers, response.body)
            else:
                protocol.response_iter(response.status, response.headers, response.body)

        if environ["PATH_INFO"] == "/" and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            reply(HEALTHY)
            return
        if not self._requests.admit(reply):
            return
        try:
            body = self._read_body(environ)
            if isinstance(body, Response):
                reply(body)
                self._discard_body(environ)
        except BaseException:
            self._requests.release()
            raise
        if isinstance(body, Response):
            self._requests.release()
        else:
            self._requests.put(Request(environ, body, reply))

    def _read_body(self, environ: dict[str, Any]) -> bytes | Response:
        """Return the request's body, or the refusal of one that is too large or incomplete."""
        stream = environ["wsgi.input"]
        content_length = environ.get("CONTENT_LENGTH")
        if content_length is not None:
            if int(content_length) > self._max_body_bytes:
                return too_large(self._max_body_bytes)
            body = bytes(stream.read()) if content_length != "0" else b""
            return body if len(body) == int(content_length) else incomplete(int(content_length))
        if "HTTP_TRANSFER_ENCODING" not in environ:
            return b""
        chunks = bytearray()
        while chunk := stream.read(READ_SIZE):
            chunks += chunk
            if len(chunks) > self._max_body_bytes:
                return too_large(self._max_body_bytes)
        environ["CONTENT_LENGTH"] = str(len(chunks))
        return bytes(chunks)

    def _discard_body(self, environ: dict[str, Any]) -> None:
        """Read on after a refusal, at most `max_body_bytes`: closing during an upload would lose the response."""
        stream, remaining = environ["wsgi.input"], self._max_body_bytes
        while remaining > 0 and (chunk := stream.read(READ_SIZE)):
            remaining -= len(chunk)


NO_TLS: tuple[Any, ...] = (False, None, None, None, "tls1.3", None, [], False)
