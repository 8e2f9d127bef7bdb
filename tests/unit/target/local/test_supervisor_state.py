"""The lock on a workspace's folder, and the port that a supervisor reserves."""

import os
import socket
from pathlib import Path

import pytest

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.target.local import ports
from controlled_rollout.target.local.supervisor_state import FolderLock
from controlled_rollout.workspace import Workspace


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
