"""Start and stop the supervisor process of a local workspace."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from rich.console import Console

from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.polling import block_until
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.supervisor_state import FolderLock, SupervisorState
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.target.local.supervisor_process import StartReport

__all__ = ["is_running", "run_in_foreground", "start_workspace", "stop_workspace"]

DEFAULT_PORT: Final = 8088
UP_TIMEOUT_S: Final = 90.0
DOWN_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.05
LOG_LINES: Final = 15

OK: Final = 0
FAILED: Final = 1


def start_workspace(workspace: Workspace, *, port: int = DEFAULT_PORT, detach: bool, host: str = "127.0.0.1") -> int:
    """Start a local workspace, print the router's address, and return the exit code.

    Args:
        workspace: A workspace whose target is `local`.
        port: The router's port; 0 for any free one.
        detach: Whether to return once everything runs, and leave it running in the background.
        host: The router's address.

    Returns:
        0 running (also if it already was), 1 failed, 2 refused.
    """
    state = SupervisorState.read(workspace)
    if state and asyncio.run(is_running(workspace)):
        _print(f"already running: {state.router_url} (workspace {workspace.root}, process {state.pid})")
        return OK
    return _start_in_background(workspace, port, host) if detach else run_in_foreground(workspace, port, host)


def run_in_foreground(workspace: Workspace, port: int, host: str) -> int:
    """Run a local workspace in this process until a signal or a client ends it; return the exit code."""
    from controlled_rollout.target.local.supervisor_process import run_supervisor

    return run_supervisor(workspace, port=port, host=host, report=lambda start: _print(start["message"]))


def _start_in_background(workspace: Workspace, port: int, host: str) -> int:
    """Start the supervisor in its own session and wait until it reports its start; return the exit code."""
    log = LogFile(workspace.logs_folder / "supervisor.log")
    log.note("supervisor starts")
    read_end, write_end = os.pipe()
    settings = {
        "workspace": {"root": str(workspace.root), "cache_folder": str(workspace.cache_folder)},
        "port": port,
        "host": host,
        "report_pipe": write_end,
    }
    with log.path.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "controlled_rollout.target.local", json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write_end],
            start_new_session=True,
            cwd="/",
        )
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = _read_report(pipe.fileno(), UP_TIMEOUT_S)
    if report is None:
        if process.poll() is None:
            process.terminate()
            process.wait()
        tail = "\n".join(log.tail(LOG_LINES))
        _print_error(f"the local workspace in {workspace.root} did not start; the last lines of {log.path}:\n{tail}")
        return FAILED
    if report["code"] != OK:
        process.wait()
        _print_error(report["message"])
        return report["code"]
    _print(report["message"])
    # The process outlives this one on purpose; without this line subprocess would warn about it.
    process.returncode = 0
    return OK


def _read_report(pipe_fd: int, timeout_s: float) -> "StartReport | None":
    """Read how the start went from a pipe; return None if the supervisor ends without a report or is too slow."""
    deadline = time.monotonic() + timeout_s
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([pipe_fd], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(pipe_fd, 65536) if ready else b""
        if not data:
            return None
        text += data
    report: StartReport = json.loads(text)
    return report


def stop_workspace(workspace: Workspace) -> int:
    """Stop a local workspace once open requests are answered; endpoints, keys and telemetry stay on disk.

    Returns:
        The exit code: 0 stopped (also if it was not running), 1 it did not end in time.
    """
    lock = FolderLock(workspace)
    if not workspace.root.is_dir():
        _print(f"not running (there is no workspace in {workspace.root})")
        return OK
    if lock.take():
        lock.release()
        _print(f"not running (workspace {workspace.root})")
        return OK
    state = SupervisorState.read(workspace)
    try:
        asyncio.run(_request_shutdown(workspace))
    except TargetUnavailableError:
        # It holds the lock and does not answer, so it is starting or hangs: a signal ends it.
        if state:
            os.kill(state.pid, signal.SIGTERM)
    if not block_until(lock.take, DOWN_TIMEOUT_S, interval_s=POLL_S):
        _print_error(
            f"the supervisor in {workspace.root} (process {state.pid if state else 'unknown'}) did not end within "
            f"{DOWN_TIMEOUT_S:g} s: look into {workspace.logs_folder / 'supervisor.log'}"
        )
        return FAILED
    lock.release()
    _print(f"stopped (workspace {workspace.root})")
    return OK


async def is_running(workspace: Workspace) -> bool:
    """Return whether the supervisor of a local workspace answers a health check."""
    async with LocalTarget.open(workspace) as target:
        try:
            await target.check_health()
        except TargetUnavailableError:
            return False
    return True


async def _request_shutdown(workspace: Workspace) -> None:
    """Send the supervisor of a workspace the request to end."""
    async with LocalTarget.open(workspace) as target:
        await target.shut_down()


def _print(text: str) -> None:
    """Print a line to stdout, unformatted and without line breaks."""
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def _print_error(text: str) -> None:
    """Print a line to stderr, unformatted and without line breaks."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)
