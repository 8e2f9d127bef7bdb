"""What capture keeps of each request and its answer, and that the caller's answer does not depend on it."""

import gc
import hashlib
import json
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout_scoring import capture as capture_module
from controlled_rollout_scoring.capture import CURRENT, Capture, is_in_share
from controlled_rollout_scoring.request_queue import Request
from controlled_rollout_scoring.responses import Response, StreamFailed, timed_out
from controlled_rollout_scoring.spool import Spool
from tests.unit.scoring.spool_reader import Record, counts, records

JSON = [("Content-Type", "application/json")]


class Caller:
    """Sends requests to a capture, and keeps what is sent back, and what the spool had by then."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.spool = Spool(str(folder), max_bytes=100_000_000)
        self.capture = Capture(self.spool, **{"share": 1.0, "max_body_bytes": 1_000, **settings})
        self.sent: list[Response] = []
        self.records_when_sent: list[int] = []

    def request(
        self,
        body: bytes = b"{}",
        path: str = "/score",
        method: str = "POST",
        variables: Mapping[str, str] | None = None,
        **more: str,
    ) -> Request:
        environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": "", **(variables or {}), **more}
        request = Request({"CONTENT_TYPE": "application/json", **environ}, body, self.reply)
        request.arrived = time.monotonic()
        self.capture.watch(request)
        return request

    def reply(self, response: Response) -> None:
        self.sent.append(response)
        self.records_when_sent.append(len(self.records))

    @property
    def records(self) -> list[Record]:
        return records(self.folder)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Caller]]:
    callers = []

    def begin(**settings: Any) -> Caller:
        callers.append(Caller(tmp_path, **settings))
        return callers[-1]

    yield begin
    for caller in callers:
        caller.spool.close()


@pytest.fixture
def caller(make: Callable[..., Caller]) -> Caller:
    return make()


def stream(*parts: bytes | Exception) -> Iterator[bytes]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


def test_request_and_answer_are_in_the_spool_before_the_answer_is_sent(caller: Caller) -> None:
    before = time.time()
    response = Response(200, JSON, b"[1]")

    caller.request(b'{"data": [[1, 2]]}', HTTP_X_REQUEST_ID="r-1").reply(response)

    assert caller.sent == [response]
    assert caller.records_when_sent == [1]
    [record] = caller.records
    assert (record.request, record.response) == (b'{"data": [[1, 2]]}', b"[1]")
    arrived, duration = record.head.pop("time"), record.head.pop("duration_ms")
    assert before - 1 < arrived <= time.time()
    assert 0 <= duration < 60_000
    assert record.head == {
        "kind": "exchange",
        "id": "r-1",
        "correlation": "r-1",
        "status": 200,
        "method": "POST",
        "path": "/score",
        "query": "",
        "addressed": False,
        "request": {"type": "application/json", "size": 18, "kept": 18},
        "response": {"type": "application/json", "size": 3, "kept": 3},
    }


@pytest.mark.parametrize(
    ("headers", "correlation"),
    [
        ({}, "r"),
        ({"HTTP_X_MS_CLIENT_REQUEST_ID": "order 7"}, "order 7"),
        ({"HTTP_X_MS_REQUEST_ID": "old name"}, "old name"),
        ({"HTTP_TRACEPARENT": f"00-{'a1' * 16}-{'b2' * 8}-01"}, "a1" * 16),
        ({"HTTP_TRACEPARENT": f"00-{'00' * 16}-{'b2' * 8}-01"}, "r"),
        ({"HTTP_TRACEPARENT": "garbage"}, "r"),
        ({"HTTP_TRACEPARENT": f"00-{'a1' * 16}-{'b2' * 8}-01", "HTTP_X_MS_CLIENT_REQUEST_ID": "é\ud800"}, "é\ud800"),
        ({"HTTP_X_MS_CLIENT_REQUEST_ID": "x" * 10_000}, "x" * 200),
    ],
)
def test_correlation_id_is_the_callers_own_else_that_of_its_trace_else_the_request_id(
    caller: Caller, headers: dict[str, str], correlation: str
) -> None:
    caller.request(variables={"HTTP_X_REQUEST_ID": "r", **headers}).reply(Response(200, [], b""))
    assert caller.records[0].head["correlation"] == correlation


def test_request_without_an_id_gets_one(caller: Caller) -> None:
    for _ in range(2):
        caller.request().reply(Response(200, [], b""))
    first, second = (record.head for record in caller.records)
    assert first["id"] == first["correlation"] != second["id"]
    assert len(first["id"]) == 36


@pytest.mark.parametrize(
    ("path", "method"),
    [("/", "GET"), ("/swagger.json", "GET"), ("/score", "OPTIONS"), ("/x", "POST")],
)
def test_what_asks_the_model_nothing_is_not_captured(caller: Caller, path: str, method: str) -> None:
    response = Response(200, [], b"")
    caller.request(path=path, method=method).reply(response)
    assert caller.sent == [response]
    assert not caller.records
    assert counts(caller.folder) == (0, 0, 0)
    assert CURRENT.get() is None


def test_request_that_names_its_version_is_captured_as_such(caller: Caller) -> None:
    caller.request(HTTP_X_CONTROLLED_ROLLOUT_ROUTED_BY="header").reply(Response(200, [], b""))
    assert caller.records[0].head["addressed"] is True


def test_request_is_freed_at_once_when_it_is_answered(caller: Caller) -> None:
    class Watched(Request):
        """A request that can be referred to weakly."""

        __slots__ = ("__weakref__",)

    request = Watched({"PATH_INFO": "/score", "REQUEST_METHOD": "POST", "QUERY_STRING": ""}, b"{}", caller.reply)
    caller.capture.watch(request)
    request.reply(Response(200, [], b""))
    freed = weakref.ref(request)
    gc.disable()
    try:
        del request
        assert freed() is None
    finally:
        gc.enable()


def test_get_request_is_captured_with_its_query(caller: Caller) -> None:
    caller.request(b"", method="GET", QUERY_STRING="a=1&b=%20").reply(Response(200, [], b"x"))
    assert caller.records[0].head["query"] == "a=1&b=%20"


def test_failures_and_time_outs_of_the_script_are_captured_as_the_caller_gets_them(caller: Caller) -> None:
    caller.request().reply(Response(500, JSON, b"failed"))
    request = caller.request()
    request.reply(timed_out(1.0))
    request.reply(Response(200, JSON, b"too late"))
    assert [response.status for response in caller.sent] == [500, 504]
    assert [record.head["status"] for record in caller.records] == [500, 504]


def test_bodies_above_the_bound_are_kept_as_size_and_sha_256(caller: Caller) -> None:
    long = bytes(range(256)) * 4
    caller.request(long).reply(Response(200, JSON, long[:1_000]))
    caller.request(long[:1_000]).reply(Response(200, JSON, stream(long[:700], long[700:])))
    assert list(caller.sent[1].body) == [long[:700], long[700:]]
    first, second = caller.records
    sha256 = hashlib.sha256(long).hexdigest()
    hashed = {"type": "application/json", "size": 1_024, "kept": 0, "sha256": sha256}
    assert (first.head["request"], first.request, first.response) == (hashed, b"", long[:1_000])
    assert (second.head["response"], second.request, second.response) == (hashed, long[:1_000], b"")


def test_streamed_answer_is_captured_before_the_caller_learns_that_it_has_all_of_it(caller: Caller) -> None:
    caller.request().reply(Response(200, JSON, stream(b"one", b"two")))
    [response] = caller.sent
    parts = iter(response.body)
    assert [next(parts), next(parts)] == [b"one", b"two"]
    assert not caller.records
    assert not list(parts)
    [record] = caller.records
    assert record.response == b"onetwo"
    response.body.close()  # type: ignore[union-attr]
    assert len(caller.records) == 1


def test_streamed_answer_that_is_broken_off_is_captured_as_not_complete(caller: Caller) -> None:
    caller.request().reply(Response(200, JSON, stream(b"one", StreamFailed())))
    with pytest.raises(StreamFailed):
        list(caller.sent[0].body)
    # The time of another one is over: the answer that says so breaks it off.
    request = caller.request()
    request.reply(Response(200, JSON, stream(b"one", b"two")))
    assert next(iter(caller.sent[1].body)) == b"one"
    request.reply(timed_out(1.0))
    caller.sent[1].body.close()  # type: ignore[union-attr]

    assert [response.status for response in caller.sent] == [200, 200, 504]
    kept = [(record.head["response"]["complete"], record.response) for record in caller.records]
    assert kept == [(False, b"one"), (False, b"one")]


def test_share_of_requests_is_chosen_by_their_ids(make: Callable[..., Caller]) -> None:
    caller = make(share=0.25)
    for number in range(400):
        caller.request(HTTP_X_REQUEST_ID=f"r-{number}").reply(Response(200, [], b""))
    kept = {record.head["id"] for record in caller.records}
    digests = {f"r-{number}": hashlib.sha256(f"r-{number}".encode()).digest()[:8] for number in range(400)}
    assert kept == {name for name, digest in digests.items() if int.from_bytes(digest, "big") < 2**62}
    assert len(caller.sent) == 400
    assert counts(caller.folder) == (len(kept), 0, 0), "those of other shares are not dropped"


@given(st.text(), st.floats(0.001, 1), st.floats(0.001, 1))
def test_a_larger_share_has_all_of_a_smaller_one(request_id: str, first: float, second: float) -> None:
    smaller, larger = sorted((first, second))
    assert is_in_share(request_id, larger) or not is_in_share(request_id, smaller)
    assert is_in_share(request_id, 1)


@pytest.mark.parametrize("body", [b"whole", [b"in ", b"parts"]])
def test_request_is_answered_when_it_cannot_be_captured(
    make: Callable[..., Caller], monkeypatch: pytest.MonkeyPatch, body: bytes | list[bytes]
) -> None:
    caller = make()

    def fail(*arguments: Any, **keywords: Any) -> str:
        raise RecursionError("too deep")

    request = caller.request()
    monkeypatch.setattr(capture_module, "quoted", fail)
    request.reply(Response(200, [], body if isinstance(body, bytes) else iter(body)))
    sent = caller.sent[0].body
    assert b"".join([sent] if isinstance(sent, bytes) else sent) == (body if isinstance(body, bytes) else b"in parts")
    assert counts(caller.folder) == (0, 1, 0)

    # Not even the ids can be found.
    request = Request({}, b"", caller.reply)
    caller.capture.watch(request)
    request.reply(Response(201, [], b""))
    assert caller.sent[1].status == 201
    assert counts(caller.folder) == (0, 2, 0)


NUMBERS = st.floats() | st.integers() | st.booleans() | st.none() | st.text()
# Such as no JSON of RFC 8259 has: NaN, halves of surrogate pairs.
BODIES = st.binary(max_size=3_000) | st.recursive(NUMBERS, st.lists, max_leaves=20).map(
    lambda v: json.dumps(v).encode()
)
LATIN_1 = st.text(st.characters(max_codepoint=255), max_size=300)
HEADER_VARIABLES = ("HTTP_X_REQUEST_ID", "HTTP_TRACEPARENT", "HTTP_X_MS_CLIENT_REQUEST_ID", "CONTENT_TYPE")


@given(
    body=BODIES | st.integers(1, 500).map(lambda depth: b"[" * depth),
    variables=st.dictionaries(st.sampled_from(HEADER_VARIABLES), LATIN_1) | st.just({}),
    query=LATIN_1,
    parts=BODIES | st.lists(BODIES),
    status=st.integers(200, 599),
    content_type=LATIN_1,
)
def test_whatever_is_asked_and_answered_is_sent_and_kept_as_it_is(
    body: bytes, variables: dict[str, str], query: str, parts: bytes | list[bytes], status: int, content_type: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        caller = Caller(Path(folder), max_body_bytes=2_000)
        try:
            headers = [("Content-Type", content_type)]
            request = caller.request(body, variables={**variables, "QUERY_STRING": query})
            request.reply(Response(status, headers, parts if isinstance(parts, bytes) else iter(parts)))
            [sent] = caller.sent
            assert (sent.status, sent.headers) == (status, headers)
            assert (sent.body if isinstance(parts, bytes) else list(sent.body)) == parts
            [record] = caller.records
            whole = parts if isinstance(parts, bytes) else b"".join(parts)
            assert record.request == (body if len(body) <= 2_000 else b"")
            assert record.response == (whole if len(whole) <= 2_000 else b"")
            assert (record.head["status"], record.head["query"]) == (status, query)
            assert record.head["response"]["type"] == content_type
            assert record.head["request"]["size"] == len(body)
            assert counts(caller.folder) == (1, 0, 0)
        finally:
            caller.spool.close()
