"""The local workspace's life: up, down, run. One supervisor process owns the router, replicas and telemetry."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from typing import Any, Final

from rich.console import Console

from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.polling import block_until
from controlled_rollout.target.local.client import LocalTarget
from controlled_rollout.target.local.processes import LogFile
from controlled_rollout.target.local.state import FolderLock, State
from controlled_rollout.workspace import Workspace

__all__ = ["down", "is_running", "run", "up"]

DEFAULT_PORT: Final = 8088
UP_TIMEOUT_S: Final = 90.0
DOWN_TIMEOUT_S: Final = 120.0
POLL_S: Final = 0.05
LOG_LINES: Final = 15

OK: Final = 0
FAILED: Final = 1
REFUSED: Final = 2


def up(workspace: Workspace, *, port: int = DEFAULT_PORT, detach: bool, host: str = "127.0.0.1") -> int:
    """Start the local workspace and say in one line where its router is.

    Args:
        workspace: Which folder.
        port: The router's port.
        detach: Return once it is healthy and leave it running in the background; else stay until it ends.
        host: The router's address.

    Returns:
        The exit code: 0 running (also if it already was), 1 failed, 2 refused.
    """
    state = State.read(workspace)
    if state and asyncio.run(is_running(workspace)):
        _say(f"already running: {state.router_url} (workspace {workspace.root}, process {state.pid})")
        return OK
    return _start_in_background(workspace, port, host) if detach else run(workspace, port, host)


def run(workspace: Workspace, port: int, host: str) -> int:
    """Run the local workspace in this process until it is told to end; return the exit code."""
    from controlled_rollout.target.local.supervisor_process import serve

    return serve(workspace, port=port, host=host, tell=lambda message: _say(message["message"]))


def _start_in_background(workspace: Workspace, port: int, host: str) -> int:
    """Start the supervisor in a session of its own and wait for its word."""
    log = LogFile(workspace.logs_folder / "supervisor.log")
    log.note("supervisor starts")
    read, write = os.pipe()
    settings = {"root": str(workspace.root), "port": port, "host": host, "tell": write}
    with log.path.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "controlled_rollout.target.local", json.dumps(settings)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[write],
            start_new_session=True,
            cwd="/",
        )
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        message = _first_message(pipe.fileno(), UP_TIMEOUT_S)
    if message is None:
        if process.poll() is None:
            process.terminate()
            process.wait()
        tail = "\n".join(log.tail(LOG_LINES))
        _complain(f"the local workspace in {workspace.root} did not start; the last lines of {log.path}:\n{tail}")
        return FAILED
    if message["code"] != OK:
        process.wait()
        _complain(message["message"])
        return int(message["code"])
    _say(message["message"])
    # The process is meant to outlive this one; without this its object would complain of that.
    process.returncode = 0
    return OK


def _first_message(pipe: int, timeout_s: float) -> dict[str, Any] | None:
    """Return what the supervisor says first; None if it ends, or says nothing in time."""
    deadline = time.monotonic() + timeout_s
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
        data = os.read(pipe, 65536) if ready else b""
        if not data:
            return None
        text += data
    message: dict[str, Any] = json.loads(text)
    return message


def down(workspace: Workspace) -> int:
    """Stop the local workspace: requests in flight are answered, endpoints, keys and telemetry stay on disk.

    Returns:
        The exit code: 0 stopped (also if it was not running), 1 it did not end in time.
    """
    lock = FolderLock(workspace)
    if not workspace.root.is_dir():
        _say(f"not running (there is no workspace in {workspace.root})")
        return OK
    if lock.take():
        lock.release()
        _say(f"not running (workspace {workspace.root})")
        return OK
    state = State.read(workspace)
    try:
        asyncio.run(_shut_down(workspace))
    except TargetUnavailableError:
        # It holds the lock and does not answer: it is starting, or stuck. Ask the kernel to ask it.
        if state:
            os.kill(state.pid, signal.SIGTERM)
    if not block_until(lock.take, DOWN_TIMEOUT_S, interval_s=POLL_S):
        _complain(
            f"the supervisor in {workspace.root} (process {state.pid if state else 'unknown'}) did not end within "
            f"{DOWN_TIMEOUT_S:g} s: look into {workspace.logs_folder / 'supervisor.log'}"
        )
        return FAILED
    lock.release()
    _say(f"stopped (workspace {workspace.root})")
    return OK


async def is_running(workspace: Workspace) -> bool:
    """Return whether the supervisor of a local workspace answers."""
    async with LocalTarget.open(workspace) as target:
        try:
            await target.check_health()
        except TargetUnavailableError:
            return False
    return True


async def _shut_down(workspace: Workspace) -> None:
    async with LocalTarget.open(workspace) as target:
        await target.shut_down()


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text, markup=False)


def _complain(text: str) -> None:
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)
