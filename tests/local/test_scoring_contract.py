"""Stock user scripts run unchanged: each kind is served by a real process and called over HTTP."""

import json
from pathlib import Path

import pytest

from tests.local.scoring_environment import environment_python, start_replica

PLAIN = """
import os

def init():
    global model
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "score.py")) as file:
        model = len(file.read())
    print("init has run")

def run(data):
    print("run got", type(data).__name__)
    if data == "raise":
        raise ValueError("the model is unwell")
    if data == "unserialisable":
        return object()
    return {"length": len(data), "model": model > 0}
"""

RAW = """
from azureml_inference_server_http.api.aml_request import AMLRequest, rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

def init():
    pass

@rawhttp
def run(request):
    if request.method == "GET":
        return AMLResponse("q=" + request.args.get("q", ""), 200)
    if request.headers.get("X-Want"):
        return AMLResponse({"why": "asked"}, int(request.headers["X-Want"]), json_str=True)
    if request.form:
        return {"form": request.form.get("a"), "data": request.get_data(as_text=True)}
    if request.headers.get("X-Stream"):
        from flask import Response
        return Response((part for part in (b"one,", b"two,", b"three")), mimetype="text/csv")
    return AMLResponse(request.get_data()[::-1], 200, {"Content-Type": "image/png", "X-Extra": "a,b"})
"""

NUMPY = """
import numpy as np
from inference_schema.schema_decorators import input_schema, output_schema
from inference_schema.parameter_types.numpy_parameter_type import NumpyParameterType

def init():
    pass

@input_schema("data", NumpyParameterType(np.array([[1.0, 2.0]])))
@output_schema(NumpyParameterType(np.array([3.0])))
def run(data):
    assert isinstance(data, np.ndarray)
    return data.sum(axis=1).tolist()
"""

PANDAS = """
import pandas as pd
from inference_schema.schema_decorators import input_schema, output_schema
from inference_schema.parameter_types.pandas_parameter_type import PandasParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType

def init():
    pass

@input_schema("table", PandasParameterType(pd.DataFrame({"a": [1], "b": [2]})))
@input_schema("factor", StandardPythonParameterType(2))
@output_schema(StandardPythonParameterType([1]))
def run(table, factor=10):
    assert isinstance(table, pd.DataFrame)
    return (table["a"] * factor).tolist()
"""

HEADERS = """
def init():
    pass

def run(data, request_headers):
    return {"data": data, "x-caller": request_headers.get("X-Caller"), "others": sorted(request_headers)}
"""

SAME_THREAD = """
import asyncio, os, signal, sqlite3, threading

import neighbour

def init():
    global database, thread
    database = sqlite3.connect(":memory:")
    thread = threading.get_ident()

def run(data):
    database.execute("select 1")
    return {
        "same": thread == threading.get_ident(),
        "main": threading.current_thread() is threading.main_thread(),
        "loop": asyncio.run(asyncio.sleep(0, "ran")),
        "folder": os.path.basename(os.getcwd()),
        "neighbour": neighbour.NAME,
    }
"""


@pytest.fixture(scope="module")
def python() -> Path:
    return environment_python()


