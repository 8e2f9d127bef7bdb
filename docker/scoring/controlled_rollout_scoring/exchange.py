"""One request's way to its answer, from any thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from controlled_rollout_scoring.log import log
from controlled_rollout_scoring.responses import Response, StreamFailed, close_body, script_failed

if TYPE_CHECKING:
    from controlled_rollout_scoring.connection import Connection

# A streamed body may have no end.
MAX_BUFFERED_BYTES = 100_000_000


class Exchange:
    """Answers one request when it is called. The first answer counts, and later ones are dropped.

    An answer that is given while a streamed one is being sent breaks that one off: its time is over. While it is only
    being read, the later answer is sent in its place.

    Args:
        connection: Where the request came from.
        loop: The loop of the server's thread.
        buffers: Read a streamed body to its end before it is sent. An HTTP/1.0 caller takes the end of the connection
            for the end of the body: it could not be told of a failure.
    """

    __slots__ = ("_answered", "_broken", "_buffers", "_connection", "_gathering", "_lock", "_loop", "_ready")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, *, buffers: bool) -> None:
        self._connection = connection
        self._loop = loop
        self._buffers = buffers
        self._lock = threading.Lock()
        self._answered = False
        # Whether a streamed body is being read to its end before it is sent.
        self._gathering = False
        # Set when the connection takes the next part of a streamed body; None for an answer in one piece.
        self._ready: threading.Event | None = None
        self._broken = False

    def __call__(self, response: Response) -> None:
        """Answer the request; a streamed body is read and sent in the calling thread, until its end."""
        with self._lock:
            first, self._answered = not self._answered, True
            if first and not isinstance(response.body, bytes):
                self._gathering = self._buffers
                self._ready = None if self._buffers else threading.Event()
        if not first:
            close_body(response.body)
            if self._ready is not None:
                self._call(self._connection.break_off)
            elif self._ends_gathering():
                self._call(self._connection.answer, response)
        elif self._ready is not None:
            self._stream(response, self._ready)
        elif isinstance(response.body, bytes):
            self._call(self._connection.answer, response)
        else:
            self._gather(response)

    def set_ready(self) -> None:
        """Let the next part of a streamed body be sent."""
        if self._ready is not None:
            self._ready.set()

    def set_broken(self) -> None:
        """Let a streamed body end: nothing more can be sent."""
        self._broken = True
        self.set_ready()

    def _stream(self, response: Response, ready: threading.Event) -> None:
        """Send a streamed body part by part, each when the connection has taken the one before."""
        self._call(self._connection.begin, response)
        try:
            for part in cast("Iterator[bytes]", response.body):
                ready.wait()
                if self._broken:
                    return
                ready.clear()
                self._call(self._connection.send_part, part)
            self._call(self._connection.finish)
        except StreamFailed:
            self._call(self._connection.break_off)
        finally:
            close_body(response.body)

    def _gather(self, response: Response) -> None:
        """Read a streamed body to its end and send it in one piece, unless its time is over before."""
        parts: list[bytes] = []
        size = 0
        try:
            for part in cast("Iterator[bytes]", response.body):
                if self._broken or not self._gathering:
                    return
                parts.append(part)
                size += len(part)
                if size > MAX_BUFFERED_BYTES:
                    log(f"the streamed answer to an HTTP/1.0 caller has more than {MAX_BUFFERED_BYTES:,} bytes")
                    raise StreamFailed
            whole = response._replace(body=b"".join(parts))
        except StreamFailed:
            whole = script_failed()
        finally:
            close_body(response.body)
        if self._ends_gathering():
            self._call(self._connection.answer, whole)

    def _ends_gathering(self) -> bool:
        """Return whether a streamed body was being read until now; whoever is told so sends the answer."""
        with self._lock:
            gathering, self._gathering = self._gathering, False
            return gathering

    def _call(self, function: Any, *arguments: Any) -> None:
        """Call one of the connection's functions in the server's thread."""
        try:
            self._loop.call_soon_threadsafe(function, self, *arguments)
        except RuntimeError:
            # The loop has ended, and every connection with it.
            self.set_broken()
