"""The lab: a cluster with a registry, a gateway and a telemetry store, and ways to use and to break it."""

import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from . import addons, machine, network, processes
from .cache import locked
from .certificates import kubeconfig
from .commands import run
from .components import BARE_APISERVER, FIRST, STARTED, THEN
from .errors import LabError
from .existing import Existing, lacks
from .images import images, push
from .layout import GATEWAY, NODE_ADDRESS, TELEMETRY_PORT, Layout, default_folder
from .preparation import why_not_prepared
from .programs import program
from .state import State

__all__ = ["Lab"]


@dataclass(frozen=True)
class Lab:
    """A running cluster with a registry, a gateway and a telemetry store.

    Attributes:
        folder: The lab's folder.
        kubeconfig: The administrator's kubeconfig.
        registry: Host and port of the registry, for this machine and for the cluster; plain HTTP.
        gateway: Namespace and name of the gateway that serves models.
        gateway_url: Its URL for callers on this machine.
        telemetry_url: URL of the telemetry store, for this machine and for pods.
        telemetry_workspace_id: Its Log Analytics workspace.
        telemetry_token_file: File with the bearer token of its queries.
        is_ours: Whether it is a lab of this machine; False for the cluster of `KUBECONFIG`.
    """

    folder: Path
    kubeconfig: Path
    registry: str
    gateway: str
    gateway_url: str
    telemetry_url: str
    telemetry_workspace_id: str
    telemetry_token_file: Path
    is_ours: bool = True

    # Start and end

    @classmethod
    def up(cls, folder: Path | None = None, started_by: str = "") -> "Lab":
        """Bring a lab up. Processes that run already are left alone.

        With `KUBECONFIG` set, that cluster is used instead: nothing is installed there, only looked at.

        Args:
            folder: Its folder; None for that of the lab that is up, or else the default folder.
            started_by: The test run that has to take it down at its end.

        Raises:
            LabError: `make lab` has not prepared this machine, a process did not start, or the cluster of
                `KUBECONFIG` lacks something; the message says what.
        """
        if existing := Existing.of():
            return cls._checked(existing)
        _check_prepared()
        to_push = images()
        with locked("lab"):
            layout = _layout(folder)
            state = machine.prepare(layout, started_by)
            with ThreadPoolExecutor() as pool:
                # The images are pushed while the API server starts.
                machine.start(layout, state, "registry")
                pushed = pool.submit(lambda: [push(image, _registry(state)) for image in to_push])
                for group in (FIRST, THEN):
                    for name in group:
                        machine.start(layout, state, name, wait=False)
                    for name in group:
                        machine.start(layout, state, name)
                pushed.result()
            lab = cls._of(layout, state)
            addons.install(lab)
            state.gateway_port = addons.gateway_port(lab)
            state.write()
        return cls._of(layout, state)

    @classmethod
    def connect(cls, folder: Path | None = None) -> "Lab":
        """Return a lab that is up; with `KUBECONFIG` set, that cluster.

        Args:
            folder: Its folder; None for the one that is up on this machine.

        Raises:
            LabError: There is none, or it has not come up completely.
        """
        if existing := Existing.of():
            return cls._of_existing(existing)
        layout = _layout(folder)
        state = State.read(layout.state)
        if state is None or not state.gateway_port or not processes.is_running(state.processes.get("etcd")):
            raise LabError(f"no lab is up in {layout.folder}: start it with `python -m tests.cluster.lab up`")
        return cls._of(layout, state)

    @staticmethod
    def started_by() -> str | None:
        """Return the test run that has started the lab of this machine; None where no lab is up."""
        folder = network.owner()
        state = State.read(Layout(folder).state) if folder else None
        return state.started_by if state else None

    @staticmethod
    def down(folder: Path | None = None) -> bool:
        """Take a lab down and remove all of it; return whether there was one.

        Raises:
            LabError: `KUBECONFIG` names a cluster, which is not the lab's to take down.
        """
        if existing := Existing.of():
            raise LabError(f"KUBECONFIG={existing.kubeconfig} is set: that cluster is not the lab's to take down")
        with locked("lab"):
            layout = _layout(folder)
            state = State.read(layout.state)
            if state is None:
                return False
            machine.stop(layout, state)
        return True

    @classmethod
    def _checked(cls, existing: Existing) -> "Lab":
        lab = cls._of_existing(existing, allow_unset=True)
        if missing := [*existing.unset(), *lacks(lab)]:
            lines = "".join(f"\n  - {line}" for line in missing)
            raise LabError(f"the cluster of KUBECONFIG={existing.kubeconfig} was asked for, and it lacks:{lines}")
        return lab

    @classmethod
    def _of_existing(cls, existing: Existing, *, allow_unset: bool = False) -> "Lab":
        if (unset := existing.unset()) and not allow_unset:
            raise LabError(f"the cluster of KUBECONFIG={existing.kubeconfig} was asked for: {'; '.join(unset)}")
        settings = existing.settings
        return cls(
            folder=existing.folder,
            kubeconfig=existing.kubeconfig,
            registry=settings["REGISTRY"],
            gateway=settings["GATEWAY"],
            gateway_url=settings["GATEWAY_URL"].rstrip("/"),
            telemetry_url=settings["TELEMETRY_URL"].rstrip("/"),
            telemetry_workspace_id=settings["TELEMETRY_WORKSPACE_ID"],
            telemetry_token_file=Path(settings["TELEMETRY_TOKEN_FILE"]),
            is_ours=False,
        )

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

    # Use

    def kubectl(self, *args: str, input: str | None = None) -> str:
        """Run kubectl as administrator and return what it printed.

        Raises:
            LabError: It failed; the message has its last lines.
        """
        return run([self._tool("kubectl", of="kubernetes"), "--kubeconfig", self.kubeconfig, *args], input=input)

    def helm(self, *args: str) -> str:
        """Run helm as administrator and return what it printed.

        Raises:
            LabError: It failed; the message has its last lines.
        """
        # By default helm looks for plugins and repositories in the user's home.
        homes = {f"HELM_{kind}_HOME": str(self.folder / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        return run([self._tool("helm", of="helm"), "--kubeconfig", self.kubeconfig, *args], env={**os.environ, **homes})

    def _tool(self, name: str, *, of: str) -> Path:
        """Return a program: for the cluster of `KUBECONFIG` the one on the PATH, which should fit it."""
        installed = None if self.is_ours else shutil.which(name)
        return Path(installed) if installed else program(name, of=of)

    def kubeconfig_for(self, namespace: str, service_account: str, duration: timedelta = timedelta(hours=1)) -> Path:
        """Return a kubeconfig with a token of a service account, valid for a limited time (TokenRequest).

        A second call for the same account renews the token in the same file.

        Args:
            namespace: The service account's namespace, and the default namespace of the kubeconfig.
            service_account: Its name.
            duration: How long the token is valid; clusters accept no less than ten minutes.

        Raises:
            LabError: There is no such account.
        """
        seconds = int(duration.total_seconds())
        token = self.kubectl("--namespace", namespace, "create", "token", service_account, f"--duration={seconds}s")
        context = self._current_context()
        file = self.folder / "kubeconfigs" / f"{namespace}-{service_account}"
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".new")
        draft.touch(mode=0o600)
        draft.write_text(kubeconfig(context["clusters"][0]["cluster"], {"token": token.strip()}, namespace))
        draft.replace(file)
        return file

    def _current_context(self) -> dict[str, Any]:
        """Return the part of the kubeconfig that is in use."""
        if self.is_ours:
            return dict(yaml.safe_load(self.kubeconfig.read_text()))
        return dict(yaml.safe_load(self.kubectl("config", "view", "--minify", "--raw")))

    def facts(self) -> dict[str, str]:
        """Return its addresses and files, by name, for a person."""
        names = [field.name for field in fields(self) if field.name != "is_ours"]
        return {name: str(getattr(self, name)) for name in names}

    def parts(self) -> dict[str, bool]:
        """Return whether each part that can be killed runs; empty for the cluster of `KUBECONFIG`.

        While the API server does not answer, Deployments count as not running.
        """
        return {name: self._is_known_to_run(name) for name in (*STARTED, *addons.DEPLOYMENTS)} if self.is_ours else {}

    def _is_known_to_run(self, name: str) -> bool:
        try:
            return self.is_running(name)
        except LabError:
            return False

    # Breaking parts

    def kill(self, name: str) -> None:
        """Kill a part with SIGKILL; it stays away until `start`.

        Args:
            name: A process of the node (`components.STARTED`), or a Deployment of the lab (`addons.DEPLOYMENTS`):
                `envoy-gateway` is the gateway's controller, not the proxy.

        Raises:
            LabError: There is no such part, or the cluster is that of `KUBECONFIG`.
        """
        if name in addons.DEPLOYMENTS:
            addons.kill(self, name)
        else:
            processes.end(self._state(name), [name], how=signal.SIGKILL)

    def start(self, name: str) -> None:
        """Start a part that was killed, and wait until it can be used.

        Raises:
            LabError: It is not ready in time, there is no such part, or the cluster is that of `KUBECONFIG`.
        """
        if name in addons.DEPLOYMENTS:
            addons.start(self, name)
        else:
            machine.start(Layout(self.folder), self._state(name), name)

    def is_running(self, name: str) -> bool:
        """Whether a part runs.

        Raises:
            LabError: There is no such part, or the cluster is that of `KUBECONFIG`.
        """
        if name in addons.DEPLOYMENTS:
            return addons.is_running(self, name)
        return processes.is_running(self._state(name).processes.get(name))

    def _state(self, name: str) -> State:
        if not self.is_ours:
            raise LabError(f"{name} was asked for, and the cluster of KUBECONFIG is not the lab's to break")
        if name not in (*STARTED, BARE_APISERVER):
            raise LabError(f"{name} was asked for, and the lab has {', '.join((*STARTED, *addons.DEPLOYMENTS))}")
        state = State.read(Layout(self.folder).state)
        if state is None:
            raise LabError(f"{name} was asked for, and the lab in {self.folder} has gone")
        return state


def _layout(folder: Path | None) -> Layout:
    return Layout(folder.absolute() if folder else network.owner() or default_folder())


def _check_prepared() -> None:
    if why_not := why_not_prepared():
        raise LabError(f"a lab was asked for, and this machine cannot run one: {why_not}")


def _registry(state: State) -> str:
    return f"127.0.0.1:{state.ports['registry']}"
