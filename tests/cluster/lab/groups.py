"""The control group that holds all processes of a lab, so that all of them can be found and ended."""

import contextlib
from pathlib import Path

from .errors import LabError
from .layout import SLICE

__all__ = ["SYSTEM", "create", "members", "remove"]

SYSTEM = f"{SLICE}/system"
CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")


def _hierarchies() -> list[Path]:
    """Return where control groups are mounted: one place with version 2, one for each controller with version 1."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [Path(mount[1]) for mount in mounts if mount[2] in ("cgroup", "cgroup2")]


def _tracking() -> Path:
    """Return the hierarchy in which the processes are counted; children inherit membership in every hierarchy."""
    hierarchies = _hierarchies()
    return next((path for path in hierarchies if path.name == "pids"), hierarchies[0])


def create() -> Path:
    """Create the groups; return the file to which a process id is written to add the process.

    Raises:
        LabError: The kernel, or the container that this machine is, does not permit it.
    """
    try:
        return _create()
    except OSError as error:
        raise LabError(
            f"the control group {SLICE} was asked for, and cannot be created: {error}. A lab needs a machine of its"
            " own, or a container that may write /sys/fs/cgroup"
        ) from error


def _create() -> Path:
    for hierarchy in _hierarchies():
        group = hierarchy / SLICE
        group.mkdir(exist_ok=True)
        # Version 1 accepts no process in a cpuset whose processors and memory nodes are not set.
        for name in CPUSET_FILES:
            setting = group / name
            if hierarchy.name == "cpuset" and not setting.read_text().strip():
                setting.write_text((hierarchy / name).read_text())
    system = _tracking() / SYSTEM
    system.mkdir(exist_ok=True)
    return system / "cgroup.procs"


def members() -> set[int]:
    """Return the ids of all processes of the lab, including those of its pods."""
    process_ids: set[int] = set()
    for file in (_tracking() / SLICE).rglob("cgroup.procs"):
        # A group may end meanwhile.
        with contextlib.suppress(OSError):
            process_ids.update(int(line) for line in file.read_text().split())
    return process_ids


def remove() -> None:
    """Remove the groups; they must be empty."""
    for hierarchy in _hierarchies():
        group = hierarchy / SLICE
        if group.is_dir():
            deepest_first = sorted(group.rglob("*/"), key=lambda path: -len(path.parts))
            for path in (*deepest_first, group):
                with contextlib.suppress(OSError):
                    path.rmdir()
