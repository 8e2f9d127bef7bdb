"""Starts processes in sessions of their own and ends each session whole; what a killed run left is found and ended.

A session and not a process group is the unit: Airflow puts every task in a group of its own, within the session.
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
from scripts.demo.report import write_atomically

__all__ = ["Processes", "Started", "started_at"]

POLL_S: Final = 0.05


@dataclass(frozen=True)
class Started:
    """A process that leads a session.

    Attributes:
        name: What it is, for people.
        pid: Its id, and that of its session.
        ticks: Its start, in clock ticks since the machine's: tells another process apart that got the same id.
    """

    name: str
    pid: int
    ticks: int


class Processes:
    """The processes that one folder's run has started; a ledger in the folder outlives the run.

    Args:
        folder: Where the processes run. The ledger is `processes.json` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._ledger = self._folder / "processes.json"
        self._popen: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> Started:
        """Start a process in a new session, its output in `log`, and write it down.

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
        started = Started(name, process.pid, started_at(process.pid))
        self._write([*self.started(), started])
        return started

    def exit_code(self, started: Started) -> int | None:
        """Return the exit code of a process that this very run has started; None while it runs."""
        process = self._popen.get(started.pid)
        return process.poll() if process else None

    def started(self) -> list[Started]:
        """Return what is written down as started and not as ended, oldest first."""
        try:
            return [Started(**entry) for entry in json.loads(self._ledger.read_bytes())]
        except FileNotFoundError:
            return []

    def alive(self, started: Started) -> bool:
        """Whether anything of its session still runs."""
        return any(self._members(started))

    def end(self, started: Started, *, grace_s: float) -> bool:
        """End a session: ask all of it, after `grace_s` kill what is left; return whether asking was enough.

        All of it, because `airflow standalone` does not pass the signal on.
        """
        for member in self._members(started):
            with contextlib.suppress(psutil.Error):
                member.send_signal(signal.SIGTERM)
        in_time = self._gone_within(started, grace_s)
        while any(self._members(started)):
            for member in self._members(started):
                with contextlib.suppress(psutil.Error):
                    member.kill()
            self._gone_within(started, 1.0)
        self._write([other for other in self.started() if other != started])
        return in_time

    def end_all(self, *, grace_s: float) -> None:
        """End everything that is written down, the newest first."""
        for started in reversed(self.started()):
            self.end(started, grace_s=grace_s)
        for process in self._popen.values():
            process.poll()

    def _gone_within(self, started: Started, seconds: float) -> bool:
        return block_until(lambda: not any(self._members(started)), seconds, interval_s=POLL_S)

    def _is_leader(self, started: Started) -> bool:
        try:
            same = started_at(started.pid) == started.ticks
            return same and psutil.Process(started.pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False

    def _members(self, started: Started) -> Iterator[psutil.Process]:
        """Yield what runs in the session. Without its leader, a process is known by its session and where it runs."""
        if process := self._popen.get(started.pid):
            process.poll()
        led = self._is_leader(started)
        for process_id in psutil.pids():
            with contextlib.suppress(psutil.Error, OSError):
                if os.getsid(process_id) != started.pid:
                    continue
                member = psutil.Process(process_id)
                if member.status() == psutil.STATUS_ZOMBIE or started_at(process_id) < started.ticks:
                    continue
                if led or Path(member.cwd()).is_relative_to(self._folder):
                    yield member

    def _write(self, entries: list[Started]) -> None:
        if entries:
            write_atomically(self._ledger, json.dumps([asdict(entry) for entry in entries]))
        else:
            self._ledger.unlink(missing_ok=True)


def started_at(process_id: int) -> int:
    """Return a process's start in clock ticks since the machine's (proc(5)).

    In seconds since 1970 it would jump whenever the clock is set, and a process would not be known again.

    Raises:
        OSError: There is no such process.
    """
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19])
