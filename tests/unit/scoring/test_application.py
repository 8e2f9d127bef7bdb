"""What becomes of the answers that scripts give: sent as they are, or refused with a 500 and a line in the log."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_scoring.application import Application
from controlled_rollout_scoring.responses import Response, StreamFailed
from tests.examples import examples

FAILED = "An unexpected error occurred in scoring script. Check the logs for more info."


def application(status: Any, headers: Any, body: Any) -> Application:
    """Return an application that answers every request alike; a body that can be called is called for each."""

    def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, headers)
        result: Iterable[bytes] = body() if callable(body) else body
        return result

    return Application(wsgi, slots=1, workers=1)


def answer(status: Any = "200 OK", headers: Any = (), body: Any = (b"x",), method: str = "POST") -> Response:
    return application(status, headers, body)({"REQUEST_METHOD": method}, b"")


def assert_refused(response: Response) -> None:
    assert isinstance(response.body, bytes)
    assert (response.status, json.loads(response.body)) == (500, {"message": FAILED})
    assert ("x-ms-run-function-failed", "True") in response.headers


@pytest.mark.parametrize(
    "status",
    ["42 UNKNOWN", "-1 UNKNOWN", "1000 UNKNOWN", "99", "100 Continue", "101", "600", "", "OK", "२००", 200, None],
)
def test_status_that_no_answer_can_have_is_a_500(status: Any) -> None:
    assert_refused(answer(status))


@pytest.mark.parametrize(
    "header",
    [
        ("X-A", "\ud800"),
        ("X-A", "a\r\nSet-Cookie: b=c"),
        ("X-A", "a\nb"),
        ("X-A", "a\x00b"),
        ("X-A", "☃"),
        ("X-A", 5),
        ("X-A", None),
        ("X-A", b"bytes"),
        ("X A", "a"),
        ("", "a"),
        ("X-Ä", "a"),
        ("X-A:", "a"),
        (b"X-A", "a"),
        (None, "a"),
        ("X-A", "a" * 70_000),
        ("Content-Length", "2"),
        ("Content-Length", "-1"),
        ("Content-Length", "one"),
        ("X-A",),
        "X-A",
        5,
    ],
)
def test_header_that_cannot_be_sent_is_a_500(header: Any) -> None:
    assert_refused(answer(headers=[header]))


def test_more_headers_than_the_router_takes_are_a_500() -> None:
    assert_refused(answer(headers=[("X-A", "a")] * 101))


@pytest.mark.parametrize("part", [5, "text", None, [b"x"], 1.5, object()])
def test_part_of_a_body_that_is_not_bytes_is_a_500(part: Any) -> None:
    assert_refused(answer(body=[part]))


@pytest.mark.parametrize("part", [b"abc", bytearray(b"abc"), memoryview(b"abc")])
def test_bytes_of_every_kind_are_sent(part: Any) -> None:
    response = answer(headers=[("Content-Length", "3")], body=[part])

    assert (response.status, response.body) == (200, b"abc")


def test_bytes_and_a_status_with_methods_of_their_own_are_sent_as_what_they_hold() -> None:
    """A chunk of another size than is said before it would end the caller's connection in the middle."""

    class Part(bytes):
        def __bytes__(self) -> bytes:
            return self

        def __len__(self) -> int:
            return 1

    class Status(str):
        def __int__(self) -> int:
            return 777

        def split(self, *_: Any) -> list[Any]:
            return [self]

    response = answer(Status("200 OK"), body=[Part(b"abc")])

    assert response.status == 200
    assert not isinstance(response.body, bytes)
    assert [(type(part), len(part)) for part in response.body] == [(bytes, 3)]
    assert_refused(answer(Status("999 OK")))


@pytest.mark.parametrize("said", ["100", "0", "one", "9" * 5_000])
def test_body_without_end_is_read_no_further_than_the_length_that_the_script_said(said: str) -> None:
    taken: list[int] = []

    def body() -> Iterator[bytes]:
        while len(taken) < 1_000:
            taken.append(len(taken))
            yield b"x" * 50

    assert_refused(answer(headers=[("Content-Length", said)], body=body))
    assert len(taken) <= 3


