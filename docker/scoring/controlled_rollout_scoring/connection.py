"""One caller's connection: HTTP/1.1, read by httptools, on a transport of asyncio.

Connections live in the server's thread. A request is answered from any thread, through its `Exchange`.
"""

from __future__ import annotations

import asyncio
import functools
import http
import math
import socket
import time
from collections import deque
from email.utils import formatdate
from typing import TYPE_CHECKING, cast

import httptools

from controlled_rollout_scoring.environ import RequestHead, wsgi_environ
from controlled_rollout_scoring.exchange import Exchange
from controlled_rollout_scoring.log import log
from controlled_rollout_scoring.request_queue import Request
from controlled_rollout_scoring.responses import (
    HEALTHY,
    WITHOUT_BODY,
    Response,
    bodies_full,
    malformed,
    too_large,
    too_slow,
)

if TYPE_CHECKING:
    from controlled_rollout_scoring.server import Server

# The largest request line and headers; and what chunks may cost beside the body.
MAX_HEAD_BYTES = 64 * 1024
# Longer than the router keeps idle connections: if this end closed first, a request could be lost on the way.
IDLE_TIMEOUT_S = 2 * 60 * 60.0
HEAD_TIMEOUT_S = 30.0
# An upload that brings fewer bytes in this time is ended: it would keep memory from others.
UPLOAD_WINDOW_S = 20.0
UPLOAD_WINDOW_BYTES = 100_000
# How long a caller may go on sending what is not read any more: closing at once would take the answer from it.
DISCARD_TIMEOUT_S = 30.0
# How long a caller may read nothing of its answer.
SEND_TIMEOUT_S = 60.0


class Incoming:
    """A request while it is being read, and then answered."""

    def __init__(self) -> None:
        self.head = RequestHead()
        # Made when the headers are read.
        self.exchange: Exchange | None = None
        self.body = bytearray()
        self.held_bytes = 0
        self.overhead_bytes = 0
        self.is_read = False
        self.keep_alive = False
        # The answer, if there is one before `run` is called.
        self.refusal: Response | None = None
        # What was put into the queue.
        self.request: Request | None = None


