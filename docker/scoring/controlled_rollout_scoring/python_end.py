"""The end of a worker: what Python does at the end of a program, then the end of the process.

Python waits for threads and executors, then runs the functions of `atexit`. It would also wait without end for child
processes and for queues that nobody reads, and then take the interpreter apart under the threads of the HTTP server:
that is left out here.
"""

from __future__ import annotations

import atexit
import multiprocessing.util
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

from controlled_rollout_scoring.log import flush, log

# Python runs the functions of atexit last in, first out: multiprocessing's own must run after all of the script's, so
# it is imported here, and replaced before the script is loaded.
TIDY_UP: Callable[[], None] = multiprocessing.util._exit_function  # type: ignore[attr-defined]

# What takes longer is named in the log.
QUIET_S = 1.0
# How long multiprocessing may take to tidy up once no child process is left: a queue that nobody reads is never empty.
TIDY_UP_S = 1.0
POLL_S = 0.02


def prepare() -> None:
    """Let child processes that the script starts with multiprocessing end with this process; before it is loaded."""
    atexit.unregister(TIDY_UP)
    atexit.register(_end_children, os.getpid())


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


def _end_children(pid: int) -> None:
    """End the child processes, and do what multiprocessing does at the end, in bounded time after that.

    Python sends SIGTERM only to daemons, and would wait for the others without end.
    """
    if os.getpid() != pid:
        TIDY_UP()
        return
    for child in multiprocessing.active_children():
        if not child.daemon:
            child.terminate()
    tidying = threading.Thread(target=TIDY_UP, daemon=True)
    tidying.start()
    childless_since = None
    while tidying.is_alive():
        tidying.join(POLL_S)
        if multiprocessing.active_children():
            childless_since = None
            continue
        childless_since = childless_since or time.monotonic()
        if time.monotonic() - childless_since > TIDY_UP_S:
            log("multiprocessing has not tidied up, as with a queue that nobody reads: what was in it is dropped")
            return


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
