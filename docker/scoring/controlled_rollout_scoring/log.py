"""The runtime's own log lines, on stderr, in the format of the stock server's."""

from __future__ import annotations

import contextlib
import os
import sys
import time

# A descriptor of the runtime's own: the script may close 2, and the next caller's connection would get that number.
STDERR = os.dup(2)


def log(message: str) -> None:
    """Write one log line to stderr, unbuffered and in one piece."""
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))},{int(now % 1 * 1000):03d}"
    write(f"{stamp} I [{os.getpid()}] controlled_rollout_scoring - {message}\n")


def write(text: str) -> None:
    """Write text to stderr, after everything that the process has written to stdout and stderr before."""
    flush()
    os.write(STDERR, text.encode("utf-8", "backslashreplace"))


def restore_streams() -> None:
    """Open stdout and stderr again if the script has closed them: what it prints would be sent to a caller."""
    for number in (1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(STDERR, number)


def flush() -> None:
    """Write out what the process has written to stdout and stderr so far."""
    for stream in (sys.stdout, sys.stderr):
        # The script may have closed or replaced it.
        with contextlib.suppress(Exception):
            stream.flush()
