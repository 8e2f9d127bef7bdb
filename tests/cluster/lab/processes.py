"""Start and end the lab's processes, each in a session of its own, all in the lab's control group."""

import contextlib
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from tests.polling import wait_until

from . import groups
from .errors import LabError
from .layout import Layout
from .state import Process, State

__all__ = ["end", "end_all", "is_running", "start", "started_at"]

ENTER = 'echo $$ >"$0" && cd "$1" && shift && exec "$@"'


def start(layout: Layout, state: State, name: str, argv: Sequence[str]) -> None:
    """Start a process that outlives this one, its output in the lab's logs, and record it in the lab's state."""
    log = str(layout.logs / f"{name}.log")
    # Its coverage is not measured: it is killed in the end, which loses the data.
    variables = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    # Not subprocess, which expects this process to wait for the end of the other one.
    process_id = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", ENTER, str(groups.create()), str(layout.folder), *argv],
        {**variables, "TMPDIR": str(layout.data("tmp"))},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE],
    )
    state.processes[name] = Process(process_id, started_at(process_id))
    state.write()


def is_running(process: Process | None) -> bool:
    """Whether a process runs, and is not another one with the same id."""
    if process is None:
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    try:
        same = started_at(process.pid) == process.started
        return same and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def started_at(process_id: int) -> int:
    """Return the start of a process in clock ticks since boot (proc(5)).

    In seconds since 1970 it would jump whenever the clock is set.
    """
    return int(Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19])


def end(state: State, names: Iterable[str], *, how: signal.Signals = signal.SIGTERM, grace_s: float = 10.0) -> None:
    """Signal processes, all at once, and kill those that are left after `grace_s`."""
    ending = {name: state.processes[name] for name in names if name in state.processes}
    for sent in (how, signal.SIGKILL):
        for process in ending.values():
            if is_running(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, sent)
        with contextlib.suppress(LabError):
            wait_until(
                lambda: not any(map(is_running, ending.values())), "end of processes", timeout_s=grace_s, error=LabError
            )
    for name in ending:
        del state.processes[name]
    state.write()


def end_all() -> None:
    """Kill every process in the lab's control group: containers, their shims, and their children."""

    def none_left() -> bool:
        left = groups.members()
        for process_id in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        return not left

    wait_until(none_left, "end of the processes in the lab's control group", error=LabError)
