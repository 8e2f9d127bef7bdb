"""The telemetry store as a real process, queried by the unmodified Azure client."""

import gzip
import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from azure.core.exceptions import HttpResponseError
from azure.monitor.query import LogsBatchQuery, LogsQueryError, LogsQueryPartialResult, LogsQueryResult
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.local.telemetry_lab import PROTOBUF, Process, envelope, export


def test_a_span_is_seen_by_the_next_query_of_the_stock_client(store: Process) -> None:
    answer = store.send({"endpoint": "seen", "code": "404", "ms": 7.5})

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/x-protobuf"
    query = (
        "AppRequests | where tostring(Properties.endpoint) == 'seen' | project ResultCode, Success, DurationMs, Name"
    )
    assert store.rows(query, timedelta(hours=1)) == [["404", False, 7.5, "POST /api/v1/service/digits/score"]]


def test_gzip_is_unpacked_and_a_damaged_or_malformed_upload_loses_nothing_else(store: Process) -> None:
    packed = gzip.compress(export({"endpoint": "packed"}))
    headers = {**PROTOBUF, "Content-Encoding": "gzip"}

    assert store.http.post("/v1/traces", content=packed, headers=headers).status_code == 200
    for body, wrong in ((packed[:-9], headers), (b"\xff\xff\xff", PROTOBUF), (packed, PROTOBUF)):
        refused = store.http.post("/v1/traces", content=body, headers=wrong)
        assert refused.status_code == 400
        assert refused.content[:2] == b"\x08\x03"  # google.rpc.Status, INVALID_ARGUMENT
    assert store.http.post("/v1/traces", content=b"x", headers={"Content-Type": "text/plain"}).status_code == 415
    assert store.rows("AppRequests | where tostring(Properties.endpoint) == 'packed' | count") == [[1]]


def test_too_large_an_upload_is_refused_packed_or_not(store: Process) -> None:
    bomb = gzip.compress(b"\0" * (65 * 2**20))

    assert store.http.post("/v1/traces", content=b"\0" * (17 * 2**20), headers=PROTOBUF).status_code == 413
    packed = store.http.post("/v1/traces", content=bomb, headers={**PROTOBUF, "Content-Encoding": "gzip"})
    assert packed.status_code == 413


def test_invalid_spans_are_reported_as_a_partial_success(store: Process) -> None:
    request = ExportTraceServiceRequest.FromString(export({"endpoint": "half"}, {"endpoint": "half"}))
    request.resource_spans[0].scope_spans[0].spans[1].trace_id = b""

    answer = store.http.post("/v1/traces", content=request.SerializeToString(), headers=PROTOBUF)

    assert answer.status_code == 200
    assert ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans == 1
    assert store.rows("AppRequests | where tostring(Properties.endpoint) == 'half' | count") == [[1]]


@pytest.mark.parametrize("path", ["/v2/track", "/v2.1/track"])
def test_app_insights_envelopes_are_stored_and_an_invalid_one_is_named(store: Process, path: str) -> None:
    name = "event of " + path
    good = {
        "time": datetime.now(UTC).isoformat(),
        "iKey": store.key,
        "sampleRate": 25,
        "data": {"baseType": "EventData", "baseData": {"ver": 2, "name": name}},
    }
    bad = {**good, "iKey": "unknown"}

    answer = store.http.post(path, content=json.dumps([good, bad]))

    assert answer.status_code == 206
    body = answer.json()
    assert (body["itemsReceived"], body["itemsAccepted"], body["errors"][0]["index"]) == (2, 1, 1)
    assert store.rows(f"AppEvents | where Name == '{name}' | project ItemCount") == [[4]]
    lines = f"{json.dumps(good)}\n{json.dumps(good)}"
    packed = store.http.post(path, content=gzip.compress(lines.encode()), headers={"Content-Encoding": "gzip"})
    assert (packed.status_code, packed.json()["itemsAccepted"]) == (200, 2)
    assert store.http.post(path, content=json.dumps([bad])).status_code == 400
    assert store.http.post(path, content="[]").status_code == 400