class Connection(asyncio.Protocol):
    """Reads requests from one connection, hands them to the queue, and sends their answers, one after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._addresses = (("localhost", 80), ("", 0))
        # The request whose answer comes next, the whole ones behind it, and the one that is being read.
        self._current: Incoming | None = None
        self._waiting: deque[Incoming] = deque()
        self._reading: Incoming | None = None
        # Nothing more is read: the caller has closed its sending side, or has sent what is not HTTP.
        self._ended = self._caller_ended = False
        # The connection ends after what is written; what still arrives is dropped.
        self._discarding = False
        self._writable = True
        self._deadline = time.monotonic() + IDLE_TIMEOUT_S
        self._window_bytes = 0
        self._unsent_bytes = 0
        self._send_deadline = math.inf

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        self._transport = cast("asyncio.Transport", transport)
        own, caller = (transport.get_extra_info(name) for name in ("sockname", "peername"))
        if isinstance(own, tuple) and isinstance(caller, tuple):
            self._addresses = ((str(own[0]), int(own[1])), (str(caller[0]), int(caller[1])))
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        self._window_bytes += len(data)
        while data and not self._discarding and not self._ended:
            data = self._feed_parser(data)
        if self._waiting and not self._discarding:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Keep the connection open if an answer is still to be sent: the caller may have closed one direction only."""
        self._caller_ended = True
        if self._current is not None and self._current.request is not None and self._current.request.by_router:
            self._discarding = True  # the router closes both: its caller has hung up, and the connection is lost
            return False
        if self._reading is not None and not self._ended:
            self._refuse_unreadable(malformed(400, "the caller closed its side before the end"))
        self._end_of_input()
        return self._current is not None and not self._discarding

    def pause_writing(self) -> None:
        """Let a streamed body wait until the caller has read what is sent."""
        self._writable = False

    def resume_writing(self) -> None:
        """Let a streamed body go on."""
        self._writable = True
        self._set_ready_if_writable()

    def connection_lost(self, error: Exception | None) -> None:
        """Give up all requests; one that is being scored already goes on."""
        self._discarding = True
        self._give_up()
        # It refers to this connection: without the circle both are freed at once.
        del self._parser
        self._server.closed(self)

    # What the server calls

    def stop(self) -> None:
        """Close the connection: at once if it is idle, else after the answer."""
        if self._current is None and self._reading is None and not self._discarding:
            self._close()

    def check_time(self, now: float) -> None:
        """End the connection if the caller has been too slow."""
        unsent = self._transport.get_write_buffer_size()
        if not unsent or unsent != self._unsent_bytes:
            self._unsent_bytes, self._send_deadline = unsent, now + SEND_TIMEOUT_S
        elif now >= self._send_deadline:
            self._abort()
            return
        if now < self._deadline:
            return
        if self._discarding or self._reading is None:
            self._abort()
        elif self._reading.exchange is None or self._window_bytes < UPLOAD_WINDOW_BYTES:
            self._refuse_unreadable(too_slow())
        else:
            self._window_bytes, self._deadline = 0, now + UPLOAD_WINDOW_S

    # What the parser calls

    def on_message_begin(self) -> None:
        """Begin to read a request."""
        self._reading = Incoming()
        self._deadline = time.monotonic() + HEAD_TIMEOUT_S

    def on_url(self, part: bytes) -> None:
        """Take a part of the request's target."""
        if self._reading is not None:
            self._reading.head.target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind a chunked body are not for WSGI."""
        if self._reading is not None and self._reading.exchange is None:
            self._reading.head.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Decide whether the body is of interest."""
        incoming = self._reading
        if incoming is None:
            return
        incoming.head.method = self._parser.get_method()
        incoming.head.version = self._parser.get_http_version()
        if self._parser.should_upgrade() and incoming.head.method != b"CONNECT":
            # The parser takes the body for the other protocol: `data_received` reads the request anew.
            return
        incoming.keep_alive = self._parser.should_keep_alive()
        incoming.exchange = Exchange(self, self._server.loop, buffers=incoming.head.version != "1.1")
        incoming.refusal = self._answer_without_model(incoming.head)
        if incoming.refusal is not None and incoming.refusal.status in (400, 431):
            incoming.keep_alive = False
        incoming.overhead_bytes = 0
        self._server.requests.reading += 1
        self._window_bytes, self._deadline = 0, time.monotonic() + UPLOAD_WINDOW_S
        if self._current is None:
            self._make_current(incoming)

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body, if it fits."""
        incoming = self._reading
        if incoming is None or incoming.exchange is None:
            return
        incoming.overhead_bytes -= len(data)
        if incoming.refusal is not None:
            return
        incoming.held_bytes += len(data)
        self._server.held_bytes += len(data)
        if incoming.held_bytes > self._server.max_body_bytes:
            self._refuse(incoming, too_large(self._server.max_body_bytes))
        elif self._server.held_bytes > self._server.max_held_bytes:
            self._refuse(incoming, bodies_full(self._server.max_held_bytes))
        else:
            incoming.body += data

    def on_message_complete(self) -> None:
        """Put a request that was read to its end into the queue, if it is its turn."""
        incoming = self._reading
        if incoming is None or incoming.exchange is None:
            return
        self._reading = None
        incoming.is_read = True
        self._deadline = math.inf
        self._server.requests.reading -= 1
        if incoming is self._current:
            self._put(incoming)
        else:
            self._waiting.append(incoming)

    # Reading

    def _feed_parser(self, data: bytes) -> bytes:
        """Give bytes to the parser; return those that it has to read anew."""
        before = self._reading
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            return self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse_unreadable(malformed(400, str(error)))
        else:
            if self._reading is not None and self._reading is before:
                self._bound_overhead(self._reading, len(data))
        return b""

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Return a request that asks for another protocol as if it did not: a server may do so (RFC 9110, 7.8)."""
        incoming = self._reading
        if incoming is None or incoming.exchange is not None:
            # CONNECT, which is refused: what follows it is not read.
            self._end_of_input()
            return b""
        head = incoming.head
        lines = [b"%b %b HTTP/%b" % (head.method, head.target, head.version.encode())]
        lines += [b"%b: %b" % header for header in head.headers if header[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", rest])

    def _answer_without_model(self, head: RequestHead) -> Response | None:
        """Return the answer to a request that needs no model, or that cannot be taken; None for all others."""
        unreadable = _long_head_refusal(head) or _unsupported_refusal(head)
        if unreadable is not None:
            log(f"refused a request: {unreadable.body!r}")
            return unreadable
        if head.method in (b"GET", b"HEAD") and head.target.partition(b"?")[0] == b"/":
            return HEALTHY
        if int(head.value(b"content-length") or b"0") > self._server.max_body_bytes:
            return too_large(self._server.max_body_bytes)
        return self._server.requests.refusal()

    def _make_current(self, incoming: Incoming) -> None:
        """Let a request be answered next."""
        self._current = incoming
        if incoming.refusal is not None and incoming.exchange is not None:
            self._server.refuse(incoming.head, self._addresses, incoming.exchange, incoming.refusal)
        elif incoming.is_read:
            self._put(incoming)
        elif incoming.head.version == "1.1" and incoming.head.value(b"expect").lower() == b"100-continue":
            # Not before: it would be in the middle of the answer that comes first.
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, incoming: Incoming, response: Response) -> None:
        """Answer a request before it is read to its end."""
        incoming.refusal = response
        self._release_body(incoming)
        if incoming is self._current and incoming.exchange is not None:
            self._server.refuse(incoming.head, self._addresses, incoming.exchange, response)

    def _put(self, incoming: Incoming) -> None:
        """Put a request into the queue."""
        if incoming.refusal is None and incoming.exchange is not None:
            body, incoming.body = bytes(incoming.body), bytearray()
            environ = wsgi_environ(incoming.head, len(body), *self._addresses)
            incoming.request = Request(environ, body, incoming.exchange)
            self._server.requests.put(incoming.request)

    def _bound_overhead(self, incoming: Incoming, received: int) -> None:
        """Refuse endless headers, and endless chunks of next to nothing."""
        incoming.overhead_bytes += received
        if incoming.exchange is None and incoming.overhead_bytes > MAX_HEAD_BYTES:
            self._refuse_unreadable(_head_too_long_response())
        elif incoming.overhead_bytes > MAX_HEAD_BYTES + 16 * incoming.held_bytes:
            self._refuse_unreadable(malformed(400, "there is more around its chunks than in them"))

    def _refuse_unreadable(self, response: Response) -> None:
        """Answer what cannot be read any further, and end the connection, after the answers that come before."""
        log(f"refused a request: {response.body!r}")
        if self._current is not None and self._current is not self._reading:
            self._end_of_input()
            return
        head = self._reading.head if self._reading is not None else RequestHead()
        self._give_up()
        self._send(response, head, close=True)
        self._discard()

    def _end_of_input(self) -> None:
        """Read nothing more; the connection ends after the last answer."""
        self._ended = True
        if self._reading is not self._current:
            self._release_request(self._reading)
            self._reading = None

    # Writing: each of these is called for an exchange, which may be over

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Send a whole answer."""
        incoming = self._unanswered_request(exchange)
        if incoming is not None:
            self._send(response, incoming.head, close=self._closes_after(incoming))
            self._end_exchange(incoming)

    def begin(self, exchange: Exchange, response: Response) -> None:
        """Send the status and headers of a streamed answer."""
        incoming = self._unanswered_request(exchange)
        if incoming is not None:
            chunked = [*response.headers, ("Transfer-Encoding", "chunked")]
            self._transport.write(_head(response.status, chunked, close=self._closes_after(incoming)))
            self._set_ready_if_writable()

    def send_part(self, exchange: Exchange, part: bytes) -> None:
        """Send a part of a streamed body as a chunk."""
        if self._unanswered_request(exchange) is not None:
            self._transport.write(b"%x\r\n%b\r\n" % (len(part), part))
            self._set_ready_if_writable()

    def finish(self, exchange: Exchange) -> None:
        """Send the last chunk of a streamed body."""
        incoming = self._unanswered_request(exchange)
        if incoming is not None:
            self._transport.write(b"0\r\n\r\n")
            self._end_exchange(incoming)

    def break_off(self, exchange: Exchange) -> None:
        """End the connection in the middle of a streamed body, so that its caller sees that it is not whole."""
        if self._unanswered_request(exchange) is not None:
            self._abort()

    def _unanswered_request(self, exchange: Exchange) -> Incoming | None:
        """Return the request of an exchange, if it is still to be answered; else let a streamed body end."""
        if self._current is not None and self._current.exchange is exchange and not self._transport.is_closing():
            return self._current
        exchange.set_broken()
        return None

    def _set_ready_if_writable(self) -> None:
        if self._writable and self._current is not None and self._current.exchange is not None:
            self._current.exchange.set_ready()

    def _closes_after(self, incoming: Incoming) -> bool:
        more = bool(self._waiting)
        return not incoming.keep_alive or not incoming.is_read or self._server.closing or (self._ended and not more)

    def _send(self, response: Response, head: RequestHead, *, close: bool) -> None:
        headers = response.headers
        if not close and head.version == "1.0":
            headers = [*headers, ("Connection", "keep-alive")]
        data = _head(response.status, headers, close=close)
        has_body = head.method != b"HEAD" and response.status not in WITHOUT_BODY
        self._transport.write(data + cast("bytes", response.body) if has_body else data)

    # Ending

    def _end_exchange(self, incoming: Incoming) -> None:
        """Go on with the next request, or end the connection."""
        if not incoming.is_read:
            self._give_up()
            self._discard()
            return
        self._release_body(incoming)
        self._current = None
        if not incoming.keep_alive or self._server.closing or (self._ended and not self._waiting):
            self._give_up()
            self._discard()
        elif self._waiting:
            self._make_current(self._waiting.popleft())
        else:
            self._transport.resume_reading()
            if self._reading is None:
                self._deadline = time.monotonic() + IDLE_TIMEOUT_S
            elif self._reading.exchange is not None:
                self._make_current(self._reading)

    def _give_up(self) -> None:
        """Forget all requests of this connection."""
        for incoming in {self._current, self._reading, *self._waiting}:
            self._release_request(incoming)
        self._current = self._reading = None
        self._waiting.clear()

    def _release_request(self, incoming: Incoming | None) -> None:
        if incoming is not None and incoming.exchange is not None:
            self._release_body(incoming)
            if not incoming.is_read:
                self._server.requests.reading -= 1
            if incoming.request is not None:
                self._server.requests.cancel(incoming.request)
            incoming.exchange.set_broken()

    def _release_body(self, incoming: Incoming) -> None:
        self._server.held_bytes -= incoming.held_bytes
        incoming.held_bytes = 0
        incoming.body = bytearray()

    def _discard(self) -> None:
        """Let the caller read the answer: end this direction, and drop what still arrives, for some time."""
        self._discarding = True
        if self._caller_ended:
            self._close()
            return
        self._deadline = time.monotonic() + DISCARD_TIMEOUT_S
        self._transport.resume_reading()
        self._end_writing()

    def _close(self) -> None:
        """End both directions after what is written."""
        self._discarding = True
        self._end_writing()
        self._transport.close()

    def _end_writing(self) -> None:
        # A process that the script has forked may hold the same connection: closing alone would not end it.
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def _abort(self) -> None:
        """End the connection at once."""
        self._discarding = True
        try:
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The caller was faster.
        self._transport.abort()


def _unsupported_refusal(head: RequestHead) -> Response | None:
    """Return the refusal of what no WSGI application is asked; None for all others."""
    if head.method == b"CONNECT" or head.version not in ("1.0", "1.1"):
        return malformed(400, f"{head.method.decode('latin-1')} of HTTP/{head.version} is not known here")
    hosts = sum(name == b"host" for name, _ in head.headers)
    if hosts > 1 or (not hosts and head.version == "1.1"):
        return malformed(400, f"it has {hosts} Host headers")
    coding = head.value(b"transfer-encoding")
    if coding and coding.lower() != b"chunked":
        return malformed(400, f"the transfer coding {coding.decode('latin-1')} is not known here")
    return None


def _long_head_refusal(head: RequestHead) -> Response | None:
    """Return the refusal of a long request line or long headers; None for all others."""
    size = len(head.target) + sum(len(name) + len(value) + 4 for name, value in head.headers)
    return _head_too_long_response() if size > MAX_HEAD_BYTES else None


def _head_too_long_response() -> Response:
    return malformed(431, f"its headers exceed {MAX_HEAD_BYTES:,} bytes")


def _head(status: int, headers: list[tuple[str, str]], *, close: bool) -> bytes:
    """Return the status line and the headers of an answer."""
    lines = [_status_line(status)]
    if not any(name.lower() == "date" for name, _ in headers):
        lines.append(f"Date: {_http_date(int(time.time()))}")
    lines += [f"{name}: {value}" for name, value in headers]
    if close:
        lines.append("Connection: close")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("latin-1")


@functools.cache
def _status_line(status: int) -> str:
    try:
        return f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return f"HTTP/1.1 {status} "


@functools.lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)
