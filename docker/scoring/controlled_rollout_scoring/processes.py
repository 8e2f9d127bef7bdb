"""What a process does when the one that started it dies (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def die_with_parent(how: signal.Signals, parent: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends; send it at once if it already has.

    Args:
        how: The signal.
        parent: The parent's process id, as it was known before the call.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(how), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), how)
