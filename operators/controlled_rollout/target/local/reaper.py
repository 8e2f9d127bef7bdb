"""Ends what a supervisor leaves behind when it is killed: waits for its pipe to close, then kills its children.

Run by path with the standard library only: `python -I -S warden.py <variable=value> <folder to remove>`. Children are
known by that environment variable, which every process that a replica starts inherits: parent-death signals would
reach only the first generation.
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
    """Return the ids of this user's processes whose environment holds `mark` (as `NAME=value`)."""
    wanted = mark.encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def kill_marked(mark: str, *, timeout_s: float = 10.0) -> None:
    """Kill all processes that carry `mark`, and those that they start meanwhile, until none is left."""
    deadline = time.monotonic() + timeout_s
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        for process in left:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def main(mark: str, folder: str) -> None:
    """Wait for the end of standard input, then clear up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    kill_marked(mark)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
