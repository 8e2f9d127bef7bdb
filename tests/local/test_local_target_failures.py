"""Failures of the local target: killed processes, ports in use, full disks."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.target.local import reaper, supervisor
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE
from controlled_rollout.workspace import Workspace
from tests.local.local_target_lab import CONNECTIONS, CRASHING, Lab, start, steady_load
from tests.polling import until


async def answers(url: str, key: str) -> int | None:
    """Return the status of one request on a connection of its own; None if the connection fails."""
    async with httpx.AsyncClient(timeout=20) as caller:
        try:
            return (await caller.post(url, json={}, headers={"Authorization": f"Bearer {key}"})).status_code
        except httpx.TransportError:
            return None


# On a busy machine a request may wait long for its replica: only requests that are lost count as failed.
PATIENT: dict[str, Any] = {"max_request_wait_time": 20_000}


async def serve_one(lab: Lab, name: str, **settings: Any) -> tuple[Endpoint, str, str]:
    settings = {"num_replicas": 1, **PATIENT, **settings}
    endpoint = Endpoint(name=name).create_version("one", image=await lab.image(), **settings)
    stored, status = await lab.serve(endpoint)
    return stored, status.url, (await lab.target.keys(name)).primary


async def test_killed_replica_is_replaced_while_the_other_one_serves(lab: Lab) -> None:
    _, url, key = await serve_one(lab, "neighbours", num_replicas=2)
    victim = (await lab.target.processes())["neighbours/one-1"]

    async with steady_load(url, key) as load:
        await load.more(50)
        os.kill(victim, signal.SIGKILL)
        await until(lambda: _replaced(lab, "neighbours", victim), "a new process in its place")
        await load.more(50)

    replica = (await lab.target.status("neighbours")).versions["one"].replicas[0]
    assert (replica.restarts, replica.last_exit) == (1, "was ended by SIGKILL")
    # Only what the killed process was answering, or had in its queue, may be lost: at most one per connection.
    assert sum(load.failed.values()) <= CONNECTIONS
    assert load.broken == []


async def _replaced(lab: Lab, endpoint: str, victim: int) -> bool:
    now = (await lab.target.processes()).get(f"{endpoint}/one-1")
    return now not in (None, victim) and (await lab.target.status(endpoint)).versions["one"].ready


async def test_a_killed_router_is_replaced_on_its_port_with_its_split_and_keys(lab: Lab) -> None:
    endpoint, url, key = await serve_one(lab, "router")
    old = (await lab.target.processes())["router"]

    os.kill(old, signal.SIGKILL)

    async def is_back() -> bool:
        return await answers(url, key) == 200

    await until(is_back, "the router answers again", timeout_s=10)
    assert (await lab.target.processes())["router"] != old
    assert await answers(url, "wrong") == 401
    endpoint, _ = await lab.serve(endpoint.create_version("two", image=await lab.image("second")))
    assert endpoint.revision == 2


async def test_an_update_that_cannot_start_leaves_the_old_processes_serving(lab: Lab) -> None:
    endpoint, url, key = await serve_one(lab, "updated")

    await lab.apply(endpoint.update_version("one", image=await lab.image(script=CRASHING)))
    await until(lambda: _failed(lab, "updated"), "the new image has failed")

    assert [await answers(url, key) for _ in range(20)] == [200] * 20
    assert (await lab.target.status("updated")).served_revision == 1
    await lab.serve(endpoint.update_version("one", image=await lab.image()).model_copy(update={"revision": 2}))
    assert (await lab.target.status("updated")).versions["one"].ready


async def _failed(lab: Lab, name: str) -> bool:
    return (await lab.target.status(name)).versions["one"].failed


async def test_router_keeps_serving_while_the_telemetry_store_is_stopped(lab: Lab) -> None:
    _, url, key = await serve_one(lab, "blind")

    async with steady_load(url, key) as load:
        await lab.target.set_telemetry(False)
        assert "telemetry store" not in await lab.target.processes()
        await load.more(150)
        await lab.target.set_telemetry(True)
        await until(lambda: _store_answers(lab), "the store answers on its old address")

    assert load.failed == {}
    assert max(load.latencies_s) < 5


async def _store_answers(lab: Lab) -> bool:
    async with httpx.AsyncClient() as client:
        try:
            return (await client.get(f"{lab.state.telemetry_url}/healthz")).status_code == 200
        except httpx.TransportError:
            return False


async def test_second_supervisor_on_a_folder_is_refused(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    await serve_one(lab, "unharmed")
    before = await _of(lab, "unharmed")

    again = await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True)
    second = await asyncio.to_thread(_run_in_foreground, lab.workspace)

    assert again == 0
    assert "already running" in capsys.readouterr().out
    assert second.returncode == 2
    assert "is in use" in second.stdout + second.stderr
    assert await _of(lab, "unharmed") == before


async def _of(lab: Lab, endpoint: str) -> dict[str, int]:
    """Return the processes of an endpoint and of the workspace itself, without those of other tests' endpoints."""
    pids = await lab.target.processes()
    return {name: pid for name, pid in pids.items() if name.startswith(f"{endpoint}/") or "/" not in name}


