"""How many processors the router may use: those of this machine, of its affinity mask, and of its cgroup's quota."""

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["cores_of_quotas", "router_threads"]

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_GROUPS: Final = Path("/proc/self/cgroup")
# Each thread has connections of its own to each replica, so more of them cost more than they bring.
MAX_THREADS: Final = 16


def router_threads() -> int:
    """Return how many threads the router serves callers with: one for each processor that this process may use."""
    allowed = len(os.sched_getaffinity(0))
    quota = cores_of_quotas(_read_quotas())
    return max(1, min(allowed, MAX_THREADS, allowed if quota is None else quota))


def cores_of_quotas(quotas: Iterable[tuple[str, str]]) -> int | None:
    """Return how many processors the tightest quota is, rounded up; None if none of them limits anything.

    Args:
        quotas: Quota and period, in microseconds, as the kernel writes them: `max` or a negative quota is no limit.
    """
    cores = []
    for quota, period in quotas:
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            cores.append(math.ceil(int(quota) / int(period)))
    return min(cores, default=None)


def _read_quotas() -> list[tuple[str, str]]:
    """Return the quotas of this process's cgroup and of those above it, of both versions of the kernel's interface."""
    quotas: list[tuple[str, str]] = []
    for line in _read_text(OWN_GROUPS).splitlines():
        _, _, controllers_and_group = line.partition(":")
        controllers, _, group = controllers_and_group.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = CGROUPS / controllers if controllers else CGROUPS
        # A container sees its own group as the root, under whatever path the host has given it.
        folders = [root, *(root / part for part in _paths(group))]
        for folder in folders:
            if words := _read_text(folder / "cpu.max").split():
                quotas.append((words[0], words[-1]))
            elif quota := _read_text(folder / "cpu.cfs_quota_us").strip():
                quotas.append((quota, _read_text(folder / "cpu.cfs_period_us").strip()))
    return quotas


def _paths(group: str) -> list[str]:
    """Return the paths of a cgroup and of all groups above it, without the root, such as `a`, `a/b`."""
    parts = [part for part in group.split("/") if part not in ("", ".", "..")]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _read_text(path: Path) -> str:
    """Return a file's text; nothing if it is not there or cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
