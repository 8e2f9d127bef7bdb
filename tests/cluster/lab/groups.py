"""The control group that holds all processes of a lab: whoever was born in it is ours, and nobody else is."""

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
    """Return the hierarchy whose membership is asked for; the kernel passes it on to children in any of them."""
    found = _hierarchies()
    return next((path for path in found if path.name == "pids"), found[0])


def create() -> Path:
    """Make the groups; return the file that takes a process in.

    Raises:
        LabError: This machine's kernel or its own container does not let us.
    """
    try:
        return _create()
    except OSError as error:
        raise LabError(
            f"the control group {SLICE} was asked for, and cannot be made: {error}. A lab needs a machine of its"
            " own, or a container that may write /sys/fs/cgroup"
        ) from None


def _create() -> Path:
    for hierarchy in _hierarchies():
        group = hierarchy / SLICE
        group.mkdir(exist_ok=True)
        # Version 1 lets nobody into a group of processors that has not been told which.
        for name in CPUSET_FILES:
            own = group / name
            if hierarchy.name == "cpuset" and not own.read_text().strip():
                own.write_text((hierarchy / name).read_text())
    system = _tracking() / SYSTEM
    system.mkdir(exist_ok=True)
    return system / "cgroup.procs"


def members() -> set[int]:
    """Return the ids of all processes of the lab, pods' included."""
    found = set()
    for listed in (_tracking() / SLICE).rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            found.update(int(line) for line in listed.read_text().split())
    return found


def remove() -> None:
    """Remove the groups; they must be empty."""
    for hierarchy in _hierarchies():
        group = hierarchy / SLICE
        if group.is_dir():
            deepest_first = sorted(group.rglob("*/"), key=lambda path: -len(path.parts))
            for path in (*deepest_first, group):
                with contextlib.suppress(OSError):
                    path.rmdir()