def test_headers_of_the_connection_and_of_the_runtime_are_left_out_and_others_kept() -> None:
    """Scripts pass the headers of another service's answer on."""
    headers = [
        ("Transfer-Encoding", "chunked"),
        ("Connection", "keep-alive, X-A"),
        ("Keep-Alive", "timeout=5"),
        ("Upgrade", "h2c"),
        ("X-Controlled-Rollout-Reason", "queue-full"),
        ("X-Controlled-Rollout-Send-Again", "1"),
        ("X-Controlled-Rollout-Scoring-Ms", "0.1"),
        ("X-Controlled-Rollout-Left-Queue", "9"),
        ("X-A", " ä "),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("content-length", "1"),
    ]
    response = answer(headers=headers)

    assert response.headers == [("X-A", "ä"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Content-Length", "1")]


def test_a_header_whose_text_has_methods_of_its_own_is_sent_as_plain_text() -> None:
    """One that raises when it is written would leave the caller without an answer."""

    class Text(str):
        def lower(self) -> "Text":
            raise ValueError

        strip = __format__ = lower  # type: ignore[assignment]

    response = answer(headers=[(Text("X-A"), Text(" a"))])

    assert response.headers[0] == ("X-A", "a")
    assert [type(text) for text in response.headers[0]] == [str, str]


@pytest.mark.parametrize(("status", "method"), [("204 NO CONTENT", "POST"), ("304", "GET"), ("200 OK", "HEAD")])
def test_answer_that_has_no_body_is_sent_without_one(status: str, method: str) -> None:
    response = answer(status, [("Content-Length", "5")], [b"12345"], method)

    assert (response.body, response.headers) == (b"", [])


def test_body_without_parts_is_an_empty_answer() -> None:
    response = answer(body=[b"", b""])

    assert (response.status, response.body, response.headers) == (200, b"", [("Content-Length", "0")])


class Failure(BaseException):
    """What extensions in Rust raise when they panic is no `Exception` either."""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit, Failure, StopIteration, MemoryError])
def test_stream_that_fails_before_its_first_bytes_is_a_500(error: type[BaseException]) -> None:
    def body() -> Iterator[bytes]:
        yield b""
        raise error

    assert_refused(answer(body=body))


@pytest.mark.parametrize("length", [[], [("Content-Length", "2")]], ids=["streamed", "in one piece"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Failure])
def test_stream_that_fails_after_its_first_bytes_is_never_whole(
    length: list[tuple[str, str]], error: type[BaseException]
) -> None:
    closed = []

    def body() -> Iterator[bytes]:
        try:
            yield b"1"
            raise error
        finally:
            closed.append(True)

    response = answer(headers=length, body=body)

    assert closed == ([True] if length else [])
    if length:
        assert_refused(response)
    else:
        assert not isinstance(response.body, bytes)
        assert next(response.body) == b"1"
        with pytest.raises(StreamFailed):
            next(response.body)
        assert closed == [True]


def test_stream_with_a_part_that_is_not_bytes_fails_there() -> None:
    response = answer(body=lambda: iter([b"1", 5]))

    assert not isinstance(response.body, bytes)
    assert next(response.body) == b"1"
    with pytest.raises(StreamFailed):
        next(response.body)


@pytest.mark.parametrize(("error", "is_the_scripts"), [(Failure, "True"), (ValueError, "False")])
def test_exception_of_the_application_is_a_500(error: type[BaseException], is_the_scripts: str) -> None:
    """Flask lets pass what is no `Exception`: run() has raised it."""

    def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        raise error

    response = Application(wsgi, slots=1, workers=1)({"REQUEST_METHOD": "POST"}, b"")

    assert response.status == 500
    assert ("x-ms-run-function-failed", is_the_scripts) in response.headers


@pytest.mark.parametrize("where", ["run", "before the first bytes", "later"])
def test_exit_of_the_script_is_passed_on(where: str) -> None:
    def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        if where == "run":
            raise SystemExit
        return body()

    def body() -> Iterator[bytes]:
        if where == "later":
            yield b"1"
        raise SystemExit

    with pytest.raises(SystemExit):
        list(Application(wsgi, slots=1, workers=1)({"REQUEST_METHOD": "POST"}, b"").body)


def test_script_that_has_broken_stderr_gets_its_500(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)

    assert_refused(answer("42"))


anything = st.one_of(st.none(), st.integers(), st.text(), st.binary(), st.just(object()))
statuses = st.one_of(anything, st.integers(-10, 1100).map(lambda code: f"{code} REASON"), st.just("200 OK"))
names = st.one_of(anything, st.sampled_from(["X-A", "Content-Length", "connection", "Transfer-Encoding", "Trailer"]))
values = st.one_of(anything, st.integers(-1, 9).map(str), st.text(st.characters(max_codepoint=255)))
parts = st.one_of(anything, st.binary())


@examples(200)
@given(
    statuses,
    st.lists(st.tuples(names, values), max_size=4),
    st.lists(parts, max_size=3),
    st.sampled_from(["GET", "HEAD"]),
)
def test_whatever_a_script_answers_can_be_sent_or_is_a_500(status: Any, headers: Any, body: Any, method: str) -> None:
    response = answer(status, headers, body, method)

    assert_can_be_sent(response, method)
    if response.status == 200:
        assert status == "200 OK" or status.startswith("200 ")


def assert_can_be_sent(response: Response, method: str) -> None:
    """Let h11, which checks what it sends, send the response."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    server.next_event()
    headers = [(name.encode("ascii"), value.encode("latin-1")) for name, value in response.headers]
    server.send(h11.Response(status_code=response.status, headers=headers))
    if method == "HEAD":
        return
    try:
        for part in [response.body] if isinstance(response.body, bytes) else response.body:
            server.send(h11.Data(data=part))
    except StreamFailed:
        return
    server.send(h11.EndOfMessage())
