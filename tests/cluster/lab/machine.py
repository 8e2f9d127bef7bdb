"""The node itself: starts what is not running, ends exactly that, and leaves the machine as it was."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
from pathlib import Path

from tests.polling import wait_until

from . import certificates, groups, network, processes
from .commands import run
from .components import ON_LOOPBACK, STARTED, component
from .errors import LabError
from .layout import Layout
from .state import State

__all__ = ["PACKAGES", "install_packages", "prepare", "start", "stop", "why_not_here"]

# Programs that the distribution has, by the command that tells whether they are there.
PACKAGES = {
    "etcd": "etcd-server",
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "conntrack": "conntrack",
    "iptables-save": "iptables",
    "ip": "iproute2",
    "docker-registry": "docker-registry",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
}
READY_S = 90.0
# The kernel takes no longer path for a unix socket, the end's zero included.
SOCKET_PATH_MAX = 107
# Where the kubelet and containerd leave something whatever they are told.
DEVICE_PLUGINS = "device-plugins/kubelet.sock"
CNI_RESULTS = Path("/var/lib/cni/results")
STRAY = (
    Path("/run/containerd"),
    Path("/run/netns"),
    Path("/var/lib/cni"),
    Path("/var/lib/kubelet"),
    Path("/var/log/containers"),
)


def _missing() -> list[str]:
    return [package for command, package in PACKAGES.items() if not shutil.which(command)]


def why_not_here() -> str | None:
    """Return why a lab cannot run on this machine; None where it can."""
    if os.geteuid() != 0:
        return "it needs root to run containers"
    if _missing() and not shutil.which("apt-get"):
        return f"it needs the Debian packages {', '.join(_missing())}, and this is no Debian"
    return None


def install_packages() -> None:
    """Install what is missing of the distribution's programs.

    Raises:
        LabError: This machine cannot run a lab, or its package manager failed.
    """
    if why_not := why_not_here():
        raise LabError(f"a lab was asked for, and this machine cannot run one: {why_not}")
    if missing := _missing():
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], env=env)
        run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing], env=env)


def prepare(layout: Layout, started_by: str = "") -> State:
    """Make the folder, the keys and the network, unless they are there; return the lab's state.

    Args:
        layout: The lab's folder.
        started_by: The test run that has to take the lab down, if this call creates it.
    """
    if len(str(layout.containerd_socket)) > SOCKET_PATH_MAX:
        raise LabError(f"the folder {layout.folder} is too long a name for a unix socket in it: use a shorter one")
    for folder in (layout.folder, layout.logs, layout.configuration, layout.data("tmp"), layout.certificates):
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    state = State.read(layout.state)
    if state is None:
        absent = [str(place) for place in STRAY if not place.exists()]
        state = State(layout.state, ports=_free_ports(ON_LOOPBACK), absent=absent, started_by=started_by)
        state.write()
    certificates.create(layout)
    if not layout.telemetry_token.exists():
        layout.telemetry_token.touch(mode=0o600)
        layout.telemetry_token.write_text(secrets.token_hex(16))
    network.create(state)
    return state


def _free_ports(names: tuple[str, ...]) -> dict[str, int]:
    with contextlib.ExitStack() as held:
        ports = {}
        for name in names:
            listener = held.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
        return ports


def start(layout: Layout, state: State, name: str, *, wait: bool = True) -> None:
    """Start one of the node's processes unless it runs, and wait until it can be used.

    Raises:
        LabError: It ended, or was not ready in time; the message has its last lines.
    """
    what = component(name, layout, state)
    if not processes.is_running(state.processes.get(name)):
        for file, text in what.files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        processes.start(layout, state, name, what.argv)
    if wait:

        def ready_or_ended() -> bool:
            return what.is_ready() or not processes.is_running(state.processes.get(name))

        with contextlib.suppress(LabError):
            wait_until(ready_or_ended, name, timeout_s=READY_S, interval_s=0.25, error=LabError)
        if not what.is_ready():
            said = (layout.logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
            raise LabError(f"{name} was started and is not ready; its last words:\n" + "\n".join(said))


def stop(layout: Layout, state: State) -> None:
    """End all processes of the lab, containers included, and remove what they have left, the folder too."""
    # Nothing of it will be read again, so nobody is asked to put things in order first.
    processes.end(state, STARTED, how=signal.SIGKILL)
    shims = list(layout.data("containers").rglob("address"))
    stray = [Path(file.read_text().removeprefix("unix://")) for file in shims]
    sandboxes = [path.name for name in ("containerd", "containers") for path in layout.data(name).glob("*/sandboxes/*")]
    stray += [file for file in CNI_RESULTS.glob("*") if any(name in file.name for name in sandboxes)]
    processes.end_all()
    groups.remove()
    _unmount(layout.folder)
    for file in stray:
        file.unlink(missing_ok=True)
    network.remove(state)
    _sweep(layout.folder, [Path(place) for place in state.absent])
    shutil.rmtree(layout.folder)


def _unmount(folder: Path) -> None:
    """Unmount everything below a folder, the newest first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [mount for mount in mounts if Path(mount).is_relative_to(folder.resolve())]
    if inside:
        run(["umount", "--lazy", *reversed(inside)])


def _sweep(folder: Path, absent: list[Path]) -> None:
    """Remove what the kubelet and containerd leave in places of the system that were not there before."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()
    for place in absent:
        (place / DEVICE_PLUGINS).unlink(missing_ok=True)
        for path in (*sorted(place.rglob("*/"), key=lambda path: -len(path.parts)), place):
            # Not empty: somebody else has come to live there in the meantime.
            with contextlib.suppress(OSError):
                path.rmdir()
