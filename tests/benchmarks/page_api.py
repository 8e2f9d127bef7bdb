"""The page's API with many endpoints and a month of looks at each: how long answers take, and what it costs in memory.

The API runs in a process of its own, as in Airflow's API server but without sign-in; its endpoints are in memory, their
records are files. Run alone, this module is that process.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import psutil

from controlled_rollout import record, steps
from controlled_rollout.record import storage
from controlled_rollout.steps import Change
from controlled_rollout.target import connect as connect_module
from controlled_rollout.workspace import Workspace
from tests.polling import wait_until
from tests.unit.record_lines import MINUTE, T0, append, bins
from tests.unit.steps.memory_target import MemoryTarget

ENDPOINTS = 100
LOOKS = 30 * 24 * 60
OPEN_PAGES = 12
SECONDS = 20.0
MAKING_S = 600.0
# How pages ask, and for how long the processor time is measured.
PAGE_ASKS_S = 5.0
WATCHED_S = 20.0


def section() -> Iterator[str]:
    """Yield the lines of the section."""
    figures = measure()
    yield "\n## The page's API\n"
    yield (
        f"{ENDPOINTS} endpoints with a rollout each, and {LOOKS:,} looks in each record, one a minute for 30 days (the "
        f"record keeps its newest {figures['record_mb']:.0f} MB). {OPEN_PAGES} pages of endpoints are read in turn "
        f"with the overview for {SECONDS:.0f} s, far more often than pages ask; nothing was read before."
    )
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield f"| answers | {figures['answers']:.0f} |"
    yield f"| median | {figures['p50_ms']:.1f} ms |"
    yield f"| 95 % within (goal 200) | {figures['p95_ms']:.0f} ms |"
    yield f"| longest | {figures['longest_ms']:.0f} ms |"
    yield f"| more memory, at most (goal 50) | {figures['more_mb']:.0f} MB |"
    yield f"| processor, while the overview and one endpoint are open | {figures['busy_percent']:.1f} % of one |"
    yield f"\n(`python -m tests.benchmarks --only page-api`; load of the machine {os.getloadavg()[0]:.0f}.)"


def measure() -> dict[str, float]:
    """Return the figures."""
    with tempfile.TemporaryDirectory(prefix="page-api-bench-") as folder:
        root = Path(folder)
        record_mb = make_records(root)
        program = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.page_api", folder]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                url = server.stdout.readline().strip()
                return {"record_mb": record_mb, **asked(url, psutil.Process(server.pid))}
            finally:
                server.terminate()


def make_records(root: Path) -> float:
    """Write one record of a month, and link it for every endpoint; return its length in MB."""
    workspace = Workspace.local(root / "made")
    append(workspace, bins(60))
    storage_of_one = record.storage_of(workspace, "digits")
    line = json.loads(Path(storage_of_one.name).read_bytes().splitlines()[0])
    folder = root / "workspace" / "records"
    folder.mkdir(parents=True)
    write_parts(line, folder)
    parts = sorted(folder.iterdir())
    for number in range(ENDPOINTS):
        for part in parts:
            os.link(part, folder / part.name.replace("digits.", f"digits-{number:03}.", 1))
    size = sum(part.stat().st_size for part in parts) / 1e6
    for part in parts:
        part.unlink()
    shutil.rmtree(workspace.root)
    return size


def write_parts(line: dict[str, Any], folder: Path) -> None:
    """Write a look a minute, in parts as the record does: the first look of each has all bins."""
    bins_of_look = line["evidence"]["bins"]["add"]
    settings = line["evidence"]["settings"]
    part, size, number = (folder / "digits.jsonl").open("wb"), 0, 0
    made: list[dict[str, Any]] = []
    for look in range(LOOKS):
        start = T0 + look * MINUTE
        made.append({**bins_of_look[look % len(bins_of_look)], "start": start.isoformat()})
        is_first = size == 0
        line["time"] = (start + timedelta(minutes=4)).isoformat()
        line["evidence"]["bins"] = {
            "keep": 0 if is_first else look,
            "add": made if is_first else made[-1:],
            "digest": "",
        }
        line["evidence"]["settings"] = settings if is_first else None
        content = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        size += part.write(content)
        if size > storage.MAX_PART_BYTES - len(content):
            part.close()
            (folder / "digits.jsonl").rename(folder / f"digits.{number:06}.jsonl")
            part, size, number = (folder / "digits.jsonl").open("wb"), 0, number + 1
    part.close()
    for full in sorted(folder.glob("digits.0*.jsonl"))[: -storage.KEPT_PARTS]:
        full.unlink()


def asked(url: str, server: psutil.Process) -> dict[str, float]:
    """Ask the server for a while; return how long answers took, and how much memory it took more than at its start."""
    detail = "/workspaces/ml/endpoints/digits-{:03}"
    # Airflow's API server has the libraries in any case.
    httpx.get(f"{url}/health", timeout=60, trust_env=False).raise_for_status()
    before, most, ends = server.memory_info().rss, 0, threading.Event()

    def watch_memory() -> None:
        nonlocal most
        while not ends.wait(0.05):
            most = max(most, server.memory_info().rss)

    watcher = threading.Thread(target=watch_memory)
    watcher.start()
    took: list[float] = []
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            wait_until(
                lambda: len(all_endpoints(client)) == ENDPOINTS, "all endpoints", timeout_s=MAKING_S, interval_s=0.2
            )
            ends_at = time.perf_counter() + SECONDS
            while time.perf_counter() < ends_at:
                for path in ("/overview", *(detail.format(number) for number in range(OPEN_PAGES))):
                    began = time.perf_counter()
                    client.get(path).raise_for_status()
                    took.append(1000 * (time.perf_counter() - began))
                    time.sleep(0.05)
            last = detail.format(OPEN_PAGES - 1)
            shown = wait_until(
                lambda: page if not (page := client.get(last).json())["loading"] else None,
                "the charts of the last page",
                timeout_s=MAKING_S,
                interval_s=0.5,
            )
            busy_percent = busy(client, server, ("/overview", last))
    finally:
        ends.set()
        watcher.join()
    assert shown["comparison"]["look_count"] > 0, shown["record_problem"]
    return {
        "answers": len(took),
        "p50_ms": quantiles(took, n=100)[49],
        "p95_ms": quantiles(took, n=100)[94],
        "longest_ms": max(took),
        "more_mb": (most - before) / 1e6,
        "busy_percent": busy_percent,
    }


def busy(client: httpx.Client, server: psutil.Process, paths: tuple[str, ...]) -> float:
    """Ask as open pages do; return how much of a processor the server takes, in per cent: each of several does so."""

    def seconds() -> float:
        times = server.cpu_times()
        return times.user + times.system

    began, used = time.perf_counter(), seconds()
    while (now := time.perf_counter()) - began < WATCHED_S:
        for path in paths:
            client.get(path).raise_for_status()
        time.sleep(max(0.0, now + PAGE_ASKS_S - time.perf_counter()))
    return 100 * (seconds() - used) / (time.perf_counter() - began)


def all_endpoints(client: httpx.Client) -> list[dict[str, Any]]:
    """Return what the overview shows."""
    return [one for workspace in client.get("/overview").json()["workspaces"] for one in workspace["endpoints"]]


def serve(root: Path) -> None:
    """Serve the API on a free port, print its address, and do not return."""
    import socket

    import uvicorn
    from airflow.api_fastapi.core_api import security

    from controlled_rollout_ui.api import watched_workspace, workspaces
    from controlled_rollout_ui.api.app import create_app

    target = MemoryTarget()
    workspace = Workspace.local(root / "workspace")
    for module in (steps, connect_module, watched_workspace, workspaces):
        setattr(module, "connect", target.open)  # noqa: B010
    for owner, name, instead in (
        (workspaces, "workspace_names", lambda: ("ml",)),
        (workspaces, "_read_connection", lambda _: workspace),
        (security, "requires_access_view", lambda _: lambda: None),
    ):
        setattr(owner, name, instead)
    asyncio.run(deploy(target, root))
    app = create_app()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, log_level="error")
        uvicorn.Server(config).run(sockets=[listening])


async def deploy(target: MemoryTarget, root: Path) -> None:
    """Deploy a control and a treatment at 10 % on every endpoint; their records are not those of the looks."""
    elsewhere = Workspace.local(root / "steps")
    change = Change(who="weekly/run-1/deploy")
    for number in range(ENDPOINTS):
        name = f"digits-{number:03}"
        for version in ("v1a", "v2a"):
            await steps.deploy(
                elsewhere,
                name,
                version,
                image="a@sha256:1",
                owner="weekly/run-1",
                change=change,
                progress=lambda _: None,
            )


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
