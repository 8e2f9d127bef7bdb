"""A local workspace and an Airflow in one folder, started side by side: for the demo and for `make up`."""

import asyncio
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from controlled_rollout.target.local import supervisor
from controlled_rollout.workspace import Workspace
from scripts.demo.airflow import AIRFLOW, HOST, REPOSITORY, Airflow
from scripts.demo.errors import DemoError
from scripts.demo.processes import Processes

__all__ = ["ALL_PARTS", "LocalStack", "free_ports", "run_quietly"]

WORKSPACE: Final = "local workspace"
ALL_PARTS: Final = {AIRFLOW, WORKSPACE}
END_GRACE_S: Final = 10.0
# Longer than `local down` takes to kill a supervisor that does not end.
DOWN_TIMEOUT_S: Final = supervisor.DOWN_TIMEOUT_S + supervisor.KILL_TIMEOUT_S + 20.0


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 on which no process listens."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind((HOST, 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def environment() -> dict[str, str]:
    """Return the caller's environment with this repository on Python's path and bytecode kept."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return inherited | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}


async def run_quietly(name: str, argv: Sequence[str], *, log: Path) -> None:
    """Run a Python command to its end with its output in `log`; it is ended if this task is cancelled.

    Raises:
        DemoError: It failed; the message has its last lines.
    """
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *argv, env=environment(), stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if code:
        tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
        raise DemoError(f"{name} failed with code {code}: {tail} (its whole output: {log})")


class LocalStack:
    """A folder with a local workspace, an Airflow, their logs, and the list of their processes.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.logs = self.folder / "logs"
        self.processes = Processes(self.folder)
        self._cleared = self.folder.with_name(f"{self.folder.name}-cleared")
        self.workspace = Workspace.local(self.folder / "workspace")

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the folder against other demos.

        Raises:
            DemoError: Another demo has locked it.
        """
        lock = self.folder.with_name(f"{self.folder.name}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise DemoError(
                    f"{self.folder} is in use by process {file.read().strip() or '(unknown)'}: "
                    "wait until it ends, or end it with `kill`"
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    async def clear(self) -> None:
        """End the processes of an earlier run, and move its files away; `remove_cleared` deletes them later."""
        if self.folder.exists():
            await self.end()
            self._cleared.mkdir(parents=True, exist_ok=True)
            self.folder.rename(self._cleared / str(time.time_ns()))

    async def remove_cleared(self) -> None:
        """Delete the files that `clear` has moved away."""
        await asyncio.to_thread(shutil.rmtree, self._cleared, ignore_errors=True)

    def prepare(self) -> None:
        """Make the folders; only the owner can look into them."""
        self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.workspace.root.mkdir(mode=0o700, exist_ok=True)

    def start_airflow(self, *, port: int, schedules: bool) -> Airflow:
        """Start Airflow on `port`; it is not healthy yet when this returns."""
        airflow = Airflow(self.folder / "airflow", port=port, log=self.logs / "airflow.log")
        first, second = free_ports(2)
        airflow.start(
            self.processes, log_ports=(first, second), workspace_root=self.workspace.root, schedules=schedules
        )
        return airflow

    async def start_workspace(self, *, port: int) -> None:
        """Start the local workspace with its router on `port`, by the command that a user types."""
        command = [
            "-m",
            "controlled_rollout.cli",
            "local",
            "up",
            "--root",
            str(self.workspace.root),
            "--port",
            str(port),
        ]
        await run_quietly("controlled-rollout local up", command, log=self.logs / "workspace.log")

    async def running(self) -> list[str]:
        """Return the names of the parts that run."""
        names = [started.name for started in self.processes.started() if self.processes.is_running(started)]
        return names + ([WORKSPACE] if await supervisor.is_running(self.workspace) else [])

    async def end(self) -> None:
        """End all parts."""
        ending_processes = asyncio.to_thread(self.processes.end_all, grace_s=END_GRACE_S)
        if self.workspace.state_file.exists():
            self.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
            await asyncio.gather(ending_processes, self._local("down"))
        else:
            await ending_processes

    async def _local(self, action: str, *more: str) -> None:
        command = ["-m", "controlled_rollout.cli", "local", action, "--root", str(self.workspace.root), *more]
        name = f"controlled-rollout local {action}"
        try:
            async with asyncio.timeout(DOWN_TIMEOUT_S):
                await run_quietly(name, command, log=self.logs / "workspace.log")
        except TimeoutError as error:
            log = self.logs / "workspace.log"
            raise DemoError(f"{name} was not over after {DOWN_TIMEOUT_S:g} s: look into {log}") from error
