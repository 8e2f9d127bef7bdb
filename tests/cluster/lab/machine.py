"""The node: starts the processes of the cluster, ends exactly those, and leaves the machine as it was."""

import contextlib
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

__all__ = ["prepare", "start", "stop"]

READY_S = 90.0
# The longest path of a unix socket that Linux accepts, without the terminating zero.
SOCKET_PATH_MAX = 107
# Folders outside the lab's that the kubelet and containerd write to; they have no setting for it.
DEVICE_PLUGINS = "device-plugins/kubelet.sock"
CNI_RESULTS = Path("/var/lib/cni/results")
SYSTEM_FOLDERS = (
    Path("/run/containerd"),
    Path("/run/netns"),
    Path("/var/lib/cni"),
    Path("/var/lib/kubelet"),
    Path("/var/log/containers"),
)


def prepare(layout: Layout, started_by: str = "") -> State:
    """Make the folder, the keys and the network, unless they are there; return the lab's state.

    Args:
        layout: The lab's folder.
        started_by: The test run that has to take the lab down, if this call creates it.
    """
    if len(str(layout.containerd_socket)) > SOCKET_PATH_MAX:
        raise LabError(f"the folder {layout.folder} is too long for the path of a unix socket in it: use a shorter one")
    for folder in (layout.folder, layout.logs, layout.configuration, layout.data("tmp"), layout.certificates):
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    state = State.read(layout.state)
    if state is None:
        absent = [str(path) for path in SYSTEM_FOLDERS if not path.exists()]
        state = State(layout.state, ports=_free_ports(ON_LOOPBACK), absent=absent, started_by=started_by)
        state.write()
    certificates.create(layout)
    if not layout.telemetry_token.exists():
        layout.telemetry_token.touch(mode=0o600)
        layout.telemetry_token.write_text(secrets.token_hex(16))
    network.create(state)
    return state


def _free_ports(names: tuple[str, ...]) -> dict[str, int]:
    with contextlib.ExitStack() as open_sockets:
        ports = {}
        for name in names:
            listener = open_sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports[name] = listener.getsockname()[1]
        return ports


def start(layout: Layout, state: State, name: str, *, wait: bool = True) -> None:
    """Start one of the node's processes unless it runs, and wait until it can be used.

    Raises:
        LabError: It ended, or was not ready in time; the message has its last lines.
    """
    process = component(name, layout, state)
    if not processes.is_running(state.processes.get(name)):
        for file, text in process.files.items():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        processes.start(layout, state, name, process.argv)
    if wait:

        def ready_or_ended() -> bool:
            return process.is_ready() or not processes.is_running(state.processes.get(name))

        with contextlib.suppress(LabError):
            wait_until(ready_or_ended, name, timeout_s=READY_S, interval_s=0.25, error=LabError)
        if not process.is_ready():
            log = (layout.logs / f"{name}.log").read_text(errors="replace").splitlines()[-15:]
            raise LabError(f"{name} was started and is not ready; the end of its log:\n" + "\n".join(log))


def stop(layout: Layout, state: State) -> None:
    """End all processes of the lab, containers included, and remove their files and the lab's folder."""
    # Their data is deleted below, so there is no need for an orderly end.
    processes.end(state, STARTED, how=signal.SIGKILL)
    shims = list(layout.data("containers").rglob("address"))
    leftovers = [Path(file.read_text().removeprefix("unix://")) for file in shims]
    sandboxes = [path.name for name in ("containerd", "containers") for path in layout.data(name).glob("*/sandboxes/*")]
    leftovers += [file for file in CNI_RESULTS.glob("*") if any(name in file.name for name in sandboxes)]
    processes.end_all()
    groups.remove()
    _unmount(layout.folder)
    for file in leftovers:
        file.unlink(missing_ok=True)
    network.remove(state)
    _sweep(layout.folder, [Path(path) for path in state.absent])
    shutil.rmtree(layout.folder)


def _unmount(folder: Path) -> None:
    """Unmount everything below a folder, the newest first."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = [mount for mount in mounts if Path(mount).is_relative_to(folder.resolve())]
    if inside:
        run(["umount", "--lazy", *reversed(inside)])


def _sweep(folder: Path, absent: list[Path]) -> None:
    """Remove what the kubelet and containerd have left in folders of the system.

    Args:
        folder: The lab's folder.
        absent: The folders of the system that did not exist before the lab.
    """
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and link.readlink().is_relative_to(folder):
            link.unlink()
    for system_folder in absent:
        (system_folder / DEVICE_PLUGINS).unlink(missing_ok=True)
        for path in (*sorted(system_folder.rglob("*/"), key=lambda path: -len(path.parts)), system_folder):
            # Not empty: another program uses it by now.
            with contextlib.suppress(OSError):
                path.rmdir()
