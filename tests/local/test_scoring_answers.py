"""What a caller is told at each end of a request: real processes, real sockets."""

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.local.scoring_environment import (
    DEADLINE_S,
    HOLD,
    Replica,
    environment_python,
    start_held_request,
    start_replica,
)

SCRIPT = """
import json, os, sys
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from flask import Response

def init():
    pass

def stream(failure, after):
    for _ in range(after):
        yield b"part,"
    if failure == "exit":
        sys.exit("done with it")
    if failure == "int":
        yield 5
    if failure:
        raise ValueError("the stream failed")

@rawhttp
def run(request):
    if request.headers.get("X-Echo"):
        return AMLResponse(json.dumps(dict(request.headers) | request.args), 200)
    if not request.is_json:
        return AMLResponse(request.get_data(), 200)
    asked = json.loads(request.get_data())
    if "close" in asked:
        os.close(1)
        os.close(2)
    if "fail" in asked:
        raise ValueError("only for the log")
    if "status" in asked:
        return AMLResponse("x", asked["status"])
    if "header" in asked:
        return AMLResponse("x", 200, asked["header"])
    return Response(stream(asked["failure"], asked["after"]))
"""


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    with start_replica(environment_python(), tmp_path_factory.mktemp("answers"), SCRIPT) as replica:
        yield replica


