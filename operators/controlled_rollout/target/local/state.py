"""What a running supervisor tells its clients, and the lock that lets one supervisor own a folder."""

import fcntl
import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from controlled_rollout.target.local import files
from controlled_rollout.workspace import Workspace

__all__ = ["FolderLock", "State"]


class State(BaseModel):
    """The content of `workspace.state_file`.

    Attributes:
        pid: The supervisor's process id.
        runtime: Its private folder of sockets.
        socket: Where it takes requests.
        router_url: Where callers reach the router.
        telemetry_url: Base address of the telemetry store.
        telemetry_workspace_id: The workspace that queries go to; None until the store has said it.
        telemetry_token_file: Holds the bearer token of queries.
        envoy_admin: The router's administration socket.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int
    runtime: Path
    socket: Path
    router_url: str
    telemetry_url: str
    telemetry_workspace_id: str | None
    telemetry_token_file: Path
    envoy_admin: Path

    @classmethod
    def read(cls, workspace: Workspace) -> Self | None:
        """Return the state that the folder's last supervisor wrote, or None if it ended in order."""
        try:
            return cls.model_validate_json(workspace.state_file.read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, workspace: Workspace) -> None:
        """Tell everybody who may read the folder."""
        files.replace(workspace.state_file, self.model_dump_json(indent=1).encode())


class FolderLock:
    """The lock on a workspace's folder; it goes with the process that holds it."""

    def __init__(self, workspace: Workspace) -> None:
        self._path = workspace.root / "lock"
        self._descriptor = -1

    def take(self) -> bool:
        """Return whether the folder is now this process's own."""
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        return True

    def release(self) -> None:
        """Give the folder back."""
        os.close(self._descriptor)
        self._descriptor = -1
