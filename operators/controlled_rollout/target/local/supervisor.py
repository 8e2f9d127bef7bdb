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
from urllib.parse import urlsplit

from rich.console import Console

from controlled_rollout.errors import TargetUnavailableError, WorkspaceError
from controlled_rollout.polling import block_until, until
from controlled_rollout.target.local.child_process import supervisor_environment
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.target.local.collector_process import storage_credentials
from controlled_rollout.target.local.log_file import LogFile
from controlled_rollout.target.local.remains import end_remains, supervisor_without_lock
from controlled_rollout.target.local.supervisor_state import FolderLock, SupervisorState
from controlled_rollout.target.local.workspace_folder import prepare_folder
from controlled_rollout.workspace import Workspace, is_url

if TYPE_CHECKING:
    from controlled_rollout.target.local.supervisor_process import StartReport

__all__ = ["is_running", "start_workspace", "stop_workspace"]

DEFAULT_PORT: Final = 8088
# More than the sum of what the supervisor's process waits for: it reports which part has not started.
UP_TIMEOUT_S: Final = 180.0
DOWN_TIMEOUT_S: Final = 120.0
# How long `up` waits for a process that is being started again.
RECOVERY_TIMEOUT_S: Final = 20.0
KILL_TIMEOUT_S: Final = 10.0
# Within this time a supervisor has locked its folder again whose lock somebody has deleted.
LOCK_KEPT_S: Final = 5.0
POLL_S: Final = 0.05
LOG_LINES: Final = 15
# The settings of the workspace that its supervisor is told.
HANDED_OVER: Final = {"root", "cache_folder", "storage", "tls", "tls_certificate", "tls_key", "endpoint_ca", "records"}

OK: Final = 0
FAILED: Final = 1
REFUSED: Final = 2


def start_workspace(workspace: Workspace, *, port: int | None = None, detach: bool, host: str = "127.0.0.1") -> int:
    """Start a local workspace, print the router's address, and return the exit code.

    Args:
        workspace: A workspace whose target is `local`.
        port: The router's port; 0 for any free one; None for the one at which it runs, else 8088.
        detach: Whether to return once everything runs, and leave it running in the background.
        host: The router's address.

    Returns:
        0 everything runs (also if it already did), 1 something does not, 2 refused.
    """
    state = SupervisorState.read(workspace)
    if state and asyncio.run(is_running(workspace)):
        _print(f"already running: {state.router_url} (workspace {workspace.root}, process {state.pid})")
        if workspace.has_tls and not state.router_url.startswith("https:"):
            _print_error(
                f"it was started without TLS: end it with `{workspace.local_command('down')}`, and start it again so"
            )
            return REFUSED
        if port and port != urlsplit(state.router_url).port:
            _print_error(
                f"it was started with another port than {port}: to change it, end it with "
                f"`{workspace.local_command('down')}`, and start it again"
            )
            return REFUSED
        problems = asyncio.run(_lasting_problems(workspace))
        for problem in problems:
            _print_error(problem)
        return FAILED if problems else OK
    port = DEFAULT_PORT if port is None else port
    try:
        prepare_folder(workspace.root)
    except WorkspaceError as error:
        _print_error(str(error))
        return REFUSED
    if not detach:
        # In this process, so that whoever waits for it or signals it has the supervisor itself.
        credentials = _credentials_descriptor(workspace)
        command = _command(workspace, port, host, credentials=credentials)
        os.execve(sys.executable, command, supervisor_environment())  # noqa: S606
    return _start_in_background(workspace, port, host)


