"""The runtime's own lines, in the format of the stock server's, on stderr."""

from __future__ import annotations

import os
import sys
import time


def say(message: str) -> None:
    """Write one line to stderr, in one piece, at once."""
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))},{int(now % 1 * 1000):03d}"
    write(f"{stamp} I [{os.getpid()}] controlled_rollout_scoring - {message}\n")


def write(text: str) -> None:
    """Write text to stderr after all that the process has written before, on either stream."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.write(sys.stderr.fileno(), text.encode("utf-8", "backslashreplace"))
