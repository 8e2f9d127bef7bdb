"""Equivalents of what the stock server's own tests look at, against the runtime (docs/scoring.md has the table)."""

import json
import uuid
from pathlib import Path

import pytest

from tests.local.scoring_environment import environment_python, start_replica

PLAIN = """
def init():
    print("Initializing")

def run(data, color="red"):
    print("A new request received~~~")
    if data == "fail":
        1 / 0
    return data
"""

RAW = """
import time
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse

def init(): pass

def items(number):
    for item in range(number):
        yield "item: " + str(item) + "\\n"

@rawhttp
def run(request: AMLRequest):
    what = request.args.get("what")
    if what == "nothing":
        return AMLResponse(None, 200)
    if what == "own id":
        response = AMLResponse("", 200)
        response.headers["x-request-id"] = "cannot-be-overwritten"
        return response
    if what == "failed":
        return AMLResponse("worse", 501, run_function_failed=False)
    if what == "stream":
        return AMLResponse(items(3), 200)
    return request.method
"""

SCHEMA = """
from inference_schema.schema_decorators import input_schema
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType

def init(): pass

@input_schema("num", StandardPythonParameterType(1))
@input_schema("size", StandardPythonParameterType(1))
def run(num, size=10, color="red"):
    return [num, size, color]
"""

LIST_SCHEMA = SCHEMA.replace('"num", StandardPythonParameterType(1)', '"num", StandardPythonParameterType([1, "a"])')


@pytest.fixture(scope="module")
def python() -> Path:
    return environment_python()


