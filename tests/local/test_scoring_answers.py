"""What a caller is told at each end of a request: real processes, real sockets."""

import http.client
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local.scoring_environment import DEADLINE_S, Replica, environment_python, start_replica

SCRIPT = """
import json, sys
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
    if not request.is_json:
        return AMLResponse(request.get_data(), 200)
    asked = json.loads(request.get_data())
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
