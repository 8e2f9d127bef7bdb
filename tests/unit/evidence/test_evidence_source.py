"""Where a workspace's evidence is read, and the KQL that is sent."""

import asyncio
import http.server
import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.endpoint import EndpointError
from controlled_rollout.errors import EvidenceUnavailableError, WorkspaceError
from controlled_rollout.evidence import EvidenceWindow, evidence_source, metric_store_source
from controlled_rollout.evidence.kql import arrivals_query, baseline_query, counts_query, mean_query, until_line
from controlled_rollout.evidence.local import StateFileEvidence
from controlled_rollout.evidence.log_analytics import LogAnalyticsEvidence
from controlled_rollout.evidence.metric_store import QueryKey, StoreRequest
from controlled_rollout.telemetry_store.kql import translate
from controlled_rollout.workspace import Workspace

T0 = datetime(2026, 3, 1, 12, 0, 0, 1, tzinfo=UTC)


def workspace(tmp_path: Path, **settings: str) -> Workspace:
    return Workspace.from_settings({"root": str(tmp_path), **settings})


def test_without_a_supervisor_the_evidence_is_unavailable_and_says_how_to_get_it(tmp_path: Path) -> None:
    source = metric_store_source(workspace(tmp_path))
    assert isinstance(source, StateFileEvidence)

    with pytest.raises(EvidenceUnavailableError, match="controlled-rollout local up"):
        asyncio.run(source.newest("digits"))


@pytest.mark.parametrize("pipe", ["supervisor.json", "token"])
def test_a_pipe_in_the_place_of_a_file_is_unavailable_evidence_and_keeps_no_look_for_ever(
    tmp_path: Path, pipe: str
) -> None:
    local = workspace(tmp_path)
    if pipe == "token":
        state = {"telemetry_url": "http://127.0.0.1:1", "telemetry_workspace_id": "x"}
        local.state_file.write_text(json.dumps({**state, "telemetry_token_file": str(tmp_path / "token")}))
    os.mkfifo(tmp_path / pipe)
    source = metric_store_source(local)
    assert isinstance(source, StateFileEvidence)

    with pytest.raises(EvidenceUnavailableError, match="not a regular file"):
        asyncio.run(source.newest("digits"))


