"""Start processes in sessions of their own, and end whole sessions, also those of a demo that was killed.

Sessions and not process groups, because Airflow puts every task in a group of its own within the session.
"""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from controlled_rollout.polling import block_until
from scripts.demo.load_report import write_atomically

__all__ = ["Processes", "StartedProcess", "started_at"]

POLL_S: Final = 0.05


@dataclass(frozen=True)
class StartedProcess:
    """A started process, which leads a session.

    Attributes:
        name: Its name for people.
        pid: The id of the process and of its session.
        ticks: Its start in clock ticks since the machine's; another process with the same id has another start.
    """

    name: str
    pid: int
    ticks: int


class Processes:
    """The processes of one folder, listed in a file so that a later demo finds them.

    Args:
        folder: Where the processes run; the list is `processes.json` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._list_file = self._folder / "processes.json"
        self._popen: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> StartedProcess:
        """Start a process in a new session, with its output in `log`, and list it.

        Raises:
            OSError: It could not be started.
        """
        with log.open("ab") as output:
            process = subprocess.Popen(
                argv,
                env=dict(env),
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._popen[process.pid] = process
        started = StartedProcess(name, process.pid, started_at(process.pid))
        self._write([*self.started(), started])
        return started

    def exit_code(self, started: StartedProcess) -> int | None:
        """Return the exit code of a process that this object has started; None while it runs."""
        process = self._popen.get(started.pid)
        return process.poll() if process else None

    def started(self) -> list[StartedProcess]:
        """Return the listed processes, oldest first."""
        try:
            return [StartedProcess(**entry) for entry in json.loads(self._list_file.read_bytes())]
        except FileNotFoundError:
            return []

    def is_running(self, started: StartedProcess) -> bool:
        """Whether a process of its session runs."""
        return any(self._members(started))

    def end(self, started: StartedProcess, *, grace_s: float) -> bool:
        """End a session: SIGTERM to all of its processes, and SIGKILL to those that run after `grace_s` seconds.

        All of them get the signal, because `airflow standalone` does not pass it on.

        Returns:
            Whether all ended without SIGKILL.
        """
        for member in self._members(started):
            with contextlib.suppress(psutil.Error):
                member.send_signal(signal.SIGTERM)
        in_time = self._ended_within(started, grace_s)
        while any(self._members(started)):
            for member in self._members(started):
                with contextlib.suppress(psutil.Error):
                    member.kill()
            self._ended_within(started, 1.0)
        self._write([process for process in self.started() if process != started])
        return in_time

    def end_all(self, *, grace_s: float) -> None:
        """End all listed processes, the newest first."""
        for started in reversed(self.started()):
            self.end(started, grace_s=grace_s)
        for process in self._popen.values():
            process.poll()

    def _ended_within(self, started: StartedProcess, seconds: float) -> bool:
        return block_until(lambda: not any(self._members(started)), seconds, interval_s=POLL_S)

    def _is_leader(self, started: StartedProcess) -> bool:
        try:
            is_same = started_at(started.pid) == started.ticks
            return is_same and psutil.Process(started.pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False

    def _members(self, started: StartedProcess) -> Iterator[psutil.Process]:
        """Yield the processes of the session. Once its leader has ended, they must also run in our folder."""
        if process := self._popen.get(started.pid):
            process.poll()
        has_leader = self._is_leader(started)
        for process_id in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process_id) != started.pid:
                    continue
                member = psutil.Process(process_id)
                if member.status() == psutil.STATUS_ZOMBIE or started_at(process_id) < started.ticks:
                    continue
                if has_leader or Path(member.cwd()).is_relative_to(self._folder):
                    yield member

    def _write(self, entries: list[StartedProcess]) -> None:
        if entries:
            write_atomically(self._list_file, json.dumps([asdict(entry) for entry in entries]))
        else:
            self._list_file.unlink(missing_ok=True)


def started_at(process_id: int) -> int:
    """Return a process's start in clock ticks since the machine's, see proc(5).

    In seconds since 1970 it would change whenever the clock is set.

    Raises:
        OSError: There is no such process.
    """
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19])
