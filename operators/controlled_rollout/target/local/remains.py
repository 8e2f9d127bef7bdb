"""What a supervisor leaves behind that was killed together with its reaper, or hangs without its lock.

Processes, sockets, its state file; and the supervisor itself, if somebody has deleted its lock and it does not answer.
"""

import os
import shutil
import signal
from pathlib import Path
from typing import Final

from controlled_rollout.polling import block_until
from controlled_rollout.target.local import reaper
from controlled_rollout.target.local.child_process import RUNTIME_VARIABLE
from controlled_rollout.target.local.process_identity import ProcessIdentity
from controlled_rollout.target.local.process_status import ProcessStatus
from controlled_rollout.target.local.supervisor_state import FolderLock, SupervisorState
from controlled_rollout.workspace import Workspace

__all__ = ["RUNTIME_PREFIX", "end_remains", "remaining_processes", "supervisor_without_lock"]

RUNTIME_PREFIX: Final = "cr-"
COMMAND_LENGTH: Final = 80
KILL_TIMEOUT_S: Final = 10.0


def end_remains(workspace: Workspace, lock: FolderLock) -> int:
    """Kill what an earlier supervisor has left, and itself, and remove its files; return the number of processes.

    Args:
        workspace: The workspace.
        lock: Its lock, which the caller holds: no supervisor runs.
    """
    ended = 0
    # First: a supervisor that goes on would start its children again.
    if (stray := supervisor_without_lock(workspace)) is not None and stray.send_signal(signal.SIGKILL):
        ended += block_until(lambda: not stray.is_running(), KILL_TIMEOUT_S)
    for runtime in _runtime_folders(workspace, lock):
        ended += reaper.kill_marked(_mark_variable(runtime))
        shutil.rmtree(runtime, ignore_errors=True)
    workspace.state_file.unlink(missing_ok=True)
    return ended


def supervisor_without_lock(workspace: Workspace) -> ProcessIdentity | None:
    """Return the supervisor that the state file names and that runs; None if none does.

    Args:
        workspace: The workspace, whose lock the caller holds: somebody has deleted that of the supervisor.
    """
    state = SupervisorState.read(workspace)
    process = state.process if state else None
    return process if process and process.pid != os.getpid() and process.is_running() else None


def remaining_processes(workspace: Workspace) -> list[ProcessStatus]:
    """Return the processes of a supervisor that does not answer; its children carry its mark in their environment."""
    lock = FolderLock(workspace)
    pids = sorted(
        pid for runtime in _runtime_folders(workspace, lock) for pid in reaper.marked_processes(_mark_variable(runtime))
    )
    problem = f"left behind: `{workspace.local_command('up')}` starts anew, `local down` ends it"
    return [ProcessStatus(name=_command_of(pid), pid=pid, problem=problem) for pid in pids]


def _runtime_folders(workspace: Workspace, lock: FolderLock) -> set[Path]:
    """Return the runtime folders of the supervisors that the lock and the state file name."""
    owner, state = lock.owner(), SupervisorState.read(workspace)
    folders = {entry.runtime for entry in (owner, state) if entry}
    # Whatever those files hold, nothing but a runtime folder is ever removed.
    return {folder for folder in folders if folder.name.startswith(RUNTIME_PREFIX) and folder.is_absolute()}


def _mark_variable(runtime: Path) -> str:
    """Return the environment variable that marks the children of one supervisor: its folder's name is never reused."""
    return f"{RUNTIME_VARIABLE}={runtime}"


def _command_of(pid: int) -> str:
    """Return the beginning of a process's command line; its number if it has just ended."""
    try:
        words = (reaper.PROC / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"process {pid}"
    return b" ".join(words).decode(errors="replace").strip()[:COMMAND_LENGTH]