def test_only_the_router_may_write_what_callers_saw(start: Callable[..., Process], tmp_path: Path) -> None:
    token = tmp_path / "upload.token"
    token.write_text("only-the-router")
    store = start(tmp_path / "data", upload_token_file=token)
    router = {"Authorization": "Bearer only-the-router"}
    event = {"baseType": "EventData", "baseData": {"ver": 2, "name": "sold"}}
    item = {"iKey": store.key, "time": datetime.now(UTC).isoformat(), "data": event}

    for wrong in ({}, {"Authorization": "Bearer another"}, {"Authorization": "only-the-router"}):
        assert store.http.post("/v1/traces", content=export({}), headers={**PROTOBUF, **wrong}).status_code == 401
        refused = store.http.post("/v2.1/track", json=[envelope(), {**item, "iKey": str(uuid.uuid4())}], headers=wrong)
        assert [error["message"] for error in refused.json()["errors"]] == [
            "iKey is not this store's instrumentation key",
            "iKey is not this store's instrumentation key",
        ]
        mixed = store.http.post("/v2.1/track", json=[{**envelope(), "iKey": store.key}, item], headers=wrong)
        assert (mixed.status_code, mixed.json()["itemsAccepted"]) == (206, 1)
        assert "only the router" in mixed.json()["errors"][0]["message"]
    assert store.http.post("/v1/traces", content=export({}), headers={**PROTOBUF, **router}).status_code == 200
    assert store.http.post("/v2.1/track", json=[envelope()], headers=router).status_code == 200

    assert (store.rows("AppRequests | count"), store.rows("AppEvents | count")) == ([[2]], [[3]])


@pytest.mark.parametrize(
    "of_a_browser",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Mode": "cors"},
    ],
)
def test_a_web_page_may_not_send_telemetry(store: Process, of_a_browser: dict[str, str]) -> None:
    item = json.dumps([{**envelope(endpoint="page"), "iKey": store.key}])
    text = {"Content-Type": "text/plain", **of_a_browser}

    assert store.http.post("/v1/traces", content=export({}), headers={**PROTOBUF, **of_a_browser}).status_code == 403
    assert store.http.post("/v2.1/track", content=item, headers=text).status_code == 403
    assert store.http.post("/v2.1/track", content=item, headers={"Content-Type": "text/plain"}).status_code == 415
    assert store.http.options("/v1/traces", headers=of_a_browser).status_code == 405
    named = {**PROTOBUF, "Host": "rebound.example"}
    assert store.http.post("/v1/traces", content=export({"endpoint": "page"}), headers=named).status_code == 403

    assert store.rows("AppRequests | where tostring(Properties.endpoint) == 'page' | count") == [[0]]


def test_resources_batches_and_statistics_are_answered_too(store: Process) -> None:
    store.send({"endpoint": "batch"})
    query = "AppRequests | where tostring(Properties.endpoint) == 'batch' | count"
    resource = "/subscriptions/s/resourceGroups/g/providers/microsoft.insights/components/app"

    with store.client() as client:
        by_resource = client.query_resource(resource, query, timespan=None, enforce_https=False)
        whole, broken, unknown = client.query_batch(
            [
                LogsBatchQuery(store.workspace, query, timespan=timedelta(hours=1), include_statistics=True),
                LogsBatchQuery(store.workspace, "nosuch | count", timespan=None),
                LogsBatchQuery("00000000-0000-0000-0000-000000000000", query, timespan=None),
            ],
            enforce_https=False,
        )

    assert isinstance(by_resource, LogsQueryResult)
    assert isinstance(whole, LogsQueryResult)
    assert isinstance(broken, LogsQueryError)
    assert isinstance(unknown, LogsQueryError)
    assert list(by_resource.tables[0].rows[0]) == [1]
    assert list(whole.tables[0].rows[0]) == [1]
    assert whole.statistics
    assert whole.statistics["query"]["executionTime"] >= 0
    assert broken.code == "BadArgumentError"
    assert "nosuch" in broken.message
    assert unknown.code == "WorkspaceNotFoundError"


