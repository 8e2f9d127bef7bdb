"""The cost of a thousand gates in one triggerer: the process of the triggers, and the store that they query.

Real: the triggers, the shared reader, the telemetry store with its rows, the record on disk. The endpoints are not (a
thousand models would not fit on one machine): something that answers on the supervisor's socket tells their history.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from controlled_rollout.workspace import Workspace
from tests.local.telemetry_lab import PROTOBUF, Process, stores

REPOSITORY = Path(__file__).parents[2]
GATES = 1_000
# Each endpoint's requests in a minute: every row is read.
RATE = 4
BASELINE = timedelta(minutes=30)
ROLLOUT = timedelta(minutes=30)
UPLOAD = 2_000
# Measured for so long: three looks of each gate, less where they queue behind each other.
SECONDS = 180.0
# What came just now and happened long ago is late: the gates would wait. A process looks back two bins and 30 s.
FILLED_LONG_AGO_S = 155
TERMS = {
    "version": "v2a", "who": "bench/run/gate", "owner": None, "gate": {}, "bake": 86_400, "min_requests": 0,
    "require_pass": True, "decision_timeout": 864_000, "on_deadline": "hold", "interval": 60,
    "window": {"bin_width": 60, "allowed_lag": 60, "baseline_length": BASELINE.total_seconds()},
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of some gates that look once a minute each.

    Attributes:
        gates: How many.
        looks: How many looks they took in the time that was measured.
        cores: Processor time of their process by wall-clock time.
        first_s: Processor time of their first looks, with everything since the baseline to read.
        memory_mb: Most memory that their process has held.
        store_cores: Processor time of the store by wall-clock time.
        queries: Queries a minute.
    """

    gates: int
    looks: int
    cores: float
    first_s: float
    memory_mb: float
    store_cores: float
    queries: float


def name_of(number: int) -> str:
    return f"model-{number:04d}"


def fill(store: Process, started: datetime) -> int:
    """Give every endpoint its requests, before and since its rollout began; return how many."""
    spans: list[tuple[datetime, str, str]] = []
    step = timedelta(minutes=1) / RATE
    total = 0
    for number in range(int((BASELINE + ROLLOUT) / step)):
        at = started - BASELINE + number * step
        version = "v2a" if at > started and number % 2 else "v1a"
        spans.extend((at, name_of(gate), version) for gate in range(GATES))
        while len(spans) >= UPLOAD:
            send(store, spans[:UPLOAD])
            del spans[:UPLOAD]
            total += UPLOAD
    send(store, spans)
    return total + len(spans)


def feed(store: Process, ended: threading.Event) -> None:
    """Go on sending every endpoint's requests while the gates look."""
    number = 0
    while not ended.wait(60 / RATE):
        number += 1
        at = datetime.now(UTC)
        send(store, [(at, name_of(gate), "v2a" if number % 2 else "v1a") for gate in range(GATES)])


def send(store: Process, spans: list[tuple[datetime, str, str]]) -> None:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number, (at, endpoint, version) in enumerate(spans):
        start = int(at.timestamp() * 1e6) * 1_000
        span = scope.spans.add(
            trace_id=os.urandom(16), span_id=os.urandom(8), kind=2, name="ingress", start_time_unix_nano=start,
            end_time_unix_nano=start + 5_000_000 + number % 100 * 100_000,
        )  # fmt: skip
        for key, value in (("http.status_code", "200"), ("endpoint", endpoint), ("version", version)):
            span.attributes.add(key=key).value.string_value = value
    while store.http.post("/v1/traces", content=request.SerializeToString(), headers=PROTOBUF).status_code != 200:
        time.sleep(0.2)  # its buffer is full: it says when to come again


