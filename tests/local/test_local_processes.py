"""Processes of a local workspace that are killed or hang: what is replaced, taken over, ended, reported, left alone."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from controlled_rollout.cli import main
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.local import reaper, supervisor
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE
from controlled_rollout.target.local.process_identity import ProcessIdentity
from controlled_rollout.target.local.supervisor_state import FolderLock, SupervisorState
from tests.local.local_target_lab import CRASHING, Lab, start
from tests.polling import until


@asynccontextmanager
async def workspace_with_one_version(folder: Path) -> AsyncIterator[tuple[Lab, str]]:
    """Start a workspace that serves the endpoint alpha; yield it with a key, and end it."""
    lab = await asyncio.to_thread(start, folder)
    try:
        await lab.serve(Endpoint(name="alpha").create_version("one", image=await lab.image()))
        yield lab, (await lab.target.keys("alpha")).primary
    finally:
        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0


async def status_code(lab: Lab, key: str, timeout_s: float = 20) -> int | None:
    """Return the HTTP status of one request to alpha; None if no answer comes."""
    url = f"{lab.state.router_url}/api/v1/service/alpha/score"
    async with httpx.AsyncClient(timeout=timeout_s, trust_env=False) as caller:
        try:
            return (await caller.post(url, json={}, headers={"Authorization": f"Bearer {key}"})).status_code
        except httpx.TransportError:
            return None


async def kill_supervisor_and_reaper(state: SupervisorState) -> None:
    """Kill a supervisor and its reaper at once, so that nothing ends their children."""
    children = Path(f"/proc/{state.pid}/task/{state.pid}/children").read_text().split()
    reapers = [int(pid) for pid in children if "reaper.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(reapers) == 1
    identity = ProcessIdentity.of(state.pid)
    assert identity is not None
    for pid in (*reapers, state.pid):
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not identity.is_running(), "the supervisor has ended")


def children_of(state: SupervisorState) -> list[int]:
    return reaper.marked_processes(f"{RUNTIME_VARIABLE}={state.runtime}")


async def test_up_takes_over_from_a_supervisor_that_was_killed_together_with_its_reaper(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with workspace_with_one_version(tmp_path) as (lab, key):
        old, port = lab.state, int(lab.state.router_url.rpartition(":")[2])
        bystander = subprocess.Popen(["sleep", "60"])
        try:
            await kill_supervisor_and_reaper(old)
            left = children_of(old)
            assert len(left) >= 3
            # Its number now stands for another process, and the state file is damaged: neither misleads anybody.
            lab.workspace.state_file.write_text(old.model_dump_json().replace(str(old.pid), str(bystander.pid)))
            code = await asyncio.to_thread(main, ["local", "status", "--root", str(lab.workspace.root)])
            assert code == 1
            assert capsys.readouterr().out.count("left behind") == len(left)
            lab.workspace.state_file.write_text("{")

            assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=port, detach=True) == 0

            assert children_of(old) == []
            assert not old.runtime.exists()
            assert lab.state.router_url == old.router_url
            assert await status_code(lab, key) == 200
            assert bystander.poll() is None
        finally:
            bystander.kill()
            bystander.wait()


async def test_down_ends_what_a_killed_supervisor_has_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with workspace_with_one_version(tmp_path) as (lab, _):
        old = lab.state
        await kill_supervisor_and_reaper(old)
        assert children_of(old)
        lock = FolderLock(lab.workspace)
        await until(lock.take, "the last thread of the killed supervisor has let go of its lock")
        lock.release()

        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0

        assert "ended" in capsys.readouterr().out
        assert children_of(old) == []
        assert not old.runtime.exists()


async def test_down_kills_a_supervisor_that_is_suspended(tmp_path: Path) -> None:
    async with workspace_with_one_version(tmp_path) as (lab, _):
        old = lab.state
        os.kill(old.pid, signal.SIGSTOP)

        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0

        assert children_of(old) == []
        assert not lab.workspace.state_file.exists()


async def test_a_router_that_does_not_answer_is_replaced(tmp_path: Path) -> None:
    async with workspace_with_one_version(tmp_path) as (lab, key):
        stopped = (await lab.target.processes())["router"]
        os.kill(stopped, signal.SIGSTOP)

        async def answers() -> bool:
            return await status_code(lab, key, timeout_s=2) == 200

        await until(answers, "callers are answered", timeout_s=90)
        assert (await lab.target.processes())["router"] != stopped


async def test_status_has_a_line_for_each_process_and_up_fails_while_one_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workspace_with_one_version(tmp_path) as (lab, key):
        names = {status.name: status.problem for status in await lab.target.process_statuses()}
        assert names == {"supervisor": None, "router": None, "telemetry store": None, "alpha/one-1": None}
        killed = (await lab.target.processes())["telemetry store"]

        os.kill(killed, signal.SIGKILL)

        async def is_restarted() -> bool:
            statuses = {status.name: status for status in await lab.target.process_statuses()}
            store = statuses["telemetry store"]
            return store.pid not in (None, killed) and store.problem is None

        await until(is_restarted, "the store runs and answers again", timeout_s=60)

        # A store that cannot start: `up` says so and fails; so does a start from nothing, which serves all the same.
        lab.state.telemetry_token_file.write_text("short")
        os.kill((await lab.target.processes())["telemetry store"], signal.SIGKILL)
        await until(lambda: _has_exited(lab, "code 2"), "the store cannot start", timeout_s=30)
        monkeypatch.setattr(supervisor, "RECOVERY_TIMEOUT_S", 0.0)
        assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 1
        assert "telemetry store: not running: exited with code 2" in capsys.readouterr().err
        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0
        assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 1
        assert "8 or more visible ASCII characters" in capsys.readouterr().err
        assert await status_code(lab, key) == 200
        assert await asyncio.to_thread(main, ["local", "status", "--root", str(lab.workspace.root)]) == 0
        assert "exited with code 2" in capsys.readouterr().out


async def _has_exited(lab: Lab, how: str) -> bool:
    """Return whether the telemetry store does not run, and how it ended."""
    statuses = {status.name: status for status in await lab.target.process_statuses()}
    return how in (statuses["telemetry store"].problem or "")


async def test_up_fails_and_names_a_version_with_traffic_that_cannot_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with workspace_with_one_version(tmp_path) as (lab, key):
        endpoint = await lab.target.endpoint("alpha")
        crashing = endpoint.create_version("two", image=await lab.image(script=CRASHING), traffic_percentile=20.0)
        await lab.apply(crashing)
        assert await asyncio.to_thread(supervisor.stop_workspace, lab.workspace) == 0

        assert await asyncio.to_thread(supervisor.start_workspace, lab.workspace, port=0, detach=True) == 1

        error = capsys.readouterr().err
        assert "version 'two' of endpoint 'alpha' has failed: replica two-1 exited with code 1" in error
        assert await status_code(lab, key) == 200
