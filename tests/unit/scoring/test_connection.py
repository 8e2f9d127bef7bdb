"""What one connection does with bytes and with time: on a transport that only remembers, and a clock that is told."""

import itertools
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_scoring import connection
from controlled_rollout_scoring.connection import Connection
from controlled_rollout_scoring.environ import RequestHead
from controlled_rollout_scoring.request_queue import Reply, Request, RequestQueue
from controlled_rollout_scoring.responses import Response
from tests.examples import examples

MAX_BODY = 1_000
MAX_HELD = 2_000
HEAD = b"POST /score?a=1 HTTP/1.1\r\nHost: x\r\n"
LONG = HEAD + b"Content-Length: 900\r\n\r\n"


class Transport:
    """Remembers what is written, and takes no time."""

    def __init__(self) -> None:
        self.written = b""
        self.unsent = 0
        self.is_over = False
        self.paused = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_extra_info(self, name: str) -> Any:
        addresses = {"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 9)}
        return addresses.get(name) or SimpleNamespace(shutdown=lambda how: None)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.is_over

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.is_over = True

    abort = close


class Server:
    """What a connection asks of its server; what other threads would call is called by `run_calls`."""

    def __init__(self) -> None:
        self.requests = RequestQueue(1, 10, 60, 60)
        self.max_body_bytes, self.max_held_bytes = MAX_BODY, MAX_HELD
        self.held_bytes = 0
        self.closing = False
        self.refused: list[tuple[bytes, int]] = []
        self.calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.loop = SimpleNamespace(call_soon_threadsafe=lambda function, *rest: self.calls.append((function, rest)))

    def opened(self, connection: Connection) -> None: ...

    closed = opened

    def refuse(self, head: RequestHead, addresses: object, reply: Reply, response: Response) -> None:
        self.refused.append((head.target, response.status))
        reply(response)

    def connect(self) -> tuple[Connection, Transport]:
        made, transport = Connection(self), Transport()  # type: ignore[arg-type]
        made.connection_made(transport)  # type: ignore[arg-type]
        return made, transport

    def run_calls(self) -> None:
        while self.calls:
            function, rest = self.calls.pop(0)
            function(*rest)

    def take(self) -> Request:
        request = self.requests.take()
        assert request is not None
        return request

    def answer(self, request: Request) -> None:
        self.requests.complete(request, Response(200, [("Content-Length", "4")], b"done"))
        self.run_calls()


@pytest.fixture
def server() -> Server:
    return Server()


def test_upload_that_brings_next_to_nothing_is_ended_and_counts_no_more(server: Server) -> None:
    slow, transport = server.connect()
    slow.data_received(LONG + b"a")
    began = server.requests.in_flight, server.held_bytes
    slow.check_time(time.monotonic() + connection.UPLOAD_WINDOW_S - 1)
    early = transport.written
    slow.check_time(time.monotonic() + connection.UPLOAD_WINDOW_S)

    assert (began, early) == ((1, 1), b"")
    assert transport.written.startswith(b"HTTP/1.1 408 ")
    assert (server.requests.in_flight, server.held_bytes) == (0, 0)


def test_upload_that_goes_on_has_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "UPLOAD_WINDOW_BYTES", 100)
    upload, transport = server.connect()
    upload.data_received(LONG)
    for turn in range(9):
        upload.data_received(b"a" * 100)
        upload.check_time(time.monotonic() + (turn + 1) * connection.UPLOAD_WINDOW_S)
    server.answer(server.take())

    assert transport.written.startswith(b"HTTP/1.1 200 ")


def test_headers_that_do_not_come_to_their_end_are_refused(server: Server) -> None:
    slow, transport = server.connect()
    slow.data_received(HEAD)
    slow.check_time(time.monotonic() + connection.HEAD_TIMEOUT_S)

    assert transport.written.startswith(b"HTTP/1.1 408 ")


def test_idle_connection_is_kept_for_the_router_and_then_closed(server: Server) -> None:
    idle, transport = server.connect()
    idle.check_time(time.monotonic() + connection.IDLE_TIMEOUT_S - 10)
    kept = not transport.is_over
    idle.check_time(time.monotonic() + connection.IDLE_TIMEOUT_S)

    assert (kept, transport.is_over, transport.written) == (True, True, b"")


def test_caller_who_reads_nothing_of_its_answer_is_cut_off(server: Server) -> None:
    deaf, transport = server.connect()
    deaf.data_received(HEAD + b"Content-Length: 1\r\n\r\na")
    server.answer(server.take())
    now = time.monotonic()
    transport.unsent = 500
    deaf.check_time(now)
    transport.unsent = 400
    deaf.check_time(now + connection.SEND_TIMEOUT_S)
    reads_slowly = not transport.is_over
    deaf.check_time(now + 2 * connection.SEND_TIMEOUT_S)

    assert (reads_slowly, transport.is_over) == (True, True)


