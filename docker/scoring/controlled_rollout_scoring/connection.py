"""One caller's connection: HTTP/1.1 by h11, on a transport of asyncio.

Connections live in the server's thread. A request is answered from any thread, through its `Exchange`.
"""

from __future__ import annotations

import asyncio
import functools
import http
import math
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, cast

import h11

from controlled_rollout_scoring.environ import wsgi_environ
from controlled_rollout_scoring.exchange import Exchange
from controlled_rollout_scoring.log import log
from controlled_rollout_scoring.request_queue import Request
from controlled_rollout_scoring.responses import HEALTHY, Response, bodies_full, malformed, too_large, too_slow

if TYPE_CHECKING:
    from controlled_rollout_scoring.server import Server

# The largest request line and headers.
MAX_HEAD_BYTES = 64 * 1024
# What a caller may send after a request that is not answered yet, before it is read no further.
MAX_AHEAD_BYTES = 256 * 1024
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


class Connection(asyncio.Protocol):
    """Reads requests from one connection, hands them to the queue, and sends their answers, one after the other."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._transport: asyncio.Transport
        self._deadline = time.monotonic() + IDLE_TIMEOUT_S
        # The request that is being read or answered, and how far it is.
        self._exchange: Exchange | None = None
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._held_bytes = 0
        self._refused = self._read = False
        self._window_bytes = 0
        self._receiving_head = False
        # The caller has closed its sending side.
        self._ended = False
        # Nothing of what arrives counts any more.
        self._discarding = False
        self._writable = True
        self._unsent_bytes = 0
        self._send_deadline = math.inf

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for a request."""
        self._transport = cast("asyncio.Transport", transport)
        self._server.opened(self)

    def data_received(self, data: bytes) -> None:
        """Read on."""
        if self._discarding:
            return
        self._http.receive_data(data)
        self._read_events()
        if self._read and len(self._http.trailing_data[0]) > MAX_AHEAD_BYTES:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Keep the connection open if an answer is still to be sent: the caller may have closed one direction only."""
        self._ended = True
        if not self._discarding:
            self._http.receive_data(b"")
            self._read_events()
        return self._exchange is not None and not self._discarding

    def pause_writing(self) -> None:
        """Let a streamed body wait until the caller has read what is sent."""
        self._writable = False

    def resume_writing(self) -> None:
        """Let a streamed body go on."""
        self._writable = True
        if self._exchange is not None:
            self._exchange.set_ready()

    def connection_lost(self, error: Exception | None) -> None:
        """Give up the request; it may be scored all the same."""
        self._discarding = True
        self._give_up_exchange()
        self._server.closed(self)

    # What the server calls

    def stop(self) -> None:
        """Close the connection: at once if it is idle, else after the answer."""
        if self._exchange is None and not self._receiving_head and not self._discarding:
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
        if self._discarding or (not self._receiving_head and self._exchange is None):
            self._abort()
        elif self._receiving_head or self._window_bytes < UPLOAD_WINDOW_BYTES:
            self._refuse_unreadable(too_slow())
        else:
            self._window_bytes, self._deadline = 0, now + UPLOAD_WINDOW_S

    # Reading

    def _read_events(self) -> None:
        """Take what has arrived, up to the end of one request."""
        while not self._read and not self._discarding:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                log(f"refused what is not a whole HTTP request: {error}")
                self._refuse_unreadable(malformed(error.error_status_hint, str(error)))
                return
            if isinstance(event, h11.Request):
                self._begin_request(event)
            elif isinstance(event, h11.Data):
                self._add_to_body(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self._end_request()
            elif isinstance(event, h11.ConnectionClosed):
                self._close()
            else:
                self._wait_for_more()
                return

    def _wait_for_more(self) -> None:
        """Set the time that the caller has for the rest."""
        if self._http.they_are_waiting_for_100_continue and not self._refused:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        elif self._exchange is None and not self._receiving_head and self._http.trailing_data[0]:
            self._receiving_head = True
            self._deadline = time.monotonic() + HEAD_TIMEOUT_S

    def _begin_request(self, head: h11.Request) -> None:
        """Begin to read a request; refuse it at once if it can already be told."""
        self._receiving_head = False
        exchange = self._exchange = Exchange(self, self._server.loop, buffers=head.http_version < b"1.1")
        self._server.requests.reading += 1
        self._head = head
        self._window_bytes, self._deadline = 0, time.monotonic() + UPLOAD_WINDOW_S
        refusal = self._refusal(head)
        if refusal is not None:
            self._refuse(exchange, refusal)

    def _refusal(self, head: h11.Request) -> Response | None:
        """Return the answer to a request that needs no model, or that cannot be taken; None for all others."""
        if head.method in (b"GET", b"HEAD") and head.target.partition(b"?")[0] == b"/":
            return HEALTHY
        if head.method == b"CONNECT":
            return malformed(405, "CONNECT is for proxies")
        length = next((int(value) for name, value in head.headers if name == b"content-length"), 0)
        if length > self._server.max_body_bytes:
            return too_large(self._server.max_body_bytes)
        return self._server.requests.refusal()

    def _refuse(self, exchange: Exchange, response: Response) -> None:
        """Answer a request before it is read."""
        self._refused = True
        self._release_body()
        exchange(response)

    def _add_to_body(self, data: bytes) -> None:
        """Keep a part of the body, if it fits."""
        self._window_bytes += len(data)
        if self._refused or self._exchange is None:
            return
        self._held_bytes += len(data)
        self._server.held_bytes += len(data)
        if self._held_bytes > self._server.max_body_bytes:
            self._refuse(self._exchange, too_large(self._server.max_body_bytes))
        elif self._server.held_bytes > self._server.max_held_bytes:
            self._refuse(self._exchange, bodies_full(self._server.max_held_bytes))
        else:
            self._body += data

    def _end_request(self) -> None:
        """Put a request that was read to its end into the queue."""
        self._read = True
        self._deadline = math.inf
        self._server.requests.reading -= 1
        if not self._refused and self._exchange is not None and self._head is not None:
            address, peer = (self._transport.get_extra_info(name) for name in ("sockname", "peername"))
            environ = wsgi_environ(self._head, len(self._body), _host_and_port(address), _host_and_port(peer))
            body, self._body = bytes(self._body), bytearray()
            self._server.requests.put(Request(environ, body, self._exchange))

    def _refuse_unreadable(self, response: Response) -> None:
        """Answer what cannot be read any further, and end the connection; break it off if an answer has begun."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._abort()
            return
        self._give_up_exchange()
        self._send(response)
        self._discard()

    # Writing: each of these is called for an exchange, which may be over

    def answer(self, exchange: Exchange, response: Response) -> None:
        """Send a whole answer."""
        if exchange is self._exchange:
            self._send(response)
            self._end_exchange()

    def begin(self, exchange: Exchange, response: Response) -> None:
        """Send the status and headers of a streamed answer."""
        if exchange is not self._exchange:
            exchange.set_broken()
            return
        self._write(self._head_of(response))
        self._set_ready_if_writable()

    def send_part(self, exchange: Exchange, part: bytes) -> None:
        """Send a part of a streamed body."""
        if exchange is self._exchange:
            self._write(h11.Data(data=part))
            self._set_ready_if_writable()

    def finish(self, exchange: Exchange) -> None:
        """Send the end of a streamed body."""
        if exchange is self._exchange:
            self._write(h11.EndOfMessage())
            self._end_exchange()

    def break_off(self, exchange: Exchange) -> None:
        """End the connection in the middle of a streamed body, so that its caller sees that it is not whole."""
        if exchange is self._exchange:
            self._abort()

    def _set_ready_if_writable(self) -> None:
        if self._exchange is not None and self._writable:
            self._exchange.set_ready()

    def _send(self, response: Response) -> None:
        self._write(self._head_of(response))
        if isinstance(response.body, bytes) and (self._head is None or self._head.method != b"HEAD"):
            self._write(h11.Data(data=response.body))
        self._write(h11.EndOfMessage())

    def _head_of(self, response: Response) -> h11.Response:
        headers = list(response.headers)
        if not any(name.lower() == "date" for name, _ in headers):
            headers.insert(0, ("Date", _http_date(int(time.time()))))
        if self._server.closing or self._ended or not self._read:
            headers.append(("Connection", "close"))
        return h11.Response(
            status_code=response.status,
            headers=[(name.encode("ascii"), value.encode("latin-1")) for name, value in headers],
            reason=_reason(response.status),
        )

    def _write(self, event: h11.InformationalResponse | h11.Response | h11.Data | h11.EndOfMessage) -> None:
        if self._transport.is_closing():
            return
        try:
            data = self._http.send(event)
        except h11.LocalProtocolError as error:
            log(f"an answer cannot be sent, its connection is broken off: {error}")
            self._abort()
            return
        if data:
            self._transport.write(data)

    # Ending

    def _end_exchange(self) -> None:
        """Go on with the next request, or end the connection."""
        self._release_body()
        if not self._read:
            self._give_up_exchange()
            self._discard()
            return
        self._exchange = self._head = None
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE or self._ended:
            self._close()
            return
        self._http.start_next_cycle()
        self._refused = self._read = False
        self._deadline = time.monotonic() + IDLE_TIMEOUT_S
        self._transport.resume_reading()
        self._read_events()

    def _give_up_exchange(self) -> None:
        self._release_body()
        if self._exchange is not None:
            if not self._read:
                self._server.requests.reading -= 1
            self._exchange.set_broken()
            self._exchange = None

    def _release_body(self) -> None:
        self._server.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._body = bytearray()

    def _discard(self) -> None:
        """Let the caller read the answer: end this direction, and drop what still arrives, for some time."""
        self._discarding = True
        if self._ended:
            self._transport.close()
            return
        self._deadline = time.monotonic() + DISCARD_TIMEOUT_S
        self._end_writing()

    def _close(self) -> None:
        """End the connection after what is written."""
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


def _host_and_port(address: object) -> tuple[str, int]:
    """Return host and port of a socket's address; those of a unix socket have neither."""
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else ("localhost", 80)


def _reason(status: int) -> bytes:
    try:
        return http.HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""


@functools.lru_cache(maxsize=1)
def _http_date(second: int) -> str:
    return formatdate(second, usegmt=True)
