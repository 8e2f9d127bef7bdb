"""The programs that Debian packages provide, and their installation."""

import os
import shutil
from collections.abc import Iterable

from .commands import run
from .errors import LabError

__all__ = [
    "CHROMIUM",
    "CLUSTER",
    "IMAGES",
    "POSTGRESQL",
    "PROMETHEUS",
    "SHELLS",
    "SPARK",
    "install",
    "missing",
    "why_not_here",
]

# Package by program: the program (a name on the PATH, or a file) tells whether the package is needed.
IMAGES = {
    "buildah": "buildah",
    "docker-registry": "docker-registry",
    "mmdebstrap": "mmdebstrap",
    "runc": "runc",
}
POSTGRESQL = {"pg_ctlcluster": "postgresql"}
CHROMIUM = {"chromium": "chromium"}
# Tests complete command lines in them; bash is there.
SHELLS = {"fish": "fish", "zsh": "zsh"}
PROMETHEUS = {"prometheus": "prometheus"}
SPARK = {"java": "openjdk-17-jre-headless"}
CLUSTER = {
    **IMAGES,
    "etcd": "etcd-server",
    "containerd": "containerd",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "conntrack": "conntrack",
    "iptables-save": "iptables",
    "ip": "iproute2",
}


def missing(packages: dict[str, str]) -> list[str]:
    """Return the packages of a table whose programs are not installed."""
    return [package for program, package in packages.items() if not shutil.which(program)]


def why_not_here(packages: dict[str, str]) -> str | None:
    """Return why the programs of a table cannot be used on this machine, installed or not; None where they can."""
    if os.geteuid() != 0:
        return "it takes root"
    if (names := missing(packages)) and not shutil.which("apt-get"):
        return f"it takes the Debian packages {', '.join(names)}, and this is no Debian"
    return None


def install(packages: Iterable[str]) -> None:
    """Install Debian packages.

    Raises:
        LabError: The package manager failed; the message has its last lines.
    """
    if not shutil.which("apt-get"):
        raise LabError(f"the Debian packages {', '.join(packages)} were asked for, and there is no apt-get")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "-qq"], env=env)
    run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env=env)
