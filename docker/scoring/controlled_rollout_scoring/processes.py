"""Ending a process with the one that started it (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1


def signal_at_parent_death(signal_number: signal.Signals, parent: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends; send it at once if the parent has ended.

    Args:
        signal_number: The signal.
        parent: The parent's process id, as it was known before the call.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal_number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)
