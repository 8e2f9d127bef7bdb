"""The lock on a workspace's folder, and the port that a supervisor reserves."""

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local import ports, supervisor, supervisor_process, supervisor_state
from controlled_rollout.target.local.process_identity import ProcessIdentity
from controlled_rollout.target.local.supervisor_state import FolderLock, SupervisorState
from controlled_rollout.workspace import Workspace
from tests.polling import wait_until


def test_one_process_owns_a_folder(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    first, second = FolderLock(workspace), FolderLock(workspace)

    assert first.take()
    assert not second.take()
    first.release()
    assert second.take()
    second.release()


def test_the_lock_names_its_owner_and_its_runtime_folder(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    lock, other = FolderLock(workspace), FolderLock(workspace)
    assert other.owner() is None
    assert lock.take()

    lock.name_owner(tmp_path / "cr-1")

    owner = other.owner()
    assert owner is not None
    assert (owner.process.pid, owner.runtime) == (os.getpid(), tmp_path / "cr-1")
    assert owner.process.is_running()
    assert not other.take()
    lock.release()
    assert other.take()
    assert other.owner() == owner
    other.release()


@pytest.mark.parametrize("damage", ["deleted", "replaced"])
def test_a_lock_whose_file_is_gone_is_taken_again_under_its_name(tmp_path: Path, damage: str) -> None:
    workspace = Workspace.local(tmp_path)
    lock, other = FolderLock(workspace), FolderLock(workspace)
    assert lock.take() and lock.keep(tmp_path / "cr-1") == ""
    (tmp_path / "lock").unlink()
    if damage == "replaced":
        (tmp_path / "lock").write_text("somebody's")

    assert lock.keep(tmp_path / "cr-1") == ""

    assert not other.take()
    owner = other.owner()
    assert owner is not None and owner.runtime == tmp_path / "cr-1"
    lock.release()
    assert other.take()
    other.release()


def test_a_lock_whose_file_is_gone_and_that_another_has_taken_is_lost(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    lock, other = FolderLock(workspace), FolderLock(workspace)
    assert lock.take()
    (tmp_path / "lock").unlink()
    assert other.take()

    assert "has taken its place" in lock.keep(tmp_path / "cr-1")

    lock.release()
    assert not FolderLock(workspace).take(), "the other one has it still"
    other.release()


def test_a_folder_that_is_gone_is_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "workspace"
    root.mkdir()
    lock = FolderLock(Workspace.local(root))
    assert lock.take()
    (root / "lock").unlink()
    root.rmdir()

    assert lock.keep(tmp_path / "cr-1") == ""

    root.mkdir()
    assert lock.keep(tmp_path / "cr-1") == ""
    assert not FolderLock(Workspace.local(root)).take()
    (root / "lock").unlink()
    root.rmdir()
    assert lock.keep(tmp_path / "cr-1") == "", "its time counts anew"
    monkeypatch.setattr(supervisor_state, "GONE_S", 0.0)
    assert lock.keep(tmp_path / "cr-1") == "its folder was deleted"
    lock.release()


async def test_a_supervisor_whose_folder_is_gone_writes_no_certificate_that_would_make_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_process, "STATE_INTERVAL_S", 0.0)
    answers = iter(["", "", "its folder was deleted"])
    looks: list[int] = []

    async def look() -> None:
        looks.append(1)

    process: Any = object.__new__(supervisor_process._SupervisorProcess)
    process._end, process._runtime, process._workspace = asyncio.Event(), tmp_path, Workspace.local(tmp_path / "gone")
    process._lock = SimpleNamespace(keep=lambda _: next(answers))
    process._certificate, process._telemetry = SimpleNamespace(look=look), SimpleNamespace(workspace_id="one")

    async with asyncio.timeout(30):
        await process._keep_state()

    assert process._end.is_set()
    assert looks == []


def test_down_ends_a_supervisor_whose_lock_was_deleted_and_not_its_children_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace = Workspace.local(tmp_path)
    lock = FolderLock(workspace)
    asked: list[bool] = []

    async def answers(_workspace: Workspace) -> bool:
        return not asked

    async def shut_down(_workspace: Workspace) -> None:
        assert lock.keep(tmp_path / "cr-1") == "", "it has its lock again"
        asked.append(True)
        lock.release()

    monkeypatch.setattr(supervisor, "is_running", answers)
    monkeypatch.setattr(supervisor, "_request_shutdown", shut_down)
    monkeypatch.setattr(supervisor, "LOCK_KEPT_S", 0.2)
    assert lock.take()
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").touch()

    assert supervisor.stop_workspace(workspace) == 0

    assert asked == [True]
    assert "stopped" in capsys.readouterr().out


@pytest.mark.parametrize("suspended", [True, False])
def test_down_kills_a_supervisor_that_hangs_and_whose_lock_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, suspended: bool
) -> None:
    """It would start its children again once it goes on."""
    workspace = Workspace.local(tmp_path)
    monkeypatch.setattr(supervisor, "LOCK_KEPT_S", 0.05)
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            wait_until(lambda: "sleep" in _command_of(process.pid), "it runs its program", timeout_s=20)
            identity = ProcessIdentity.of(process.pid)
            state = SupervisorState(
                pid=process.pid, process=identity, runtime=tmp_path / "cr-1", socket=tmp_path / "cr-1" / "socket",
                router_url="", telemetry_url="", telemetry_workspace_id=None, telemetry_token_file=tmp_path,
                envoy_admin=tmp_path,
            )  # fmt: skip
            state.write(workspace)
            if suspended:
                process.send_signal(signal.SIGSTOP)

            assert supervisor.stop_workspace(workspace) == 0

            assert process.wait(10) == -signal.SIGKILL
        finally:
            process.kill()
    assert "killed, because the supervisor hung" in capsys.readouterr().out
    assert not workspace.state_file.exists()


def _command_of(pid: int) -> str:
    """Return the command line of a process."""
    identity = ProcessIdentity.of(pid)
    return identity.command if identity else ""


def test_half_a_lock_file_has_no_owner_and_still_locks(tmp_path: Path) -> None:
    workspace = Workspace.local(tmp_path)
    (tmp_path / "lock").write_text('{"process": {"pid": 1')
    lock = FolderLock(workspace)

    assert lock.take()

    assert lock.owner() is None
    assert not FolderLock(workspace).take()
    lock.release()


def test_only_a_child_can_listen_on_a_reserved_port() -> None:
    with ports.reserve_port("127.0.0.1", 0) as reserved:
        port = reserved.getsockname()[1]
        with socket.socket() as child:
            child.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            child.bind(("127.0.0.1", port))
            child.listen()
            with pytest.raises(WorkspaceError, match=f"port {port}"):
                ports.reserve_port("127.0.0.1", port)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