async def answer_for_the_supervisor(socket_file: Path, started: datetime) -> asyncio.Server:
    """Serve the history and the state of every endpoint, as the supervisor of a local workspace does."""
    from controlled_rollout.endpoint import Endpoint
    from controlled_rollout.target.protocol import Change, EndpointStatus, Revision, VersionStatus

    first = Endpoint(name="model").create_version("v1a", is_control=True)
    created = first.create_version("v2a")
    half = created.update_version("v2a", traffic_percentile=50)
    times = (started - BASELINE, started, started + timedelta(seconds=1))
    history = [
        Revision(number=n, endpoint=e.model_copy(update={"revision": n}), change=Change(who="w", reason="y"), created=t)
        for n, (e, t) in enumerate(zip((first, created, half), times, strict=True), start=1)
    ]
    versions = {name: VersionStatus(name=name, ready=True, requests=50) for name in ("v1a", "v2a")}
    status = EndpointStatus(name="model", url="", revision=3, served_revision=3, versions=versions)
    bodies = {
        "history": json.dumps([one.model_dump(mode="json") for one in history]).encode(),
        "status": status.model_dump_json().encode(),
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                _, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                _, _, name, what = path.split("/")
                body = bodies[what].replace(b'"name":"model"', b'"name":"%s"' % name.encode())
                body = body.replace(b'"name": "model"', b'"name": "%s"' % name.encode())
                kind = b"content-type: application/json\r\n"
                writer.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (kind, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    return await asyncio.start_unix_server(serve, str(socket_file))


def processor_time(process: psutil.Process) -> float:
    """Return the processor time of a process and its children, those that have ended included, in seconds."""
    return float(sum(sum(each.cpu_times()[:4]) for each in (process, *process.children())))


async def triggers(root: Path, gates: int, seconds: float, store_pid: int) -> Cost:
    """Run the triggers of some gates in this process, as a triggerer does; look at what that costs."""
    from controlled_rollout.evaluation.next_action import GateTerms, LookResult, take_look
    from controlled_rollout.evidence.log_analytics import LogAnalyticsEvidence
    from controlled_rollout.triggers import treatment_gate as trigger

    sent: list[float] = []
    looks: list[float] = []
    query = LogAnalyticsEvidence._query_blocking

    def counting(self: LogAnalyticsEvidence, text: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        sent.append(time.monotonic())
        return query(self, text, columns)

    async def counted_look(workspace: Workspace, terms: GateTerms, log: Callable[[str], None]) -> LookResult:
        result = await take_look(workspace, terms, log)
        assert result.outcome != "cannot_see", result.reason
        looks.append(time.monotonic())
        return result

    # For the rest of this process.
    patch.object(LogAnalyticsEvidence, "_query_blocking", counting).start()
    patch.object(trigger, "take_look", counted_look).start()

    async def run_gate(number: int) -> None:
        terms = {**TERMS, "endpoint": name_of(number), "waiting_since": datetime.now(UTC).isoformat()}
        async for _ in trigger.TreatmentGateTrigger("controlled_rollout_default", terms).run():
            raise AssertionError("nothing ends these gates")

    tasks = [asyncio.create_task(run_gate(number)) for number in range(gates)]
    while len(looks) < gates:
        await asyncio.sleep(0.2)
        for task in tasks:
            if task.done():
                task.result()
    first_s = time.process_time()
    store = psutil.Process(store_pid)
    # From the middle between two rounds of looks to the middle between two others.
    await asyncio.sleep(20)
    before, began, by_store = time.process_time(), time.monotonic(), processor_time(store)
    await asyncio.sleep(seconds)
    spent, wall = time.process_time() - before, time.monotonic() - began
    cost = Cost(
        gates=gates,
        looks=sum(moment >= began for moment in looks),
        cores=spent / wall,
        first_s=first_s,
        memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        store_cores=(processor_time(store) - by_store) / wall,
        queries=60 * sum(moment >= began for moment in sent) / wall,
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return cost


def measure(*, seconds: float = SECONDS) -> dict[int, Cost]:
    """One gate and a thousand, one after the other, on the same store."""
    with tempfile.TemporaryDirectory(prefix="gates-") as folder:
        root = Path(folder)
        with stores(root / "data") as start:
            store = start()
            started = datetime.now(UTC) - ROLLOUT
            fill(store, started)
            time.sleep(FILLED_LONG_AGO_S)
            ended = threading.Event()
            feeder = threading.Thread(target=feed, args=(store, ended))
            feeder.start()
            try:
                costs = {gates: cost_of(gates, store, root, started, seconds) for gates in (1, GATES)}
            finally:
                ended.set()
                feeder.join()
    return costs


def cost_of(gates: int, store: Process, root: Path, started: datetime, seconds: float) -> Cost:
    """Run some gates in a process of their own."""
    home = root / f"home-{gates}"
    home.mkdir()
    program = [sys.executable, "-m", "tests.benchmarks.gates", str(home), str(gates), str(seconds), started.isoformat()]
    program += [store.url, store.workspace, str(store.popen.pid)]
    connection = {"conn_type": "controlled_rollout", "extra": {"target": "local", "root": str(home)}}
    environment = os.environ | {
        "AIRFLOW_HOME": str(root / "airflow"),
        "AIRFLOW_CONN_CONTROLLED_ROLLOUT_DEFAULT": json.dumps(connection),
    }
    done = subprocess.run(program, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


async def child(arguments: list[str]) -> None:
    import logging
    from dataclasses import asdict

    home, gates, seconds, started, url, workspace, store_pid = arguments
    root, began = Path(home), datetime.fromisoformat(started)
    server = await answer_for_the_supervisor(root / "s", began)
    (root / "supervisor.json").write_text(
        json.dumps({
            "pid": os.getpid(), "socket": str(root / "s"), "router_url": url, "telemetry_url": url,
            "telemetry_workspace_id": workspace, "telemetry_token_file": str(root / "token"),
                "runtime": str(root),
                "envoy_admin": str(root / "none"),
        })
    )  # fmt: skip
    (root / "token").write_text("any-will-do")
    logging.disable(logging.INFO)
    cost = await triggers(root, int(gates), float(seconds), int(store_pid))
    server.close()
    print(json.dumps(asdict(cost)))


if __name__ == "__main__":
    asyncio.run(child(sys.argv[1:]))
