"""Capture in a real replica: every answered request is in the spool once, and no answer depends on it."""

import re
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.local.scoring_environment import Replica, Response, environment_python, start_replica
from tests.polling import wait_until
from tests.unit.scoring.spool_reader import counts, is_locked, records

# Answers in every form that there is.
SCRIPT = """
import json, time
from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse
from flask import Response

def init():
    pass

def pieces(failing):
    yield b"first"
    yield b"second"
    if failing:
        raise ValueError("asked for")

@rawhttp
def run(request):
    asked = request.get_data()
    if asked == b"raise":
        raise ValueError("asked for")
    if asked == b"slow":
        time.sleep(5)
    if asked in (b"stream", b"failing stream"):
        return Response(pieces(asked != b"stream"), content_type="text/plain")
    if asked == b"teapot":
        return AMLResponse({"short": "and stout"}, 418, json_str=True)
    return Response(asked or request.query_string, content_type="application/octet-stream")
"""
BODIES = [b'{"data": [[1, 2]]}', b"\x00\xff" * 40, b"", b"raise", b"slow", b"stream", b"failing stream", b"teapot"]
OTHERS = ("HEAD", "PUT", "DELETE", "PATCH")
# What differs between two answers to the same request.
CHANGING = re.compile(
    r"date|x-ms-run-fn-exec-ms|x-controlled-rollout-scoring-ms|x-request-id|x-ms-request-id", re.IGNORECASE
)


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("capture") / "spool"


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, spool: Path) -> Iterator[tuple[Replica, Replica]]:
    """Two replicas with the same script, the second one with capture."""
    settings = {"SCORING_TIMEOUT_MS": "1000", "REPLICA_MAX_CONCURRENT_REQUESTS": "2"}
    capture = {"CAPTURE_SPOOL": str(spool), "CAPTURE_MAX_BODY_BYTES": "1000"}
    python = environment_python()
    with (
        start_replica(python, tmp_path_factory.mktemp("off"), SCRIPT, environment=settings) as off,
        start_replica(python, tmp_path_factory.mktemp("on"), SCRIPT, environment=settings | capture) as on,
    ):
        yield off, on


def answer(replica: Replica, body: bytes, **headers: str) -> tuple[int, list[tuple[str, str]], bytes] | None:
    """Return what a caller gets, but for what differs from request to request; None for a broken connection."""
    try:
        response = replica.score(body, **headers)
    except (HTTPException, ConnectionError):
        return None
    return response.status, [pair for pair in response.headers.items() if not CHANGING.match(pair[0])], response.body


def test_answers_with_capture_are_byte_for_byte_those_without_and_each_is_in_the_spool(
    replicas: tuple[Replica, Replica], spool: Path
) -> None:
    bodies = {f"answers-{number}": body for number, body in enumerate(BODIES)}
    with ThreadPoolExecutor(2) as pool:
        # Side by side, as some take their time.
        off, on = pool.map(
            lambda replica: {name: answer(replica, body, X_Request_Id=name) for name, body in bodies.items()}, replicas
        )
    assert on == off
    replicas[1].request("GET", "/score?a=1", X_Request_Id="answers-get")
    # A monitor's HEAD, and bodies that are not taken: the router counts them as answered.
    refused = {
        method: replicas[1].request(method, "/score", X_Request_Id=f"answers-{method}").status for method in OTHERS
    }
    too_large = replicas[1].request("POST", "/score", Content_Length="100000001", X_Request_Id="answers-too-large")
    refused["too-large"] = too_large.status
    for method, path in (("GET", "/"), ("OPTIONS", "/score"), ("GET", "/swagger.json"), ("POST", "/nowhere")):
        replicas[1].request(method, path, X_Request_Id="answers-none")

    kept = {record.head["id"]: record for record in records(spool) if record.head["id"].startswith("answers-")}
    assert set(kept) == {*bodies, "answers-get", *(f"answers-{name}" for name in refused)}
    assert refused == {name: kept[f"answers-{name}"].head["status"] for name in refused}
    assert (refused["PUT"], refused["too-large"]) == (405, 413)
    for name, body in bodies.items():
        got = on[name]
        assert kept[name].request == body
        assert kept[name].head["response"].get("complete", True) == (got is not None)
        assert (kept[name].head["status"], kept[name].response) == ((got[0], got[2]) if got else (200, b"firstsecond"))
    assert (kept["answers-get"].head["query"], kept["answers-get"].response) == ("a=1", b"a=1")
    assert counts(spool).dropped == 0


def test_body_of_any_size_is_scored_and_the_spool_has_its_size(replicas: tuple[Replica, Replica], spool: Path) -> None:
    large = bytes(100_000_000)
    assert replicas[1].score(large, X_Request_Id="large").body == large
    [head] = [record.head for record in records(spool) if record.head["id"] == "large"]
    assert (head["request"]["size"], head["request"]["kept"], head["response"]["kept"]) == (len(large), 0, 0)
    assert head["request"]["sha256"] == head["response"]["sha256"]


def test_no_answered_request_is_missing_or_doubled_when_the_replica_is_killed(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    answered: list[str] = []
    settings = {"REPLICA_MAX_CONCURRENT_REQUESTS": "4", "WORKER_COUNT": "2", "CAPTURE_SPOOL": str(spool)}
    with start_replica(environment_python(), tmp_path, SCRIPT, environment=settings) as replica:

        def call(caller: int) -> None:
            for number in range(100_000):
                try:
                    response: Response = replica.score(b'{"data": 1}', X_Request_Id=f"{caller}-{number}")
                except (OSError, HTTPException):
                    return
                if response.status == 200:
                    answered.append(f"{caller}-{number}")

        threads = [threading.Thread(target=call, args=(caller,)) for caller in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answered) > 200, "200 requests are answered")
        for pid in replica.workers():
            assert any(is_locked(file) for file in spool.glob(f"*-{pid}-*.counts"))
        replica.process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
        replica.wait()
        wait_until(lambda: not any(map(is_locked, spool.iterdir())), "the workers have ended")

    kept = [record.head["id"] for record in records(spool)]
    assert len(kept) == len(set(kept))
    assert set(answered) <= set(kept)
    assert len(kept) - len(answered) <= 8, "those that were being answered"
    assert counts(spool).dropped == 0


def test_requests_are_answered_past_the_bound_of_the_spool_and_the_log_says_how_many_are_not_kept(
    tmp_path: Path,
) -> None:
    settings = {"CAPTURE_SPOOL": str(tmp_path / "spool"), "CAPTURE_SPOOL_BYTES": "20000"}
    with start_replica(environment_python(), tmp_path, SCRIPT, environment=settings) as replica:
        began = time.monotonic()
        assert [replica.score(bytes(4_000)).status for _ in range(20)] == [200] * 20
        assert time.monotonic() - began < 10
        assert replica.log.count("requests are answered but not captured") == 1
    captured, dropped, _ = counts(tmp_path / "spool")
    assert (captured + dropped, captured > 0, dropped > 0) == (20, True, True)


def test_setting_of_capture_that_is_not_valid_ends_the_replica_with_its_name(tmp_path: Path) -> None:
    settings = {"CAPTURE_SPOOL": str(tmp_path), "CAPTURE_SHARE": "2"}
    with start_replica(environment_python(), tmp_path, SCRIPT, ready=False, environment=settings) as replica:
        assert replica.wait() == 2
        assert "cannot serve: CAPTURE_SHARE='2' is not a share" in replica.log
