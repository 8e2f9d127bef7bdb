"""A child process that is kept running: started, restarted with growing pauses, and stopped in bounded time."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.target.local.child_process import ChildProcess, describe_exit
from controlled_rollout.target.local.log_file import LogFile

__all__ = ["BackOff", "Command", "SupervisedProcess"]

# How long a process may take to end after SIGTERM when `watch` has found it unhealthy.
UNHEALTHY_GRACE_S: Final = 5.0


@dataclass
class BackOff:
    """Growing pauses between attempts.

    Attributes:
        first_s: The first pause, in seconds; every further pause is twice as long.
        longest_s: The longest pause, in seconds.
        healthy_s: After a run of so many seconds the next pause is the first one again.
    """

    first_s: float
    longest_s: float
    healthy_s: float
    _next_s: float = 0.0

    def next_pause(self, run_s: float) -> float:
        """Return the pause in seconds before the next start, after a process that ran for `run_s` seconds."""
        if not self._next_s or run_s >= self.healthy_s:
            self._next_s = self.first_s
        pause, self._next_s = self._next_s, min(self._next_s * 2, self.longest_s)
        return pause


@dataclass(frozen=True)
class Command:
    """How a process is started.

    Attributes:
        arguments: The program and its arguments.
        environment: All of its environment variables.
        folder: Where it runs; None for the supervisor's own folder.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path | None = None


async def _never_unhealthy(exited: "asyncio.Task[int]") -> str | None:
    """Return None at once: the default `watch`, for a process without health checks."""
    return None


class SupervisedProcess:
    """A child process that is started again whenever it ends, until `stop` or `do_not_restart` is called.

    Args:
        name: What it is called in the log.
        command: Returns the command; called before every start.
        log: Receives the process's output and a note when it ends.
        back_off: The pauses between an end and the next start.
        on_exit: Called after every end with its reason in words, before the pause.
        unhealthy_grace_s: How long a process that `watch` finds unhealthy may take to end after SIGTERM, in seconds.
        watch: Called after every start with a task that is done when the process has ended. Returns None when nothing
            is wrong with the process, or why it has to end; it is then stopped and started again.

    Attributes:
        starts: How often the process was started.
        last_exit: How it ended last, in words; None if it never did.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Command],
        *,
        log: LogFile,
        back_off: BackOff,
        on_exit: Callable[[str], None] = lambda reason: None,
        watch: Callable[["asyncio.Task[int]"], Awaitable[str | None]] = _never_unhealthy,
        unhealthy_grace_s: float = UNHEALTHY_GRACE_S,
    ) -> None:
        self.name = name
        self.starts = 0
        self.last_exit: str | None = None
        self.is_stopping = False
        self._command = command
        self._log = log
        self._back_off = back_off
        self._on_exit = on_exit
        self._watch = watch
        self._unhealthy_grace_s = unhealthy_grace_s
        self._child: ChildProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._no_restart = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The process id; None while no process runs."""
        return self._child.pid if self._child else None

    def start(self) -> None:
        """Start the process and restart it whenever it ends; do nothing if that is the case already."""
        if self._task is None or self._task.done():
            self.is_stopping = False
            self._no_restart.clear()
            self._task = asyncio.create_task(self._keep_running(), name=self.name)

    def do_not_restart(self) -> None:
        """Do not start the process again once it has ended; a running process goes on."""
        self._no_restart.set()

    async def stop(self, grace_s: float) -> None:
        """End the process and do not start it again; return when it has ended.

        Args:
            grace_s: How long it may take after SIGTERM before it is killed, in seconds.
        """
        self.is_stopping = True
        self.do_not_restart()
        if self._child:
            await self._child.stop(grace_s)
        if self._task:
            await self._task

    async def _keep_running(self) -> None:
        """Run the process again and again, with a pause after each end, until restarts are forbidden."""
        while not self._no_restart.is_set():
            started = time.monotonic()
            self.starts += 1
            reason = self.last_exit = await self._run_once()
            self._log.note(f"{self.name} {reason}")
            self._on_exit(reason)
            if not self._no_restart.is_set():
                await self._pause_before_restart(self._back_off.next_pause(time.monotonic() - started))

    async def _run_once(self) -> str:
        """Start the process and wait until it ends; return why it ended."""
        try:
            command = self._command()
            self._child = await ChildProcess.start(
                command.arguments, environment=command.environment, log=self._log, folder=command.folder
            )
        except (OSError, ControlledRolloutError) as error:
            return f"could not be started: {error}"
        exited = asyncio.create_task(self._child.wait())
        if self.is_stopping:
            # `stop` was called before there was a process to stop.
            self._child.kill()
        try:
            problem = await self._watch(exited)
            if problem and not exited.done() and not self.is_stopping:
                await self._child.stop(self._unhealthy_grace_s)
            code = await exited
        finally:
            self._child = None
        return problem or describe_exit(code)

    async def _pause_before_restart(self, seconds: float) -> None:
        """Wait `seconds`; return earlier if restarts are forbidden meanwhile."""
        try:
            await asyncio.wait_for(self._no_restart.wait(), seconds)
        except TimeoutError:
            return
