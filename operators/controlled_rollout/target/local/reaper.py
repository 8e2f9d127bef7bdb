"""Kills the children of a supervisor that was killed: a process that waits for a pipe from the supervisor to close.

Run by path, with the standard library only: `python -I -S reaper.py <variable=value> <folder to remove>`. Children are
recognised by that environment variable, which their own children inherit too; parent-death signals would reach only
the first generation.
"""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

__all__ = ["kill_marked", "marked_processes"]

PROC = Path("/proc")


def marked_processes(mark: str) -> list[int]:
    """Return the ids of this user's processes whose environment holds `mark`, given as `NAME=value`."""
    variable = mark.encode()
    process_ids = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if variable in environment.split(b"\0"):
            process_ids.append(int(entry.name))
    return process_ids


def kill_marked(mark: str, *, timeout_s: float = 10.0) -> None:
    """Kill all processes whose environment holds `mark`, again and again until none is left or the time is over."""
    deadline = time.monotonic() + timeout_s
    while (process_ids := marked_processes(mark)) and time.monotonic() < deadline:
        for process_id in process_ids:
            try:
                os.kill(process_id, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def main(mark: str, folder: str) -> None:
    """Wait until standard input closes, then kill the marked processes and remove the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    kill_marked(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
