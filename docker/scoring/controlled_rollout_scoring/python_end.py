"""The end of a worker: what Python does at the end of a program, then the end of the process.

Python waits for threads and executors, then runs the functions of `atexit`. It would also wait without end for child
processes, which may hang, and for queues that nobody reads, and then take the interpreter apart under the threads of
the HTTP server: that is left out here.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing.util
import os
import signal
import threading
import time
from collections.abc import Callable, Collection
from multiprocessing.process import BaseProcess
from typing import NoReturn

from controlled_rollout_scoring.log import flush, log

# Python runs the functions of atexit last in, first out: multiprocessing's own must run after all of the script's, so
# it is imported here, and replaced before the script is loaded.
TIDY_UP: Callable[[], None] = multiprocessing.util._exit_function  # type: ignore[attr-defined]

# What takes longer is named in the log.
QUIET_S = 1.0
# How long processes that were told to end may take before they get SIGKILL: those of a pool that has no work left, and
# all child processes once the functions of atexit run.
CHILDREN_S = 3.0
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
    threading.Thread(target=_end_idle_pools, name="idle pools", daemon=True).start()
    # Tells executors that no more tasks come, and waits for them and for all threads that are not daemons.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    notice.cancel()
    flush()
    os._exit(0)


def _end_idle_pools() -> None:
    """Kill the processes of pools that have no work and do not end although they were told to; forever.

    The thread of a process pool waits for its processes without end: one of them that hangs, as a process that was
    forked beside threads may, would keep this process until the drain is over.
    """
    idle_since: dict[threading.Thread, float] = {}
    # A pool's own thread forgets a process before it waits for it.
    processes: dict[threading.Thread, set[BaseProcess]] = {}
    while True:
        for thread in threading.enumerate():
            # The thread of `concurrent.futures.ProcessPoolExecutor`, and of joblib's; in all versions of both.
            work, workers = getattr(thread, "pending_work_items", None), getattr(thread, "processes", None)
            if not isinstance(work, dict) or not isinstance(workers, dict):
                continue
            processes.setdefault(thread, set()).update(workers.values())
            if work:
                idle_since.pop(thread, None)
            elif time.monotonic() - idle_since.setdefault(thread, time.monotonic()) > CHILDREN_S:
                _kill_children(processes.pop(thread))
                del idle_since[thread]
        time.sleep(POLL_S)


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
    begun = time.monotonic()
    childless_since = None
    while tidying.is_alive():
        tidying.join(POLL_S)
        if children := multiprocessing.active_children():
            childless_since = None
            if time.monotonic() - begun > CHILDREN_S:
                _kill_children(children)
                begun = time.monotonic()
            continue
        childless_since = childless_since or time.monotonic()
        if time.monotonic() - childless_since > TIDY_UP_S:
            log("multiprocessing has not tidied up, as with a queue that nobody reads: what was in it is dropped")
            return


def _kill_children(children: Collection[BaseProcess]) -> None:
    """Send SIGKILL to those child processes that still run, and log their names."""
    running = []
    for child in children:
        # It may have been closed, or may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError, ValueError):
            if child.pid is not None and child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                running.append(repr(child.name))
    if running:
        names = ", ".join(sorted(running))
        log(f"child processes had not ended {CHILDREN_S:g} s after they were told to, and were killed: {names}")


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