def exchange(replica: Replica, request: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes on a connection, and return all that comes back until the other end closes it."""
    with socket.create_connection(("127.0.0.1", replica.port), timeout=DEADLINE_S) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    return received


def test_answers_that_cannot_be_sent_are_a_500_and_the_process_lives(replica: Replica) -> None:
    asked = ('{"status": 42}', '{"status": -1}', '{"status": 1000}', '{"header": {"X-A": "\\ud800"}}')
    refused = [replica.score(body) for body in asked]
    after = replica.score('{"header": {"X-A": "fine", "Transfer-Encoding": "chunked"}}')

    assert {response.status for response in refused} == {500}
    assert {response.headers["x-ms-run-function-failed"] for response in refused} == {"True"}
    assert (after.status, after.headers["X-A"], after.body) == (200, "fine", b"x")
    assert "the status '1000 UNKNOWN' is not in 200 … 599" in replica.log
    assert "the header X-A has a character that is not sent in headers: '\\ud800'" in replica.log


def test_answers_that_cannot_be_sent_cost_no_slot(tmp_path: Path) -> None:
    together = SCRIPT.replace("def init():", "import threading\nbarrier = threading.Barrier(4)\n\ndef init():").replace(
        "    asked = ", "    if b'together' in request.get_data():\n        barrier.wait(30)\n    asked = "
    )
    bad = ('{"status": 42}', '{"header": {"X-A": "\\ud800"}}', '{"failure": "int", "after": 0}')
    with (
        ThreadPoolExecutor(4) as pool,
        start_replica(environment_python(), tmp_path, together, REPLICA_MAX_CONCURRENT_REQUESTS="4") as replica,
    ):
        refused = {replica.score(body).status for body in 4 * bad}
        scored = [
            future.result().status
            for future in [pool.submit(replica.score, '{"status": 201, "together": 1}') for _ in range(4)]
        ]

    assert refused == {500}
    assert scored == [201] * 4


@pytest.mark.parametrize("failure", ["raises", "int"])
def test_streamed_answer_that_fails_before_its_first_bytes_is_a_500(replica: Replica, failure: str) -> None:
    response = replica.score(f'{{"failure": "{failure}", "after": 0}}')

    assert (response.status, response.headers["x-ms-run-function-failed"]) == (500, "True")


@pytest.mark.parametrize("failure", ["raises", "int"])
def test_streamed_answer_that_fails_later_is_broken_off_without_its_last_chunk(replica: Replica, failure: str) -> None:
    with pytest.raises(http.client.IncompleteRead):
        replica.score(f'{{"failure": "{failure}", "after": 2}}')
    whole = replica.score('{"failure": "", "after": 2}')

    assert whole.body == b"part,part,"
    assert "its connection is broken off" in replica.log


def test_streamed_answer_to_an_http_1_0_caller_that_fails_is_a_500(replica: Replica) -> None:
    """Such a caller takes the end of the connection for the end of the answer."""
    body = b'{"failure": "raises", "after": 2}'
    head = b"POST /score HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    assert exchange(replica, head + body).startswith(b"HTTP/1.1 500 ")


def test_streamed_answer_that_is_not_at_its_end_in_time_is_broken_off_and_frees_its_slot(tmp_path: Path) -> None:
    endless = "from flask import Response\ndef init(): pass\ndef run(data):\n    return Response(parts(data))\n"
    parts = "def parts(data):\n    yield b'first'\n    while data == 'endless':\n        yield b'more'\n"
    with start_replica(environment_python(), tmp_path, endless + parts, SCORING_TIMEOUT_MS="300") as replica:
        with pytest.raises(http.client.IncompleteRead):
            replica.score("endless")
        old = exchange(replica, b"POST /score HTTP/1.0\r\nContent-Length: 7\r\n\r\nendless")
        after = replica.score("short")

    assert old.startswith(b"HTTP/1.1 504 ")
    assert (after.status, after.body) == (200, b"first")


@pytest.mark.parametrize("after", [0, 2])
def test_exit_of_the_script_in_a_streamed_answer_ends_the_replica(tmp_path: Path, after: int) -> None:
    with start_replica(environment_python(), tmp_path, SCRIPT) as replica:
        if after:
            with pytest.raises(http.client.IncompleteRead):
                replica.score(f'{{"failure": "exit", "after": {after}}}')
        else:
            assert replica.score(f'{{"failure": "exit", "after": {after}}}').status == 500
        code = replica.wait()

    assert code == 1
    assert "SystemExit('done with it')" in replica.log


CHUNKED = b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
WITH_LENGTH = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        CHUNKED + b"5\r\nhel",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhello\r\n0\r\n",
        CHUNKED + b"5\r\nhello\r\nrubbish\r\n0\r\n\r\n",
        CHUNKED + b"5\r\nhelloo\r\n0\r\n\r\n",
        CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
        WITH_LENGTH + b"hel",
        WITH_LENGTH.replace(b"5", b"+5") + b"hello",
    ],
    ids=["in a chunk", "after a chunk", "in the end", "rubbish", "longer", "negative", "length", "signed length"],
)
def test_body_that_is_cut_off_or_garbled_is_a_400_and_run_is_not_called(replica: Replica, request_bytes: bytes) -> None:
    received = exchange(replica, request_bytes, half_close=True)

    assert received.startswith(b"HTTP/1.1 400 ")
    assert b'"the request cannot be read: ' in received


def test_caller_that_has_closed_its_sending_side_is_answered(replica: Replica) -> None:
    received = exchange(replica, WITH_LENGTH + b"hello", half_close=True)

    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"\r\n\r\nhello")


def test_header_bytes_outside_of_ascii_arrive_as_latin_1(replica: Replica) -> None:
    request = (
        b"GET /score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Echo: y\r\n"
        b"X-Latin: caf\xe9\r\nX-UTF-8: caf\xc3\xa9\r\nx-request-id: \xe9\r\nContent-Type: text/\xe9\r\n\r\n"
    )
    head, _, body = exchange(replica, request).partition(b"\r\n\r\n")
    seen = json.loads(body)

    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"\r\nx-request-id: \xe9\r\n" in head
    assert (seen["X-Latin"], seen["X-Utf-8"], seen["Content-Type"]) == ("café", "cafÃ©", "text/é")


def test_query_with_braces_and_quotes_is_taken(replica: Replica) -> None:
    received = exchange(
        replica, b'GET /score?data={"a":[1]} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Echo: y\r\n\r\n'
    )

    assert received.startswith(b"HTTP/1.1 200 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["data"] == '{"a":[1]}'


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /score?a=\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"rubbish\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 70_000 + b"\r\n\r\n", 431),
    ],
    ids=["control character", "rubbish", "HTTP/2", "CONNECT", "long headers"],
)
def test_what_the_server_itself_refuses_has_words_for_the_caller_and_a_line_in_the_log(
    replica: Replica, request_bytes: bytes, status: int
) -> None:
    lines = replica.log.count("refused a request: ")
    received = exchange(replica, request_bytes)

    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert b'{"message": "the request cannot be read: ' in received
    assert replica.log.count("refused a request: ") == lines + 1


def test_http_1_0_is_answered(replica: Replica) -> None:
    health = exchange(replica, b"GET / HTTP/1.0\r\n\r\n")
    score = exchange(replica, b"POST /score HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi")
    kept = b"POST /score HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi"
    twice = exchange(replica, kept + b"GET / HTTP/1.0\r\n\r\n")

    assert (health.startswith(b"HTTP/1.1 200 "), health.endswith(b"Healthy")) == (True, True)
    assert (score.startswith(b"HTTP/1.1 200 "), score.endswith(b"\r\n\r\nhi")) == (True, True)
    assert twice.count(b"HTTP/1.1 200 ") == 2


def test_requests_that_are_sent_ahead_are_answered_in_their_order(replica: Replica) -> None:
    many = b"".join(
        b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n%03d" % number
        + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        for number in range(200)
    )
    received = exchange(replica, many, half_close=True)

    parts = received.split(b"HTTP/1.1 200 ")[1:]
    assert [part.partition(b"\r\n\r\n")[2] for part in parts] == [
        body for number in range(200) for body in (b"%03d" % number, b"Healthy")
    ]


def test_refusal_of_a_full_queue_reaches_a_caller_who_still_sends(tmp_path: Path) -> None:
    settings = {"MAX_QUEUED_REQUESTS": "1", "MAX_REQUEST_WAIT_TIME_MS": "60000"}
    gate = tmp_path / "gate"
    with (
        ThreadPoolExecutor(1) as pool,
        start_replica(environment_python(), tmp_path, HOLD, environment=settings) as replica,
        socket.create_connection(("127.0.0.1", replica.port)) as queued,
    ):
        held = start_held_request(replica, pool, gate)
        queued.sendall(WITH_LENGTH + b"hello")
        # Connections are accepted in order: once this request is answered, the one before it is in the queue.
        replica.request("GET", "/")
        refused = [replica.score(b"a" * size) for size in (2, 5_000_000, 20_000_000)]
        gate.touch()
        status = held.result().status

    assert [response.status for response in refused] == [503] * 3
    assert all("overloaded" in response.json["message"] for response in refused)
    assert status == 200


def test_slow_uploads_take_no_place_in_the_queue(replica: Replica) -> None:
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\na"
    with ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(socket.create_connection(("127.0.0.1", replica.port))).sendall(head)
        statuses = {replica.score("{}", Content_Type="text/plain").status for _ in range(20)}

    assert statuses == {200}


def test_a_script_that_closes_its_output_sends_no_line_of_the_log_to_a_caller(replica: Replica) -> None:
    assert replica.score('{"close": 1, "status": 200}').status == 200
    caller = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=DEADLINE_S)

    def scored() -> int:
        caller.request("POST", "/score", '{"status": 200}', {"Content-Type": "application/json"})
        response = caller.getresponse()
        response.read()
        return response.status

    assert scored() == 200
    assert replica.score('{"fail": 1}').status == 500
    assert scored() == 200
    caller.close()
