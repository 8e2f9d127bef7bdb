"""The end of a worker: what Python does at the end of a program, then the end of the process.

Python waits for threads and executors, then runs the functions of `atexit`. It would also wait for child processes
without end, and then take the interpreter apart under the threads of the HTTP server; both are left out here.
"""

from __future__ import annotations

import atexit

# Python runs the functions of atexit last in, first out: multiprocessing's, which waits for child processes, must run
# after `_terminate_children`, and that after all functions of the script.
import multiprocessing.util
import os
import threading
from typing import NoReturn

from controlled_rollout_scoring.log import flush, log

# What takes longer is named in the log.
QUIET_S = 1.0


def prepare() -> None:
    """Let child processes that the script starts with multiprocessing end with this process; before it is loaded."""
    atexit.register(_terminate_children, os.getpid())


def end_process() -> NoReturn:
    """Wait for the script's threads and executors, run its atexit functions, and end this process with code 0.

    There is no time limit here: the parent kills the process after the drain time-out.
    """
    notice = threading.Timer(QUIET_S, _log_what_is_awaited)
    notice.daemon = True
    notice.start()
    # Tells executors that no more tasks come, and waits for them and for all threads that are not daemons.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    notice.cancel()
    flush()
    os._exit(0)


def _terminate_children(pid: int) -> None:
    """Send SIGTERM to the child processes that Python would wait for without end: it does so only for daemons."""
    if os.getpid() == pid:
        for child in multiprocessing.active_children():
            if not child.daemon:
                child.terminate()


def _log_what_is_awaited() -> None:
    """Log what keeps this process from ending."""
    threads = [
        f"thread {thread.name!r}"
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    children = [f"process {child.name!r}" for child in multiprocessing.active_children()]
    awaited = ", ".join(threads + children) or "its atexit functions"
    log(f"every request is answered; waiting for what the script has started: {awaited}")
