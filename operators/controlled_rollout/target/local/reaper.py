"""Kills the children of a supervisor that was killed: a process that waits for a pipe from the supervisor to close.

A supervisor that ends by itself writes `ENDED` before: it has ended its children.

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

__all__ = ["ENDED", "kill_marked", "marked_processes"]

PROC = Path("/proc")
ENDED = b"ended"
SETTLE_S = 1.0


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


def kill_marked(mark: str, *, timeout_s: float = 10.0) -> int:
    """Kill all processes whose environment holds `mark`, until none is left or the time is over; return how many."""
    deadline = time.monotonic() + timeout_s
    killed: set[int] = set()
    while (process_ids := marked_processes(mark)) and time.monotonic() < deadline:
        killed.update(process_id for process_id in process_ids if _kill_if_marked(process_id, mark))
        time.sleep(0.01)
    return len(killed)


def _kill_if_marked(process_id: int, mark: str) -> bool:
    """Kill a process unless its number belongs to another one by now; return whether it was killed."""
    try:
        descriptor = os.pidfd_open(process_id)
    except OSError:
        return False
    try:
        if mark.encode() not in (PROC / str(process_id) / "environ").read_bytes().split(b"\0"):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def main(mark: str, folder: str) -> None:
    """Wait until standard input closes, then kill the marked processes and remove the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    written = sys.stdin.buffer.read()
    kill_marked(mark)
    if written != ENDED:
        # A child that was being started when the supervisor was killed gets its environment only now.
        time.sleep(SETTLE_S)
        kill_marked(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