def test_errors_have_the_http_statuses_of_azure(store: Process) -> None:
    with store.client() as client:
        with pytest.raises(HttpResponseError) as bad:
            client.query_workspace(store.workspace, "AppRequests | wherre", timespan=None, enforce_https=False)
        with pytest.raises(HttpResponseError) as unknown:
            client.query_workspace("other", "AppRequests", timespan=None, enforce_https=False)
        partial = client.query_workspace(
            store.workspace, "range x from 1 to 500001 step 1", timespan=None, enforce_https=False
        )
    assert (bad.value.status_code, unknown.value.status_code) == (400, 404)
    assert bad.value.error and bad.value.error.code == "BadArgumentError"
    assert isinstance(partial, LogsQueryPartialResult)
    assert partial.partial_error and partial.partial_error.code == "PartialError"
    assert len(partial.partial_data[0].rows) == 500_000
    assert store.http.post(f"/v1/workspaces/{store.workspace}/query", json={"query": "print 1"}).status_code == 401
    rebound = {"Host": "evil.example", "Authorization": "Bearer x"}
    assert store.http.post(f"/v1/workspaces/{store.workspace}/query", json={}, headers=rebound).status_code == 403
    assert store.http.post("/api/profiles/x").status_code == 404
    assert store.http.get("/healthz").json() == {"status": "ok", "workspace_id": store.workspace}


def test_uploads_go_on_while_queries_run(store: Process) -> None:
    stop = threading.Event()
    sent: list[int] = []

    def upload() -> None:
        with httpx.Client(base_url=store.url) as http:
            while not stop.is_set():
                body = export(*[{"endpoint": "busy"}] * 50)
                assert http.post("/v1/traces", content=body, headers=PROTOBUF).status_code == 200
                sent.append(50)

    uploader = threading.Thread(target=upload)
    uploader.start()
    query = "AppRequests | where tostring(Properties.endpoint) == 'busy' | summarize sum(ItemCount)"
    for _ in range(10):
        before = sum(sent)
        [[count]] = store.rows(query)
        assert count >= before
    stop.set()
    uploader.join(30)
    assert store.rows(query) == [[sum(sent)]]


def test_rows_and_workspace_id_survive_sigterm_and_sigkill(start: Callable[..., Process]) -> None:
    first = start()
    first.send({"version": "control"})
    assert first.end() == (0, "")
    second = start()
    assert (second.workspace, second.key) == (first.workspace, first.key)
    second.send({"version": "treatment"})
    assert second.rows("AppRequests | count") == [[2]]  # seen by a query: on disk
    second.end(signal.SIGKILL)

    third = start()

    assert third.rows("AppRequests | count") == [[2]]


def test_rows_accepted_a_second_ago_survive_sigkill(start: Callable[..., Process]) -> None:
    first = start()
    first.send({"version": "control"})
    sent = time.monotonic()
    while time.monotonic() < sent + 1.0:  # the durability that is promised
        time.sleep(0.05)
    first.end(signal.SIGKILL)

    assert start().rows("AppRequests | count") == [[1]]


def test_only_the_token_in_the_file_may_query(start: Callable[..., Process], tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse\n")
    process = start(tmp_path / "data", token_file=token_file)

    with process.client("wrong") as client, pytest.raises(HttpResponseError) as refused:
        client.query_workspace(process.workspace, "print 1", timespan=None, enforce_https=False)
    assert refused.value.status_code == 401
    with process.client("correct-horse") as client:
        client.query_workspace(process.workspace, "print 1", timespan=None, enforce_https=False)
    _, errors = process.end()
    assert "correct-horse" not in errors + process.line


def test_a_second_store_on_the_folder_or_the_port_is_refused_in_one_line(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    start()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        (tmp_path / "file").write_text("")
        for process, word in (
            (start(), "in use by another store"),
            (start(tmp_path / "other", port=taken.getsockname()[1]), "Choose another port"),
            (start(tmp_path / "file" / "data"), "cannot be written"),
        ):
            _, errors = process.popen.communicate(timeout=30)
            assert process.popen.returncode == 2
            assert word in errors
            assert errors.count("\n") == 1
