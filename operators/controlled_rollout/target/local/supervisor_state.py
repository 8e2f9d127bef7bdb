"""The state file by which clients find a running supervisor, and the lock on its folder."""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.target.local import atomic_files
from controlled_rollout.target.local.process_identity import ProcessIdentity
from controlled_rollout.target.local.reserve import Reserve
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.workspace import Workspace

__all__ = ["FolderLock", "LockOwner", "SupervisorState"]

# After which time a folder that was deleted is not one that somebody replaces.
GONE_S: Final = 10.0


class SupervisorState(BaseModel):
    """The addresses of a running supervisor: the content of `workspace.state_file`.

    Attributes:
        pid: The supervisor's process id.
        runtime: Its private folder of sockets.
        socket: The unix socket of its API.
        router_url: The router's address for callers.
        router_ca: The file with the authority that the router's certificate is checked against; None for this
            machine's authorities, or without TLS.
        telemetry_url: The telemetry store's base address.
        telemetry_workspace_id: The workspace that queries name; None until the store has answered once.
        telemetry_token_file: Holds the bearer token that queries must bring.
        envoy_admin: The unix socket of the router's administration interface.
        process: The supervisor by more than its number; None if it is not known.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    runtime: Path
    socket: Path
    router_url: str
    router_ca: Path | None = None
    telemetry_url: str
    telemetry_workspace_id: str | None
    telemetry_token_file: Path
    envoy_admin: Path
    process: ProcessIdentity | None = None

    @classmethod
    def read(cls, workspace: Workspace) -> Self | None:
        """Return the state of the supervisor that runs or was killed; None if none ran or the last one ended itself.

        Raises:
            TargetUnavailableError: The workspace's folder cannot be read, so nobody knows.
        """
        try:
            return cls.model_validate_json(read_regular_file(workspace.state_file))
        except (FileNotFoundError, ValidationError):
            return None
        except OSError as error:
            raise TargetUnavailableError(
                f"the folder of the local workspace {workspace.root} cannot be read ({error.strerror or error}): use "
                "the account that started it, or name another folder"
            ) from error

    def write(self, workspace: Workspace, reserve: Reserve | None = None) -> None:
        """Write the state file of a workspace.

        Args:
            workspace: The workspace.
            reserve: The space to use if the disk is full: without this file nobody finds the supervisor to go back.
        """
        atomic_files.write_atomically(workspace.state_file, self.model_dump_json(indent=1).encode(), reserve=reserve)


class LockOwner(BaseModel):
    """Who holds or last held the lock: the content of its file, written before anything is started.

    Attributes:
        process: The supervisor.
        runtime: Its private folder of sockets, by whose path its children are marked.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    process: ProcessIdentity
    runtime: Path


class FolderLock:
    """The lock on a workspace's folder; the kernel releases it when its process ends."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._path = workspace.root / "lock"
        self._descriptor = -1
        self._gone_since_s: float | None = None

    def exists(self) -> bool:
        """Return whether a supervisor has ever run in this folder."""
        return self._path.exists()

    def owner(self) -> LockOwner | None:
        """Return who holds the lock, or held it last; None if that is not known."""
        try:
            return LockOwner.model_validate_json(self._path.read_bytes())
        except (OSError, ValidationError):
            return None

    def name_owner(self, runtime: Path) -> None:
        """Write into the lock's file that this process holds it, and where its runtime folder is."""
        process = ProcessIdentity.of(os.getpid())
        if process is None:
            return
        content = LockOwner(process=process, runtime=runtime).model_dump_json().encode()
        # Written in place: another file under this name would be another lock. A full disk keeps no workspace from
        # being started: only a supervisor that hangs could then not be killed by `down`.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, content, 0)
            os.fsync(self._descriptor)

    def take(self) -> bool:
        """Lock the folder; return False if another process has locked it.

        Raises:
            WorkspaceError: The lock cannot be opened.
        """
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise WorkspaceError(
                f"the lock {self._path} of a local workspace cannot be opened ({error.strerror}): use the account that "
                "started the workspace, or name another folder"
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        return True

    def keep(self, runtime: Path) -> str:
        """Lock the folder again if somebody has deleted or replaced the lock's file; return why it is lost, or "".

        Without this a second supervisor could be started in the folder: it would lock another file of that name. Where
        the folder itself is gone for long, nothing is left to serve, and nobody could find who holds the port.

        Args:
            runtime: The private folder of this process, which holds the lock.
        """
        try:
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self._path)):
                self._gone_since_s = None
                return ""
        except OSError:  # it was deleted
            pass
        again = FolderLock(self._workspace)
        try:
            if not again.take():
                return "its lock was deleted, and another supervisor, or `local down`, has taken its place"
        except WorkspaceError:
            return self._problem_without_folder()
        os.close(self._descriptor)
        self._descriptor, self._gone_since_s = again._descriptor, None
        self.name_owner(runtime)
        return ""

    def _problem_without_folder(self) -> str:
        """Return that the folder was deleted, once it has been gone for long; else "": perhaps it is only replaced."""
        if self._workspace.root.exists():
            return ""
        now_s = time.monotonic()
        self._gone_since_s = now_s if self._gone_since_s is None else self._gone_since_s
        return "its folder was deleted" if now_s - self._gone_since_s >= GONE_S else ""

    def release(self) -> None:
        """Unlock the folder."""
        os.close(self._descriptor)
        self._descriptor = -1