def test_ids_of_requests_are_made_passed_on_and_bounded(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        for body in ("fine", "fail"):
            made, own = replica.score(body).headers, replica.score(body, x_request_id="mine").headers
            legacy = replica.score(body, x_ms_request_id="A").headers
            client = replica.score(body, x_ms_client_request_id="A").headers
            both = replica.score(body, x_ms_request_id="A", x_ms_client_request_id="B").headers
            assert uuid.UUID(made["x-request-id"]) == uuid.UUID(made["x-ms-request-id"])
            assert made["x-ms-client-request-id"] is None
            assert (own["x-request-id"], own["x-ms-request-id"]) == ("mine", "mine")
            for one in (legacy, client):
                assert (one["x-ms-request-id"], one["x-ms-client-request-id"]) == ("A", "A")
            assert (both["x-ms-request-id"], both["x-ms-client-request-id"]) == ("A", "B")
        for name in ("x-request-id", "x-ms-request-id", "x-ms-client-request-id"):
            within = replica.request("GET", "/score", **{name: "A" * 100})
            over = replica.request("GET", "/score", **{name: "A" * 101})
            assert (within.status, over.status) == (200, 431)
            assert (over.headers["x-ms-request-id"], over.headers["x-ms-client-request-id"]) == (None, None)
            assert "must not exceed 100 characters" in over.json["message"]
        trace = replica.request("GET", "/score", TraceId="test-id")

    assert trace.headers["TraceId"] == "test-id"
    assert "x-ms-request-id header has been deprecated" in replica.log


def test_plain_run_gets_text_whatever_the_content_type_and_prints_once(python: Path, tmp_path: Path) -> None:
    text = '{"data": "some plain text"}'
    types = ("", "application/json", "text/plain", "application/octet-stream")
    query = "/score?a=1&b=x&c=1.2&d=[1,2]&e=null&f=%7B%22X%22:%22Y%22%7D&g=1&g=2"
    with start_replica(python, tmp_path, PLAIN) as replica:
        answers = [replica.score(text, Content_Type=content_type) for content_type in types]
        asked = replica.request("GET", query)
        broken = replica.score(b"\xff")
        options = replica.request("OPTIONS", "/score")
        printed = replica.log.count("azmlinfsrv.print - A new request received~~~")

    assert [answer.json for answer in answers] == [text] * len(types)
    assert float(answers[0].headers["x-ms-run-fn-exec-ms"]) >= 0
    expected = {"a": 1, "b": "x", "c": 1.2, "d": [1, 2], "e": None, "f": {"X": "Y"}, "g": [1, 2]}
    assert json.loads(asked.json) == expected
    assert (broken.status, "Input cannot be decoded as UTF-8" in broken.json["message"]) == (400, True)
    assert (options.status, options.body) == (200, b"")
    assert printed == len(types) + 1
    assert "azmlinfsrv.print - Initializing" in replica.log


def test_old_imports_empty_answers_own_ids_and_streams_with_rawhttp(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, RAW) as replica:
        nothing, own, failed, stream = (
            replica.request("GET", f"/score?what={what}") for what in ("nothing", "own%20id", "failed", "stream")
        )
        methods = [replica.request(method, "/score").json for method in ("GET", "POST", "OPTIONS")]

    assert nothing.json == {}
    assert uuid.UUID(own.headers["x-request-id"])
    assert (failed.status, failed.headers["x-ms-run-function-failed"]) == (501, "True")
    assert stream.body == b"item: 0\nitem: 1\nitem: 2\n"
    assert methods == ["GET", "POST", "OPTIONS"]


def test_schema_takes_fields_and_refuses_what_is_no_object_of_them(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, SCHEMA, SERVICE_PATH_PREFIX="prefix") as replica:
        posted = [replica.score(body).json for body in ('{"num": 1}', '{"num": 1, "size": 5}', '{"num": 2, "more": 3}')]
        asked = [replica.request("GET", f"/score?{query}").json for query in ("num=1", "num=1&color=blue", "num=2&x=3")]
        bad = {body: replica.score(body) for body in ('{"size": 1}', "[1, 2]", "", "{")}
        missing = replica.request("GET", "/score?size=1")
        no_json = replica.score("1", Content_Type="text/plain")
        options = replica.request("OPTIONS", "/score")
        versions = {
            version: replica.request("GET", f"/swagger.json?version={version}") for version in ("2", "3", "3.0", "3.1")
        }
        unknown = replica.request("GET", "/swagger.json?version=3.0a")

    assert posted == [[1, 10, "red"], [1, 5, "red"], [2, 10, "red"]]
    assert asked == [[1, 10, "red"], [1, 10, "blue"], [2, 10, "red"]]
    assert {body: answer.status for body, answer in bad.items()} == dict.fromkeys(bad, 400)
    assert "A value is not provided for the 'num' parameter." in bad['{"size": 1}'].json["message"]
    assert "should be a JSON dictionary" in bad["[1, 2]"].json["message"]
    assert "POST body is empty" in bad[""].json["message"]
    assert (missing.status, no_json.status, options.status) == (400, 415, 200)
    assert versions["2"].json["swagger"] == "2.0"
    assert "/prefix/score" in versions["2"].json["paths"]
    assert versions["3"].json == versions["3.0"].json
    assert (versions["3"].json["openapi"], versions["3.1"].json["openapi"]) == ("3.0.3", "3.1.0")
    assert (unknown.status, "is not valid" in unknown.json["message"]) == (404, True)


@pytest.mark.parametrize("value", ["false", "notgood"])
def test_version_header_can_be_left_out_and_own_descriptions_are_served(
    python: Path, tmp_path: Path, value: str
) -> None:
    (tmp_path / "app").mkdir()
    for name in ("swagger2", "swagger3"):
        (tmp_path / "app" / f"{name}.json").write_text(f'{{"mine": "{name}"}}')
    with start_replica(python, tmp_path, LIST_SCHEMA, SERVER_VERSION_LOG_RESPONSE_ENABLED=value) as replica:
        answer = replica.score('{"num": [1, "a"]}')
        second, third = (replica.request("GET", f"/swagger.json?version={version}").json for version in (2, 3))
        mixed = replica.request("GET", "/swagger.json?version=3.1")

    assert answer.json == [[1, "a"], 10, "red"]
    assert answer.headers["x-ms-server-version"] is None
    assert (second, third) == ({"mine": "swagger2"}, {"mine": "swagger3"})
    assert mixed.json["openapi"] == "3.1.0"
