"""The telemetry store as a real process, for tests that fill and query one."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from azure.core.credentials import AccessToken
from azure.monitor.query import LogsQueryClient, LogsQueryPartialResult
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from controlled_rollout.evidence.log_analytics import LogAnalyticsEvidence

# The command line takes no port 0.
PROGRAM = """
import sys
from pathlib import Path
from controlled_rollout.telemetry_store.server import serve
port, data, token, upload_token = sys.argv[1:]
sys.exit(serve(
    port=int(port),
    data=Path(data),
    token_file=Path(token) if token else None,
    upload_token_file=Path(upload_token) if upload_token else None,
))
"""
REPOSITORY = Path(__file__).parents[2]
PROTOBUF = {"Content-Type": "application/x-protobuf"}


class Credential:
    """A bearer token in the form that the Azure client requires."""

    def __init__(self, token: str = "any") -> None:
        self.token = token

    def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken:
        return AccessToken(self.token, int(time.time()) + 3_600)


class Process:
    """A running telemetry store and its clients.

    Args:
        data: The folder of its database.
        token_file: Holds the token of queries.
        port: Its port; 0 for any free one.
        faults_file: Says what the store does wrong, see `faulty_telemetry_store`.
        upload_token_file: Holds the token of spans and requests.
    """

    def __init__(
        self,
        data: Path,
        token_file: Path | None = None,
        port: int = 0,
        faults_file: Path | None = None,
        upload_token_file: Path | None = None,
    ) -> None:
        if faults_file:
            arguments = ["-m", "tests.local.faulty_telemetry_store", str(port), str(data), str(faults_file)]
        else:
            arguments = ["-c", PROGRAM, str(port), str(data), str(token_file or ""), str(upload_token_file or "")]
        self.popen = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.popen.stdout
        self.line = self.popen.stdout.readline()
        match = re.fullmatch(
            r"telemetry store ready: InstrumentationKey=(\S+);IngestionEndpoint=(http://127\.0\.0\.1:\d+)/ "
            r"workspace=(\S+)\n",
            self.line,
        )
        if match:
            self.key, self.url, self.workspace = match.groups()
            self.http = httpx.Client(base_url=self.url, timeout=30)

    def client(self, token: str = "any") -> LogsQueryClient:
        return LogsQueryClient(Credential(token), endpoint=f"{self.url}/v1", retry_total=0)

    def rows(self, query: str, timespan: Any = None) -> list[list[Any]]:
        result = self.client().query_workspace(self.workspace, query, timespan=timespan, enforce_https=False)
        assert not isinstance(result, LogsQueryPartialResult)
        return [list(row) for row in result.tables[0].rows]

    def send(self, *spans: dict[str, Any]) -> httpx.Response:
        return self.http.post("/v1/traces", content=export(*spans), headers=PROTOBUF)

    def track(self, *requests: dict[str, Any]) -> httpx.Response:
        """Upload requests as the exporter of Azure Monitor does, with a result code of any text and a sample rate."""
        return self.http.post("/v2.1/track", json=[envelope(**fields) for fields in requests])

    def end(self, signal_number: int = signal.SIGTERM) -> tuple[int, str]:
        self.popen.send_signal(signal_number)
        _, errors = self.popen.communicate(timeout=30)
        return self.popen.returncode, errors


def envelope(**fields: Any) -> dict[str, Any]:
    """Return the App Insights envelope of one request."""
    data = {
        "id": fields.get("id") or os.urandom(8).hex(),
        "name": "POST /api/v1/service/digits/score",
        "duration": "00:00:00.005",
        "responseCode": fields.get("code", "200"),
        "success": True,
        "properties": {
            "endpoint": fields.get("endpoint", "digits"),
            "version": fields.get("version", "control"),
            "routed_by": fields.get("routed_by", "weights"),
        },
    }
    return {
        "iKey": "00000000-0000-0000-0000-000000000000",
        "time": fields.get("at", datetime.now(UTC)).isoformat(),
        "sampleRate": fields.get("sample_rate", 100),
        "tags": {"ai.operation.id": fields.get("operation") or os.urandom(16).hex()},
        "data": {"baseType": "RequestData", "baseData": data},
    }


def export(*spans: dict[str, Any]) -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    scope = resource.scope_spans.add()
    for fields in spans:
        start = int(fields.get("at", datetime.now(UTC)).timestamp() * 1e6) * 1_000
        span = scope.spans.add(
            trace_id=fields.get("trace_id") or os.urandom(16),
            span_id=fields.get("span_id") or os.urandom(8),
            kind=2,
            name="ingress",
            start_time_unix_nano=start,
            end_time_unix_nano=start + int(fields.get("ms", 5.0) * 1e6),
        )
        tags = {
            "http.url": fields.get("url", "http://localhost/api/v1/service/digits/score"),
            "http.method": fields.get("method", "POST"),
            "http.status_code": fields.get("code", "200"),
            "endpoint": fields.get("endpoint", "digits"),
            "version": fields.get("version", "control"),
            "routed_by": fields.get("routed_by", "weights"),
            "sticky_key": fields.get("user"),
            "reason": fields.get("reason"),
            "scoring_ms": fields.get("scoring_ms"),
            "left_queue": fields.get("left_queue"),
            "response_flags": fields.get("response_flags"),
        }
        for key, value in tags.items():
            if value is not None:
                span.attributes.add(key=key).value.string_value = value
    return bytes(request.SerializeToString())


def message(number: int, content: bytes) -> bytes:
    """Return an encoded field of a protobuf message that holds an encoded message."""
    length, size = b"", len(content)
    while size > 0x7F:
        length, size = length + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + content


@contextmanager
def stores(data: Path) -> Iterator[Callable[..., Process]]:
    """Yield a function that starts stores, which end with the block."""
    processes: list[Process] = []

    def start_store(*args: Any, **kwargs: Any) -> Process:
        process = Process(*(args or (data,)), **kwargs)
        processes.append(process)
        return process

    try:
        yield start_store
    finally:
        for process in processes:
            if hasattr(process, "http"):
                process.http.close()
            if process.popen.poll() is None:
                process.popen.kill()
            process.popen.communicate(timeout=30)


def source(store: Process) -> LogAnalyticsEvidence:
    """Return the gate's evidence source for a store."""
    return LogAnalyticsEvidence(
        endpoint=f"{store.url}/v1", workspace_id=store.workspace, credential=Credential(), enforce_https=False
    )