def test_a_supervisor_s_address_elsewhere_is_refused_before_its_token_is_read(tmp_path: Path) -> None:
    local = workspace(tmp_path)
    local.state_file.write_text(
        '{"telemetry_url": "http://10.0.0.1:1", "telemetry_workspace_id": "x", "telemetry_token_file": "/nonexistent"}'
    )

    source = metric_store_source(local)
    assert isinstance(source, StateFileEvidence)

    with pytest.raises(EvidenceUnavailableError, match="not on this machine"):
        asyncio.run(source.newest("digits"))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"telemetry_endpoint": "https://api.loganalytics.io/v1"}, "telemetry_workspace_id is missing"),
        ({"telemetry_endpoint": "http://example.com/v1", "telemetry_workspace_id": "x"}, "clear text"),
        (
            {"telemetry_endpoint": "http://10.0.0.1/v1", "telemetry_workspace_id": "x", "telemetry_token_file": "/t"},
            "clear text",
        ),
        (
            {
                "telemetry_endpoint": "https://far.example",
                "telemetry_workspace_id": "x",
                "telemetry_token_file": "/t",
            },
            "which https://far.example is not",
        ),
        ({"telemetry_workspace_id": "x", "telemetry_token_file": "/t"}, "which Azure is not"),
        ({"telemetry_token_file": "/t"}, "telemetry_workspace_id is missing"),
        ({"target": "kubernetes", "gateway": "infra/shared"}, "telemetry_workspace_id is missing.*'kubernetes'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, settings: dict[str, str], problem: str) -> None:
    with pytest.raises(WorkspaceError, match=problem):
        evidence_source(workspace(tmp_path, **settings))


def test_a_configured_workspace_needs_no_supervisor(tmp_path: Path) -> None:
    source = metric_store_source(workspace(tmp_path, telemetry_workspace_id="11111111-2222-4333-8444-555555555555"))

    assert isinstance(source, LogAnalyticsEvidence)
    assert source.endpoint == "https://api.loganalytics.io"


def request(*thresholds_ms: float, **changes: Any) -> StoreRequest:
    window = EvidenceWindow(
        bin_width=timedelta(seconds=1.5), allowed_lag=timedelta(0), baseline_length=timedelta(hours=1)
    )
    key = QueryKey(**{
        "endpoint": "digits", "control": "control", "treatment": "treatment", "started": T0 + timedelta(hours=1),
        "window": window, "quantiles": (0.5,), "tolerance": 0.05, **changes,
    })  # fmt: skip
    return StoreRequest(key, key.first, thresholds_ms)


def test_times_and_thresholds_are_written_exactly() -> None:
    requests = [request(1e-3, 123.4567891, 1e7), request(7.0, endpoint="letters")]

    query = until_line(T0 + timedelta(hours=2)) + counts_query(requests, bin_width=timedelta(seconds=1.5))

    assert "let Until = datetime(2026-03-01T14:00:00.000001Z);" in query
    assert "TimeGenerated >= datetime(2026-03-01T12:00:00.000001Z)" in query
    assert "bin(TimeGenerated, 1500ms)" in query
    when = '"2026-03-01T12:00:00.000001Z","2026-03-01T13:00:00.000001Z"'
    assert f'[0,"digits","control",{when},0.001,123.456789,10000000.0]' in query
    assert f'[0,"digits","treatment",{when},0.00105,129.629629,10500000.0]' in query
    assert f'[1,"letters","control",{when},7.0,1e+18,1e+18]' in query
    assert translate(query).tables == ("AppRequests",)
    assert translate(baseline_query(requests)).tables == ("AppRequests",)
    arrivals = arrivals_query(first=T0, until=T0, since=T0, lag_since=T0, bin_width=timedelta(seconds=10))
    assert translate(arrivals).tables == ("AppRequests",)


def test_an_author_s_query_is_only_continued() -> None:
    kql = "let Currency = 'EUR';\nAppEvents\n| project TimeGenerated, Version = Name, Value = 1.5 // cents;\n; "

    query = mean_query(kql, request(), until=T0, bin_width=timedelta(minutes=1))

    assert query.startswith("let Currency = 'EUR';\nAppEvents")
    assert translate(query).tables == ("AppEvents",)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_threshold_that_is_not_a_number_is_never_sent(threshold: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        counts_query([request(threshold)], bin_width=timedelta(seconds=1))


def test_time_without_a_zone_and_invalid_name_are_never_sent() -> None:
    with pytest.raises(ValueError, match="no time zone"):
        baseline_query([request(started=T0.replace(tzinfo=None))])
    with pytest.raises(EndpointError):
        baseline_query([request(endpoint="digits' or 1==1 //")])
    with pytest.raises(EndpointError):
        baseline_query([request(control="x' | take 1")])


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (200, '{"tables": []}', "0 tables"),
        (200, '{"tables": [{"name": "T", "columns": [], "rows": []}]}', "without the columns Newest"),
        (200, '{"tables": [], "error": {"code": "PartialError", "message": "m"}}', "only in part"),
        (200, "not json", "answered 200"),
        (204, "", "answered 204.*no data yet"),
        (400, '{"error": {"code": "BadArgumentError", "message": "m"}}', "answered 400.*AppRequests"),
        (403, '{"error": {"code": "InsufficientAccessError", "message": "m"}}', "answered 403.*Log Analytics Reader"),
        (404, '{"error": {"code": "PathNotFoundError", "message": "m"}}', "answered 404.*workspace id"),
        (429, '{"error": {"code": "ThrottledError", "message": "m"}}', "answered 429.*less often"),
        (502, "<html>", "answered 502"),
        (504, '{"error": {"code": "GatewayTimeout", "message": "m"}}', "answered 504.*wider bins"),
    ],
)
def test_every_answer_but_a_whole_one_is_unavailable(status: int, body: str, problem: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            return

    class Credential:
        def get_token(self, *scopes: str, **kwargs: Any) -> Any:
            from azure.core.credentials import AccessToken

            return AccessToken("t", 4_000_000_000)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        source = LogAnalyticsEvidence(
            endpoint=f"http://127.0.0.1:{server.server_port}/v1",
            workspace_id="w",
            credential=Credential(),
            enforce_https=False,
        )
        try:
            with pytest.raises(EvidenceUnavailableError, match=problem):
                asyncio.run(source.newest("digits"))
        finally:
            server.shutdown()
            thread.join()