def test_bodies_are_bounded_in_sum_and_free_again_after_the_answer(server: Server) -> None:
    held = [server.connect() for _ in range(2)]
    for each, _ in held:
        each.data_received(LONG + b"a" * 899)
    third, transport = server.connect()
    third.data_received(LONG + b"a" * 300)
    server.run_calls()
    for each, _ in held:
        each.data_received(b"a")
        server.answer(server.take())

    assert transport.written.startswith(b"HTTP/1.1 503 ")
    assert all(answered.written.startswith(b"HTTP/1.1 200 ") for _, answered in held)
    assert (server.held_bytes, server.requests.in_flight) == (0, 0)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"Content-Length: 1001\r\n\r\n", 413),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n" + b"a" * 1001, 413),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", 400),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\naa", 400),
        (HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n1\r\na\r\n0\r\n\r\n", 400),
        (HEAD.replace(b"Host: x\r\n", b"") + b"\r\n", 400),
    ],
)
def test_what_cannot_be_taken_is_refused_and_run_is_not_called(server: Server, sent: bytes, status: int) -> None:
    caller, transport = server.connect()
    caller.data_received(sent)
    server.run_calls()

    assert transport.written.startswith(b"HTTP/1.1 %d " % status)
    assert server.requests.in_flight == 0
    # It is captured: its version has answered it.
    assert status != 413 or server.refused == [(b"/score?a=1", 413)]


def test_endless_headers_and_endless_nothing_between_chunks_are_refused(server: Server) -> None:
    for start, status in ((HEAD + b"X-A: ", b"431"), (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;", b"400")):
        endless, transport = server.connect()
        endless.data_received(start)
        for _ in range(70):
            endless.data_received(b"a" * 1_000)
        assert transport.written.startswith(b"HTTP/1.1 " + status)


def test_stop_closes_idle_connections_and_others_after_their_answer(server: Server) -> None:
    (idle, idle_transport), (busy, transport) = server.connect(), server.connect()
    busy.data_received(HEAD + b"Content-Length: 1\r\n\r\na")
    server.closing = True
    for each in (idle, busy):
        each.stop()
    at_once = idle_transport.is_over, transport.is_over
    server.answer(server.take())

    assert at_once == (True, False)
    assert b"\r\nConnection: close\r\n" in transport.written


def test_lost_connection_counts_no_more(server: Server) -> None:
    for sent in (LONG, LONG + b"a", HEAD + b"Content-Length: 1\r\n\r\na"):
        lost, _ = server.connect()
        lost.data_received(sent)
        lost.connection_lost(None)
    before = server.requests.in_flight
    scored, _ = server.connect()
    scored.data_received(HEAD + b"Content-Length: 1\r\n\r\na")
    request = server.take()
    scored.connection_lost(None)
    meanwhile = server.requests.in_flight
    server.answer(request)

    assert (before, meanwhile, server.requests.in_flight) == (0, 1, 0)
    assert server.held_bytes == 0


@examples(50)
@given(st.binary(max_size=30), st.booleans(), st.lists(st.integers(0, 200), max_size=6))
def test_request_is_the_same_in_whatever_pieces_it_arrives(body: bytes, chunked: bool, cuts: list[int]) -> None:
    server = Server()
    caller, _ = server.connect()
    if chunked:
        framed = b"Transfer-Encoding: chunked\r\n\r\n" + (b"%x\r\n%b\r\n" % (len(body), body) if body else b"")
        sent = HEAD + framed + b"0\r\n\r\n"
    else:
        sent = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    for start, end in itertools.pairwise(places):
        caller.data_received(sent[start:end])
    request = server.take()

    assert request.body == body
    assert (request.environ["PATH_INFO"], request.environ["QUERY_STRING"]) == ("/score", "a=1")
    assert request.environ.get("CONTENT_LENGTH", "0") == str(len(body))


def test_body_behind_an_upgrade_that_is_not_done_is_read(server: Server) -> None:
    """As `curl --http2 -d abc http://...` sends it; whatever arrives with what."""
    asked = HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    request = asked + b"Content-Length: 3\r\n\r\nabc"
    whole, _ = server.connect()
    whole.data_received(request * 500)
    in_parts, _ = server.connect()
    for byte in request:
        in_parts.data_received(bytes([byte]))
    cut_off, transport = server.connect()
    cut_off.data_received(asked + b"Transfer-Encoding: chunked\r\n\r\n3\r\nab")
    cut_off.eof_received()

    assert [server.take().body for _ in range(2)] == [b"abc", b"abc"]
    assert transport.written.startswith(b"HTTP/1.1 400 ")


def test_permission_to_send_a_body_is_never_in_the_middle_of_the_answer_before(server: Server) -> None:
    caller, transport = server.connect()
    caller.data_received(HEAD + b"\r\n" + HEAD + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    before = transport.written
    server.answer(server.take())
    after = transport.written
    caller.data_received(b"abc")

    assert before == b""
    assert after.endswith(b"doneHTTP/1.1 100 Continue\r\n\r\n")
    assert server.take().body == b"abc"


def test_body_in_the_queue_goes_with_its_caller(server: Server) -> None:
    """Else callers who upload and hang up would fill the memory: what is gone is not counted any more."""
    for _ in range(3):
        caller, _transport = server.connect()
        caller.data_received(LONG + b"a" * 900)
        caller.connection_lost(None)
    present, _ = server.connect()
    present.data_received(HEAD + b"Content-Length: 3\r\n\r\nabc")

    assert (server.requests.in_flight, server.held_bytes) == (1, 3)
    assert server.take().body == b"abc"


def test_body_in_a_transfer_coding_that_is_not_known_is_refused(server: Server) -> None:
    caller, transport = server.connect()
    caller.data_received(HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    server.run_calls()

    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert b"transfer coding gzip, chunked is not known" in transport.written
