"""The lab as its users see it: a cluster with all that is around it, and a way to break things."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import addons, machine
from .binaries import program
from .cache import locked
from .commands import run
from .components import STARTED
from .errors import LabError
from .images import images, push
from .layout import GATEWAY, NODE_ADDRESS, TELEMETRY_PORT, Layout, default_folder
from .state import State

__all__ = ["Lab"]


@dataclass(frozen=True)
class Lab:
    """A running cluster with everything around it.

    Attributes:
        folder: The lab's folder.
        kubeconfig: The way in for who may do everything.
        registry: Host and port of the registry, for who pushes and for the cluster; plain HTTP.
        gateway: Namespace and name of the gateway that serves models.
        gateway_url: Where callers reach it.
        telemetry_url: The telemetry store, for this machine and for pods.
        telemetry_workspace_id: The workspace to query there.
        telemetry_token_file: Holds the bearer token that queries must bring.
    """

    folder: Path
    kubeconfig: Path
    registry: str
    gateway: str
    gateway_url: str
    telemetry_url: str
    telemetry_workspace_id: str
    telemetry_token_file: Path

    # Life

    @classmethod
    def up(cls, folder: Path | None = None) -> "Lab":
        """Bring a lab up; what runs already is left alone.

        Args:
            folder: Where it lives; None for the usual place.

        Raises:
            LabError: Something did not start, or this machine cannot run a lab.
        """
        machine.install_packages()
        layout = Layout((folder or default_folder()).absolute())
        made = images()
        with locked("lab"):
            state = machine.prepare(layout)
            with ThreadPoolExecutor() as pool:
                # The registry takes images while the API server takes its time.
                for name in ("registry", "etcd"):
                    machine.start(layout, state, name)
                pushed = pool.submit(lambda: [push(image, _registry(state)) for image in made])
                for name in STARTED:
                    machine.start(layout, state, name, wait=name != "kubelet")
                pushed.result()
            lab = cls._of(layout, state)
            addons.install(lab)
            state.gateway_port = addons.gateway_port(lab)
            state.write()
        return cls._of(layout, state)

    @classmethod
    def connect(cls, folder: Path | None = None) -> "Lab":
        """Return the lab that runs in a folder.

        Raises:
            LabError: There is none, or it has not come up whole.
        """
        layout = Layout((folder or default_folder()).absolute())
        state = State.read(layout.state)
        if state is None or not state.gateway_port:
            raise LabError(
                f"no lab is up in {layout.folder}: `python -m tests.cluster.lab up --folder {layout.folder}`"
            )
        return cls._of(layout, state)

    @classmethod
    def _of(cls, layout: Layout, state: State) -> "Lab":
        identity = json.loads((layout.telemetry_data / "identity.json").read_text())
        return cls(
            folder=layout.folder,
            kubeconfig=layout.kubeconfig,
            registry=_registry(state),
            gateway=GATEWAY,
            gateway_url=f"http://127.0.0.1:{state.gateway_port}",
            telemetry_url=f"http://{NODE_ADDRESS}:{TELEMETRY_PORT}",
            telemetry_workspace_id=identity["workspace_id"],
            telemetry_token_file=layout.telemetry_token,
        )

    @staticmethod
    def down(folder: Path | None = None) -> bool:
        """Take the lab in a folder down and remove all of it; return whether there was one."""
        layout = Layout((folder or default_folder()).absolute())
        with locked("lab"):
            state = State.read(layout.state)
            if state is None:
                return False
            machine.stop(layout, state)
        return True

    # Use

    def kubectl(self, *args: str, input: str | None = None) -> str:
        """Run kubectl as administrator and return what it printed.

        Raises:
            LabError: It failed; the message has what it said.
        """
        return run([program("kubectl", of="kubernetes"), "--kubeconfig", self.kubeconfig, *args], input=input)

    def helm(self, *args: str) -> str:
        """Run helm as administrator and return what it printed.

        Raises:
            LabError: It failed; the message has what it said.
        """
        # helm looks for plugins and repositories in its user's home otherwise.
        homes = {f"HELM_{kind}_HOME": str(self.folder / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        env = {**os.environ, **homes}
        return run([program("helm", of="helm"), "--kubeconfig", self.kubeconfig, *args], env=env)


def _registry(state: State) -> str:
    return f"127.0.0.1:{state.ports['registry']}"
