"""The telemetry store as a real process, spoken to by the unmodified Azure client."""

import asyncio
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.monitor.query import LogsBatchQuery, LogsQueryClient, LogsQueryPartialResult
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from controlled_rollout.errors import EndpointError, EvidenceUnavailableError
from controlled_rollout.evidence import Question, SplitChange, evidence_source
from controlled_rollout.evidence.log_analytics import LogAnalyticsEvidence
from controlled_rollout.gate import Counts, Gate
from controlled_rollout.workspace import Workspace

PROGRAM = """
import sys
from datetime import timedelta
from pathlib import Path
from controlled_rollout.evidence.store.server import serve
port, data, token = sys.argv[1:4]
sys.exit(serve(port=int(port), data=Path(data), token_file=Path(token) if token else None))
"""
PROTOBUF = {"Content-Type": "application/x-protobuf"}
STARTED = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
STARTED -= timedelta(seconds=STARTED.timestamp() % 60)
S = timedelta(seconds=1)


class Credential:
    """A bearer token as the Azure client wants it."""

    def __init__(self, token: str = "any") -> None:  # noqa: S107
        self.token = token

    def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
        return AccessToken(self.token, int(time.time()) + 3_600)


class Process:
    """A store and how to speak to it."""

    def __init__(self, data: Path, token_file: Path | None = None, port: int = 0) -> None:
        arguments = [sys.executable, "-c", PROGRAM, str(port), str(data), str(token_file or "")]
        self.popen = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.popen.stdout
        self.line = self.popen.stdout.readline()
        found = re.fullmatch(
            r"telemetry store ready: InstrumentationKey=(\S+);IngestionEndpoint=(http://127\.0\.0\.1:\d+)/ "
            r"workspace=(\S+)\n",
            self.line,
        )
        if found:
            self.key, self.url, self.workspace = found.groups()
            self.http = httpx.Client(base_url=self.url, timeout=30)

    def client(self, token: str = "any") -> LogsQueryClient:  # noqa: S107
        return LogsQueryClient(Credential(token), endpoint=f"{self.url}/v1", retry_total=0)

    def rows(self, query: str, timespan: Any = None) -> list[list[Any]]:
        result = self.client().query_workspace(self.workspace, query, timespan=timespan, enforce_https=False)
        assert not isinstance(result, LogsQueryPartialResult)
        return [list(row) for row in result.tables[0].rows]

    def send(self, *spans: dict[str, Any]) -> httpx.Response:
        return self.http.post("/v1/traces", content=export(*spans), headers=PROTOBUF)

    def end(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        self.popen.send_signal(how)
        _, errors = self.popen.communicate(timeout=30)
        return self.popen.returncode, errors


def export(*spans: dict[str, Any]) -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    scope = resource.scope_spans.add()
    for fields in spans:
        start = int(fields.get("at", datetime.now(UTC)).timestamp() * 1e6) * 1_000
        span = scope.spans.add(
            trace_id=os.urandom(16),
            span_id=os.urandom(8),
            kind=2,
            name="ingress",
            start_time_unix_nano=start,
            end_time_unix_nano=start + int(fields.get("ms", 5.0) * 1e6),
        )
        tags = {
            "http.url": "http://localhost/api/v1/service/digits/score",
            "http.method": "POST",
            "http.status_code": fields.get("code", "200"),
            "endpoint": fields.get("endpoint", "digits"),
            "version": fields.get("version", "control"),
            "routed_by": fields.get("routed_by", "weights"),
        }
        for key, value in tags.items():
            if value is not None:
                span.attributes.add(key=key).value.string_value = value
    return request.SerializeToString()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start_store(*args: Any, **kwargs: Any) -> Process:
        process = Process(*(args or (tmp_path / "data",)), **kwargs)
        processes.append(process)
        return process

    yield start_store
    for process in processes:
        if hasattr(process, "http"):
            process.http.close()
        if process.popen.poll() is None:
            process.popen.kill()
        process.popen.communicate(timeout=30)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    process = Process(tmp_path_factory.mktemp("shared"))
    yield process
    process.http.close()
    assert process.end()[0] == 0


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


def test_spans_that_make_no_sense_are_reported_as_a_partial_success(store: Process) -> None:
    request = ExportTraceServiceRequest.FromString(export({"endpoint": "half"}, {"endpoint": "half"}))
    request.resource_spans[0].scope_spans[0].spans[1].trace_id = b""

    answer = store.http.post("/v1/traces", content=request.SerializeToString(), headers=PROTOBUF)

    assert answer.status_code == 200
    assert ExportTraceServiceResponse.FromString(answer.content).partial_success.rejected_spans == 1
    assert store.rows("AppRequests | where tostring(Properties.endpoint) == 'half' | count") == [[1]]


@pytest.mark.parametrize("path", ["/v2/track", "/v2.1/track"])
def test_app_insights_envelopes_are_taken_and_a_bad_one_is_named(store: Process, path: str) -> None:
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

    assert list(by_resource.tables[0].rows[0]) == [1]
    assert list(whole.tables[0].rows[0]) == [1]
    assert whole.statistics["query"]["executionTime"] >= 0
    assert broken.code == "BadArgumentError"
    assert "nosuch" in broken.message
    assert unknown.code == "WorkspaceNotFoundError"


def test_errors_have_azure_s_statuses(store: Process) -> None:
    with store.client() as client:
        with pytest.raises(HttpResponseError) as bad:
            client.query_workspace(store.workspace, "AppRequests | wherre", timespan=None, enforce_https=False)
        with pytest.raises(HttpResponseError) as unknown:
            client.query_workspace("other", "AppRequests", timespan=None, enforce_https=False)
        partial = client.query_workspace(
            store.workspace, "range x from 1 to 500001 step 1", timespan=None, enforce_https=False
        )
    assert (bad.value.status_code, unknown.value.status_code) == (400, 404)
    assert bad.value.error.code == "BadArgumentError"
    assert isinstance(partial, LogsQueryPartialResult)
    assert partial.partial_error.code == "PartialError"
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
        [[seen]] = store.rows(query)
        assert seen >= before
    stop.set()
    uploader.join(30)
    assert store.rows(query) == [[sum(sent)]]


def test_rows_and_identity_outlive_sigterm_and_sigkill(start: Callable[..., Process]) -> None:
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


def test_what_was_accepted_a_second_ago_outlives_sigkill(start: Callable[..., Process]) -> None:
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


# The reader, over the wire.


def source(store: Process) -> LogAnalyticsEvidence:
    return LogAnalyticsEvidence(
        endpoint=f"{store.url}/v1", workspace_id=store.workspace, credential=Credential(), enforce_https=False
    )


def read(source: Any, endpoint: str, **changes: Any) -> Any:
    arguments = {
        "control": "control",
        "treatment": "treatment",
        "started": STARTED,
        "now": STARTED + 32 * S,
        "bin_width": 10 * S,
        "allowed_lag": 2 * S,
        "baseline_length": timedelta(minutes=10),
        "splits": [SplitChange(STARTED, 0.1), SplitChange(STARTED + 25 * S, 0.5)],
        "gate": Gate(),
    } | changes
    return asyncio.run(source.read(Question(endpoint=endpoint, **arguments)))


def test_the_reader_counts_what_callers_saw_in_closed_bins(store: Process) -> None:
    name = "counted"
    baseline = [{"at": STARTED - (1 + n * 0.5) * S, "ms": 1.0 + n, "endpoint": name} for n in range(200)]
    rollout = [
        {"at": STARTED + 1 * S, "ms": 5_000.0, "code": "504"},
        {"at": STARTED + 2 * S, "ms": 1.0, "code": "404"},
        {"at": STARTED + 3 * S, "ms": 104.0, "version": "treatment"},  # above control's median, within its tolerance
        {"at": STARTED + 4 * S, "ms": 120.0, "version": "treatment", "code": "0"},
        {"at": STARTED + 5 * S, "ms": 1.0, "version": "treatment", "routed_by": "header", "code": "500"},
        {"at": STARTED + 6 * S, "ms": 1.0, "version": "treatment", "routed_by": None},
        {"at": STARTED + 7 * S, "version": "another"},
        {"at": STARTED + 12 * S, "version": "treatment"},
        {"at": STARTED + 31 * S, "version": "treatment"},  # its bin is not closed
    ]
    store.send(*baseline, *({"endpoint": name, **row} for row in rollout), {"endpoint": "other", "at": STARTED + 1 * S})

    evidence = read(source(store), name)

    assert evidence.until == STARTED + 30 * S
    assert evidence.thresholds_ms == pytest.approx((100, 180, 190, 198), rel=0.0102)
    assert [b.start for b in evidence.bins] == [STARTED, STARTED + 10 * S]
    first, second = evidence.bins
    assert first.control == Counts(requests=2, errors=1, slow=(1, 1, 1, 1))
    assert first.treatment == Counts(requests=3, errors=1, slow=(1, 0, 0, 0))
    assert second.control == Counts(requests=0, errors=0, slow=(0, 0, 0, 0))
    assert second.treatment.requests == 1
    assert (first.share, second.share) == (None, 0.1)  # the split was set as the first bin began
    assert sum(b.control.requests for b in evidence.baseline) == 200
    assert sum(b.control.slow[0] for b in evidence.baseline) == pytest.approx(100, abs=3)
    assert evidence.queries[0].startswith("AppRequests\n")
    assert read(source(store), name) == evidence


def test_without_a_baseline_latency_is_not_counted_and_nothing_at_all_is_no_bin(store: Process) -> None:
    store.send({"endpoint": "young", "at": STARTED + 1 * S, "version": "treatment"})

    young = read(source(store), "young")

    assert young.thresholds_ms == ()
    assert young.bins[0].treatment == Counts(requests=1, errors=0, slow=())
    assert young.bins[0].control == Counts(requests=0, errors=0, slow=())
    nothing = read(source(store), "nothing")
    assert (nothing.bins, nothing.baseline) == ((), ())


def test_the_newest_row_is_told(store: Process) -> None:
    store.send({"endpoint": "newest", "at": STARTED}, {"endpoint": "newest", "at": STARTED - 5 * S})

    assert asyncio.run(source(store).newest("newest")) == STARTED
    assert asyncio.run(source(store).newest("never")) is None


def test_a_name_that_is_none_never_reaches_the_store(store: Process) -> None:
    with pytest.raises(EndpointError):
        read(source(store), "digits' or '1' == '1")
    with pytest.raises(EndpointError):
        read(source(store), "digits", treatment="x'; drop table AppRequests")


def test_a_store_that_is_down_or_refuses_is_unavailable_and_never_zeros(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse")
    process = start(tmp_path / "data", token_file=token_file)

    with pytest.raises(EvidenceUnavailableError, match=r"401.*credential"):
        read(source(process), "digits")
    process.end()
    began = time.monotonic()
    with pytest.raises(EvidenceUnavailableError, match="did not answer"):
        read(source(process), "digits")
    assert time.monotonic() - began < 10


def test_the_local_workspace_s_evidence_follows_the_supervisor_s_state(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    workspace = Workspace.local(tmp_path / "home")
    evidence = evidence_source(workspace)
    with pytest.raises(EvidenceUnavailableError, match="local up"):
        read(evidence, "digits")

    token_file = tmp_path / "token"
    token_file.write_text("correct-horse")
    process = start(tmp_path / "data", token_file=token_file)
    process.send({"at": STARTED + 1 * S})
    state = {"telemetry_url": process.url, "telemetry_workspace_id": None, "telemetry_token_file": str(token_file)}
    workspace.state_file.parent.mkdir(parents=True)
    workspace.state_file.write_text(json.dumps(state))

    assert read(evidence, "digits").bins[0].control.requests == 1
    workspace.state_file.write_text("{}")
    with pytest.raises(EvidenceUnavailableError, match="does not say"):
        read(evidence, "digits")


def test_a_workspace_brings_the_token_in_its_own_file_and_no_other(
    start: Callable[..., Process], tmp_path: Path
) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("correct-horse")
    process = start(tmp_path / "data", token_file=token_file)
    process.send({"at": STARTED + 1 * S})
    settings = {
        "root": str(tmp_path / "home"),
        "target": "kubernetes",
        "gateway": "infra/shared",
        "telemetry_endpoint": f"{process.url}/v1",
        "telemetry_workspace_id": process.workspace,
        "telemetry_token_file": str(token_file),
    }
    workspace = Workspace.from_settings(settings)
    # Another store's, of a supervisor that happens to run.
    workspace.state_file.parent.mkdir(parents=True)
    workspace.state_file.write_text(json.dumps({"telemetry_token_file": str(tmp_path / "other")}))

    assert read(evidence_source(workspace), "digits").bins[0].control.requests == 1

    token_file.write_text("changed-horse")
    with pytest.raises(EvidenceUnavailableError, match="401"):
        read(evidence_source(workspace), "digits")
    token_file.unlink()
    with pytest.raises(EvidenceUnavailableError, match="token cannot be read"):
        read(evidence_source(workspace), "digits")