def test_plain_run_gets_the_body_as_text_and_its_return_value_is_sent_as_json(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.score("[[1, 2]]")

    assert response.status == 200
    assert response.json == {"length": 8, "model": True}
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["x-ms-run-function-failed"] == "False"
    assert float(response.headers["x-ms-run-fn-exec-ms"]) >= 0
    assert response.headers["x-ms-server-version"] == "azmlinfsrv/1.5.1"
    assert "init has run" in replica.log
    assert "run got str" in replica.log


def test_request_ids_are_returned_and_too_long_ones_refused(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        named = replica.score(x_request_id="mine", x_ms_client_request_id="theirs")
        too_long = replica.score(x_request_id="x" * 101)

    assert (named.headers["x-request-id"], named.headers["x-ms-client-request-id"]) == ("mine", "theirs")
    assert too_long.status == 431


def test_run_that_raises_is_a_500_in_the_stock_form_and_the_traceback_is_logged(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.score("raise")
        after = replica.score("fine")

    assert response.status == 500
    assert response.headers["x-ms-run-function-failed"] == "True"
    assert response.json == {"message": "An unexpected error occurred in scoring script. Check the logs for more info."}
    assert "ValueError: the model is unwell" in replica.log
    assert after.status == 200


def test_return_value_that_is_not_json_is_a_500(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.score("unserialisable")

    assert response.status == 500
    assert "not JSON serializable" in replica.log


def test_body_of_5_mb_arrives_whole(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.score("a" * 5_000_000)

    assert response.json["length"] == 5_000_000


def test_body_sent_as_a_form_reaches_run_whole(python: Path, tmp_path: Path) -> None:
    """The stock server hands run() an empty string here: `curl -d` sends this content type."""
    body = '{"data": "x=1&y=2"}'
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.score(body, Content_Type="application/x-www-form-urlencoded")

    assert response.json["length"] == len(body)


def test_chunked_body_arrives_whole(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.request("POST", "/score", iter([b"abc", b"defgh"]))

    assert response.json["length"] == 8


def test_get_passes_the_query_as_json(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.request("GET", "/score?a=1")

    assert response.json["length"] == len(json.dumps({"a": 1}))


def test_unknown_paths_and_methods_get_the_status_of_the_stock_server(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PLAIN) as replica:
        unknown = replica.request("GET", "/nothing")
        wrong = replica.request("PUT", "/score", "x")
        options = replica.request("OPTIONS", "/score")

    assert (unknown.status, wrong.status, options.status) == (404, 405, 200)
    assert "not found" in unknown.json["message"]


def test_rawhttp_gets_the_request_and_returns_status_headers_and_bytes(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, RAW) as replica:
        reversed_bytes = replica.score(b"\x00\xffabc", Content_Type="application/octet-stream")
        not_found = replica.score(X_Want="404")
        failed = replica.score(X_Want="500")
        query = replica.request("GET", "/score?q=v")

    assert (reversed_bytes.status, reversed_bytes.body) == (200, b"cba\xff\x00")
    assert reversed_bytes.headers["Content-Type"] == "image/png"
    assert reversed_bytes.headers.get_all("X-Extra") == ["a", "b"]
    assert (not_found.status, not_found.json) == (404, {"why": "asked"})
    assert (failed.status, failed.headers["x-ms-run-function-failed"]) == (500, "True")
    assert query.body == b"q=v"


def test_rawhttp_script_gets_form_fields(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, RAW) as replica:
        response = replica.score("a=1&b=2", Content_Type="application/x-www-form-urlencoded")

    assert response.json["form"] == "1"


def test_rawhttp_script_may_stream_its_response(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, RAW) as replica:
        response = replica.score(X_Stream="yes")
        after = replica.score(X_Stream="yes")

    assert response.body == after.body == b"one,two,three"
    assert response.headers["Content-Type"].startswith("text/csv")


def test_numpy_schema_converts_the_input_and_describes_itself(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, NUMPY) as replica:
        response = replica.score('{"data": [[1, 2], [3, 4]]}')
        not_json = replica.score("1", Content_Type="text/plain")
        missing = replica.score('{"other": 1}')
        swagger2 = replica.request("GET", "/swagger.json")
        swagger3 = replica.request("GET", "/swagger.json?version=3")
        unknown = replica.request("GET", "/swagger.json?version=9")

    assert response.json == [3.0, 7.0]
    assert (not_json.status, missing.status) == (415, 400)
    assert swagger2.json["definitions"]["ServiceInput"]["example"] == {"data": [[1.0, 2.0]]}
    assert swagger3.json["openapi"].startswith("3.0")
    assert unknown.status == 404


def test_body_that_is_not_json_is_the_callers_fault_with_a_schema(python: Path, tmp_path: Path) -> None:
    bodies = (b'{"data": \xff\xfe}', b"[" * 100_000, b'{"data": ' + b"9" * 5_000 + b"}", b"{", b"", b"[]", b"\xff")
    with start_replica(python, tmp_path, NUMPY) as replica:
        responses = [replica.score(body) for body in bodies]
        query = replica.request("GET", "/score?data=" + "[" * 20_000)
        after = replica.score('{"data": [[1, 2]]}')
        log = replica.log

    assert [response.status for response in responses] == [400] * len(bodies)
    assert query.status == 400
    assert after.json == [3.0]
    assert "Traceback" not in log


def test_pandas_and_standard_schemas_convert_inputs_and_keep_defaults(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, PANDAS) as replica:
        both = replica.score('{"table": [{"a": 1, "b": 2}, {"a": 3, "b": 4}], "factor": 2}')
        default = replica.score('{"table": [{"a": 1, "b": 2}]}')

    assert both.json == [2, 6]
    assert default.json == [10]


def test_run_gets_request_headers_on_request(python: Path, tmp_path: Path) -> None:
    with start_replica(python, tmp_path, HEADERS, SECRET_IN_ENVIRONMENT="x", HTTP_FROM_ENVIRONMENT="x") as replica:
        response = replica.score("d", X_Caller="tests").json

    assert (response["data"], response["x-caller"]) == ("d", "tests")
    assert "From-Environment" not in response["others"]


def test_init_and_run_share_the_main_thread_and_the_project_folder(python: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "neighbour.py").write_text("NAME = 'beside score.py'")
    with start_replica(python, tmp_path, SAME_THREAD) as replica:
        response = replica.score()

    assert response.json == {"same": True, "main": True, "loop": "ran", "folder": "app", "neighbour": "beside score.py"}


def test_project_files_may_have_names_of_the_standard_library(python: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    for name in ("queue", "selectors", "socket", "argparse", "log", "server"):
        (tmp_path / "app" / f"{name}.py").write_text("raise RuntimeError('imported instead of the standard library')")
    with start_replica(python, tmp_path, PLAIN) as replica:
        response = replica.score()

    assert response.status == 200


def test_nothing_is_written_into_the_project_folder(python: Path, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "neighbour.py").write_text("NAME = 'beside score.py'")
    with start_replica(python, tmp_path, SAME_THREAD) as replica:
        replica.score()

    assert {path.name for path in (tmp_path / "app").iterdir()} == {"neighbour.py", "score.py"}