def _credentials_descriptor(workspace: Workspace) -> int | None:
    """Return a descriptor, which programs inherit, of a file in memory with what the collector signs in with.

    Neither the command line nor the environment of a process may have it. None if the storage is a folder.
    """
    if not is_url(workspace.storage_place):
        return None
    descriptor = os.memfd_create("credentials", flags=0)
    os.write(descriptor, json.dumps(storage_credentials(os.environ)).encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _command(
    workspace: Workspace, port: int, host: str, *, report_pipe: int | None = None, credentials: int | None = None
) -> list[str]:
    """Return the command of the supervisor; without a pipe it prints how the start went."""
    settings = {
        "workspace": workspace.model_dump(mode="json", include=HANDED_OVER),
        "port": port,
        "host": host,
        "report_pipe": report_pipe,
        "credentials": credentials,
    }
    return [sys.executable, "-P", "-m", "controlled_rollout.target.local", json.dumps(settings)]


def _start_in_background(workspace: Workspace, port: int, host: str) -> int:
    """Start the supervisor in its own session and wait until it reports its start; return the exit code."""
    log = LogFile(workspace.logs_folder / "supervisor.log")
    log.note("supervisor starts")
    read_end, write_end = os.pipe()
    credentials = _credentials_descriptor(workspace)
    inherited = [write_end] if credentials is None else [write_end, credentials]
    with log.path.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            _command(workspace, port, host, report_pipe=write_end, credentials=credentials),
            env=supervisor_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=inherited,
            start_new_session=True,
            cwd="/",
        )
    for descriptor in inherited:
        os.close(descriptor)
    with os.fdopen(read_end, "rb") as pipe:
        report = _read_report(pipe.fileno(), UP_TIMEOUT_S)
    if report is None:
        if process.poll() is None:
            process.terminate()
            process.wait()
        tail = "\n".join(log.tail(LOG_LINES))
        _print_error(f"the local workspace in {workspace.root} did not start; the last lines of {log.path}:\n{tail}")
        return FAILED
    (_print if report["code"] == OK else _print_error)(report["message"])
    if report["goes_on"]:
        # The process outlives this one on purpose; without this line subprocess would warn about it.
        process.returncode = 0
    else:
        process.wait()
    return report["code"]


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

    A supervisor that hangs is killed. What a killed supervisor has left is ended. Only the very process that holds the
    workspace's lock gets a signal, or, if that lock was deleted, that its state file names; and its children, which its
    runtime folder marks.

    Returns:
        The exit code: 0 nothing runs any more, 1 it could not be ended.
    """
    lock = FolderLock(workspace)
    if SupervisorState.read(workspace) is None and not lock.exists():
        _print(f"not running (there is no workspace in {workspace.root})")
        return OK
    if not lock.take():
        return _end_supervisor(workspace, lock)
    if asyncio.run(is_running(workspace)):
        # Somebody has deleted its lock a moment ago: it takes it again, and is then ended as any other.
        lock.release()
        block_until(lambda: not _can_be_taken(lock), LOCK_KEPT_S, interval_s=POLL_S)
        return _end_supervisor(workspace, lock)
    stray = supervisor_without_lock(workspace)
    if stray is not None and not stray.is_suspended():
        lock.release()
        if block_until(lambda: not _can_be_taken(lock), LOCK_KEPT_S, interval_s=POLL_S) or not lock.take():
            return _end_supervisor(workspace, lock)  # it was only slow
    ended = end_remains(workspace, lock)
    lock.release()
    killed = f": its supervisor had been killed; ended {ended} processes that it had left" if ended else ""
    if stray is None:
        _print(f"not running (workspace {workspace.root}){killed}")
    elif stray.is_running():
        _print_error(f"the supervisor in {workspace.root} (process {stray.pid}) could not be killed")
        return FAILED
    else:
        _print(f"killed, because the supervisor hung, and its lock was deleted (workspace {workspace.root})")
    return OK


def _can_be_taken(lock: FolderLock) -> bool:
    """Return whether nobody holds a lock; it is not held afterwards."""
    if not lock.take():
        return False
    lock.release()
    return True


def _end_supervisor(workspace: Workspace, lock: FolderLock) -> int:
    """Ask the supervisor that holds the lock to end, kill it if it does not; return the exit code."""
    owner = lock.owner()
    process = owner.process if owner else None
    is_suspended = process is not None and process.is_suspended()
    if not is_suspended:
        try:
            asyncio.run(_request_shutdown(workspace))
        except TargetUnavailableError:
            # It holds the lock and does not answer, so it is starting or hangs: a signal ends it.
            if process:
                process.send_signal(signal.SIGTERM)
    timeout_s = 0.0 if is_suspended else DOWN_TIMEOUT_S
    how = "stopped"
    if not block_until(lock.take, timeout_s, interval_s=POLL_S):
        how = f"killed, because the supervisor {'is suspended' if is_suspended else f'did not end in {timeout_s:g} s'}"
        if process:
            process.send_signal(signal.SIGKILL)
        if not block_until(lock.take, KILL_TIMEOUT_S if process else 0.0):
            _print_error(
                f"the supervisor in {workspace.root} (process {process.pid if process else 'unknown'}) did not end "
                f"within {timeout_s:g} s: look into {workspace.logs_folder / 'supervisor.log'}"
            )
            return FAILED
    end_remains(workspace, lock)
    lock.release()
    _print(f"{how} (workspace {workspace.root})")
    return OK


async def is_running(workspace: Workspace) -> bool:
    """Return whether the supervisor of a local workspace answers a health check."""
    async with LocalTarget.open(workspace) as target:
        try:
            await target.check_health()
        except TargetUnavailableError:
            return False
    return True


async def _lasting_problems(workspace: Workspace) -> list[str]:
    """Return a sentence if the router or the telemetry store of a running workspace does not come back in time."""
    problems: list[str] = []
    async with LocalTarget.open(workspace) as target:

        async def are_solved() -> bool:
            """Return whether both run and answer; set `problems`."""
            nonlocal problems
            statuses = [status for status in await target.process_statuses() if "/" not in status.name]
            problems = [f"{status.name}: {status.problem}" for status in statuses if status.problem]
            return not problems

        await until(are_solved, RECOVERY_TIMEOUT_S, interval_s=POLL_S)
    return [f"{problem}; look into {workspace.logs_folder}" for problem in problems]


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
