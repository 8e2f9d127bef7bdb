"""The first process of the collector's container: it runs the collector in a child, and starts it again if it dies.

A pod is ready only while all of its containers run. Were the collector the container's own process, one that dies
twice would take the model out of traffic for as long as Kubernetes waits before it starts the container again.
"""

import ctypes
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Final

__all__ = ["SETTING_ERROR", "supervise"]

log = logging.getLogger(__name__)

# The exit code for settings that cannot be used.
SETTING_ERROR: Final = 2
FAILED: Final = 1
SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
# The pauses before the next start, and how long the collector has to live for the first pause again.
FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
HEALTHY_S: Final = 60.0
PR_SET_PDEATHSIG: Final = 1


def supervise(run: Callable[[bool], int], *, grace_s: float) -> int:
    """Run a function in a child process, again and again if the child dies, until SIGTERM; return the exit code.

    A child that says at its first start that its settings cannot be used is not started again: the pod of a new version
    then never becomes ready, and its rollout says why.

    Args:
        run: Called in the child with whether SIGTERM has come before; returns the child's exit code.
        grace_s: How long after SIGTERM a child that dies is started once more, in seconds.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    deadline: float | None = None
    pause_s = 0.0
    is_first = True
    while True:
        began = time.monotonic()
        child = _start_child(run, is_ending=deadline is not None)
        ended = os.waitpid(child, os.WNOHANG)
        while ended == (0, 0):
            if signal.sigwaitinfo(SIGNALS).si_signo != signal.SIGCHLD:
                deadline = deadline or time.monotonic() + grace_s
                os.kill(child, signal.SIGTERM)
            ended = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(ended[1])
        if code == 0 or (is_first and code == SETTING_ERROR):
            return code
        is_first = False
        if deadline is not None:
            if time.monotonic() >= deadline:
                return FAILED
            continue
        was_healthy = time.monotonic() - began >= HEALTHY_S
        pause_s = FIRST_PAUSE_S if was_healthy or not pause_s else min(pause_s * 2, LONGEST_PAUSE_S)
        log.error("the collector has ended (exit code %s): it starts again in %g s, and nothing is lost", code, pause_s)
        if _is_ended_within(pause_s):
            deadline = time.monotonic() + grace_s


def _start_child(run: Callable[[bool], int], *, is_ending: bool) -> int:
    """Start a child that runs the function and exits with what it returns; return its process id."""
    child = os.fork()
    if child:
        return child
    code = FAILED
    try:
        # It must not outlive this process.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        code = run(is_ending)
    except BaseException:
        log.exception("the collector has failed")
    finally:
        os._exit(code)


def _is_ended_within(seconds: float) -> bool:
    """Wait; return whether SIGTERM or SIGINT came meanwhile."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        received = signal.sigtimedwait(SIGNALS, left)
        if received is not None and received.si_signo != signal.SIGCHLD:
            return True
    return False
