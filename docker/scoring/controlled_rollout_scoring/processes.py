"""Processes of one replica: which end together, and what a forked one keeps (Linux)."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Collection

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION = 0x20080522
POLL_INTERVAL_S = 0.02


def signal_at_parent_death(signal_number: signal.Signals, parent: int) -> None:
    """Ask the kernel to send this process a signal when its parent ends; send it at once if the parent has ended.

    Args:
        signal_number: The signal.
        parent: The parent's process id, as it was known before the call.
    """
    _prctl(PR_SET_PDEATHSIG, int(signal_number))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)


def adopt_orphans() -> None:
    """Ask the kernel to make this process the parent of every descendant whose own parent ends."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def keep_out_of_read_only_files() -> None:
    """Give up root's right to write what is read-only, such as the version's own files; root may still read all.

    Other users do not have it. The processes that this one starts do not get it back.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    _prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    # Three sets of 64 bits: effective, permitted and inheritable, the lower halves of all of them first.
    sets = (ctypes.c_uint32 * 6)()
    if libc.capget(header, sets) == 0:
        for lower_half in range(3):
            sets[lower_half] &= ~(1 << CAP_DAC_OVERRIDE)
        libc.capset(header, sets)


def _prctl(option: int, value: int) -> None:
    """Set an attribute of this process."""
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def reap_orphans(workers: Collection[int]) -> None:
    """Release the ended children of this process, up to the first one of `workers`, whose exit code asyncio reads."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in workers:
                return
            os.waitpid(ended.si_pid, os.WNOHANG)


async def end_children(grace_s: float, kill_s: float) -> int:
    """End all children of this process, and those that they leave behind; return how many got a signal.

    Args:
        grace_s: How long they may take after SIGTERM before they get SIGKILL, in seconds.
        kill_s: How long to wait after that.
    """
    started = time.monotonic()
    signalled: set[int] = set()
    while not _reap_all() and (waited := time.monotonic() - started) < grace_s + kill_s:
        for pid in _children():
            if waited >= grace_s:
                os.kill(pid, signal.SIGKILL)
            elif pid not in signalled:
                os.kill(pid, signal.SIGTERM)
            signalled.add(pid)
        await asyncio.sleep(POLL_INTERVAL_S)
    return len(signalled)


def _reap_all() -> bool:
    """Release every child that has ended; return whether no child is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def _children() -> list[int]:
    """Return the process ids of all children of this process."""
    own, children = str(os.getpid()), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            # A process that ends meanwhile has no such file; after the command's parenthesis: state, parent, ...
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as stat:
                if stat.read().rpartition(b")")[2].split()[1].decode() == own:
                    children.append(int(name))
    return children


def close_connections(name: object) -> None:
    """Close this process's copies of a listener and of its connections, after a fork.

    A child that keeps them would hold the port, and callers' connections, for as long as it runs.

    Args:
        name: The listener's own address: a path, or a tuple that begins with host and port.
    """
    for entry in os.listdir("/proc/self/fd"):
        try:
            copy = socket.socket(fileno=int(entry))
        except OSError:
            continue  # not a socket, or the folder's own descriptor
        if _belongs_to(copy, name):
            copy.close()
        else:
            copy.detach()


def _belongs_to(copy: socket.socket, name: object) -> bool:
    """Return whether a socket is the listener with this address, or a connection that it has accepted."""
    try:
        own = copy.getsockname()
    except OSError:
        return False
    if isinstance(name, tuple) and isinstance(own, tuple) and copy.family in (socket.AF_INET, socket.AF_INET6):
        # A connection has the address that the caller used, the listener perhaps 0.0.0.0.
        return bool(own[1] == name[1])
    return bool(own == name)