def _run_in_foreground(workspace: Workspace) -> "subprocess.CompletedProcess[str]":
    settings = {
        "workspace": {"root": str(workspace.root)},
        "port": 0,
        "host": "127.0.0.1",
        "report_pipe": None,
        "credentials": None,
    }
    command = [sys.executable, "-m", "controlled_rollout.target.local", json.dumps(settings)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_port_in_use_is_a_one_line_error_and_nothing_keeps_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.local(tmp_path / "workspace")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        code = supervisor.start_workspace(workspace, port=port, detach=True)

    output = capsys.readouterr().err
    assert code == 2
    assert f"port {port}" in output
    assert output.count("\n") == 1
    assert not workspace.state_file.exists()
    assert supervisor.stop_workspace(workspace) == 0


async def test_killed_supervisor_leaves_no_processes_and_the_next_one_restores_the_endpoints(tmp_path: Path) -> None:
    lab = await asyncio.to_thread(start, tmp_path)
    try:
        endpoint, _, _ = await serve_one(lab, "restored")
        endpoint, _ = await lab.serve(
            endpoint.create_version(
                "two", image=await lab.image("second"), traffic_percentile=40.0, collect_model_data=True, **PATIENT
            )
        )
        keys = await lab.target.keys("restored")
        old, [spool] = lab.state, (lab.workspace.spools_folder / "restored" / "two").iterdir()
        os.kill(old.pid, signal.SIGKILL)
        await until(lambda: not reaper.marked_processes(f"{RUNTIME_VARIABLE}={old.runtime}"), "no orphan", timeout_s=10)
        await until(lambda: not old.runtime.exists(), "its sockets are gone", timeout_s=10)
        with pytest.raises(TargetUnavailableError, match="local up"):
            await lab.target.status("restored")

        assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 0

        status = await lab.served(endpoint)
        assert await lab.target.endpoint("restored") == endpoint
        assert await lab.target.keys("restored") == keys
        # The collector is told that the replica which was killed with its supervisor never starts again.
        await until(lambda: not spool.exists(), "its spool is shipped and deleted")
        async with steady_load(status.url, keys.primary, rate=300) as load:
            await load.more(300)
        assert load.failed == {}
        assert 60 < load.versions["two"] < 180
    finally:
        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0


async def test_down_completes_requests_in_flight_and_leaves_no_process_and_no_socket(tmp_path: Path) -> None:
    lab = await asyncio.to_thread(start, tmp_path)
    _, url, key = await serve_one(lab, "ending")
    state = lab.state
    async with httpx.AsyncClient(timeout=20) as caller:
        slow = asyncio.create_task(caller.post(url, json={"sleep_s": 1}, headers={"Authorization": f"Bearer {key}"}))
        await until(lambda: _active(lab, "ending"), "a request is being answered")

        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0

        assert (await slow).status_code == 200
    assert not reaper.marked_processes(f"{RUNTIME_VARIABLE}={state.runtime}")
    assert not state.runtime.exists()
    assert not lab.workspace.state_file.exists()
    with pytest.raises(TargetUnavailableError, match="is not running"):
        await lab.target.endpoints()
    assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0


async def _active(lab: Lab, name: str) -> int:
    return (await lab.target.status(name)).versions["one"].active


async def test_neither_the_supervisor_nor_what_it_starts_inherits_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "a-secret")
    lab = await asyncio.to_thread(start, tmp_path)
    try:
        await serve_one(lab, "discreet")
        for pid in (lab.state.pid, *(await lab.target.processes()).values()):
            assert b"a-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        spoken = json.dumps(
            [Path(f"/proc/{pid}/cmdline").read_text() for pid in (await lab.target.processes()).values()]
        )
        keys = await lab.target.keys("discreet")
        assert keys.primary not in spoken
        assert lab.state.telemetry_token_file.read_text() not in spoken
    finally:
        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0
