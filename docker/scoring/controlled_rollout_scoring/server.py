"""granian's HTTP server, fed by hand: the one place that knows its inside, which is why its version is pinned.

granian's own WSGI loop keeps a Python thread for each request in flight and answers when the thread comes back.
Here a request is handed over to the turns at once, and answered later from the thread that scored it: the model runs in
the main thread, as it does in the stock server, and the server's threads stay free for liveness and refusals.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

from granian._futures import _new_cbscheduler
from granian._granian import SocketHolder, WorkerSignal, WSGIWorker
from granian.http import HTTP1Settings

from controlled_rollout_scoring.answers import HEALTHY, Answer, cut_off, too_large
from controlled_rollout_scoring.settings import BACKLOG, Settings
from controlled_rollout_scoring.turns import Request, Turns

READ_SIZE = 1 << 20
# The router closes idle connections when it likes; were this end to close first, a request might meet the closing.
IDLE_TIMEOUT_MS = 2 * 60 * 60 * 1000
MAX_CONNECTIONS = 4096


class Server:
    """Listens, reads requests, and puts them in line."""

    def __init__(self, listener: socket.socket, turns: Turns, settings: Settings) -> None:
        self._turns = turns
        self._max_body_bytes = settings.max_body_bytes
        self._signal = WorkerSignal()
        self._closed = threading.Event()
        self._signal.add_cb(self._closed.set)
        unix = listener.family == socket.AF_UNIX
        # A slow upload may hold one thread for each place; two more answer liveness and refusals meanwhile.
        threads = settings.slots + settings.queue_length + 2
        listener.listen(BACKLOG)
        holder = SocketHolder(listener.detach(), unix, BACKLOG)
        http1 = HTTP1Settings(header_read_timeout=IDLE_TIMEOUT_MS)
        worker = WSGIWorker(
            1, (None, holder), None, 1, 1, threads, 30, MAX_CONNECTIONS, "1", http1, None, None, *NO_TLS, (None, None)
        )
        # The scheduler asks for an event loop; for WSGI it never runs it.
        self._loop = asyncio.new_event_loop()
        serve = worker.serve_mtr_uds if unix else worker.serve_mtr
        serve(_new_cbscheduler(self._loop, self._take_in, impl_asyncio=True), self._loop, self._signal)

    def close(self) -> None:
        """Refuse new connections and close each open one after the answer that it waits for."""
        self._signal.set()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until all connections are closed; False if some are still open after so many seconds."""
        return self._closed.wait(timeout_s)

    def _take_in(self, protocol: Any, environ: dict[str, Any]) -> None:
        """Called by granian, in one of its threads, when the head of a request is there."""

        def reply(answer: Answer) -> None:
            if isinstance(answer.body, bytes):
                protocol.response_bytes(answer.status, answer.headers, answer.body)
            else:
                protocol.response_iter(answer.status, answer.headers, answer.body)

        if environ["PATH_INFO"] == "/" and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            reply(HEALTHY)
            return
        if not self._turns.admit(reply):
            return
        try:
            body = self._read(environ)
            if isinstance(body, Answer):
                reply(body)
                self._discard(environ)
        except BaseException:
            self._turns.leave()
            raise
        if isinstance(body, Answer):
            self._turns.leave()
        else:
            self._turns.wait(Request(environ, body, reply))

    def _read(self, environ: dict[str, Any]) -> bytes | Answer:
        """Return the request's body, or the refusal of one that is too large or was cut off."""
        stream = environ["wsgi.input"]
        declared = environ.get("CONTENT_LENGTH")
        if declared is not None:
            if int(declared) > self._max_body_bytes:
                return too_large(self._max_body_bytes)
            body = bytes(stream.read()) if declared != "0" else b""
            return body if len(body) == int(declared) else cut_off(int(declared))
        if "HTTP_TRANSFER_ENCODING" not in environ:
            return b""
        whole = bytearray()
        while chunk := stream.read(READ_SIZE):
            whole += chunk
            if len(whole) > self._max_body_bytes:
                return too_large(self._max_body_bytes)
        environ["CONTENT_LENGTH"] = str(len(whole))
        return bytes(whole)

    def _discard(self, environ: dict[str, Any]) -> None:
        """Read on after a refusal, within limits: a connection closed under an upload loses the answer."""
        stream, left = environ["wsgi.input"], self._max_body_bytes
        while left > 0 and (chunk := stream.read(READ_SIZE)):
            left -= len(chunk)


NO_TLS: tuple[Any, ...] = (False, None, None, None, "tls1.3", None, [], False)
