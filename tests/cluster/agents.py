"""Agents of a test: processes that sign in with the shipped ServiceAccount and Roles, as their pods would."""

import base64
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from controlled_rollout.target.kubernetes.permissions import agent_as_yaml
from tests.cluster.sandbox import Sandbox
from tests.polling import wait_until

__all__ = ["ACCOUNT", "Agent", "agent_roles", "running_agent"]

ACCOUNT = "controlled-rollout-agent"
START_S = 90


@dataclass
class Agent:
    """One agent's process.

    Attributes:
        process: The process.
        log_file: What it has written.
        name: The name of its log file, and of its folder.
    """

    process: "subprocess.Popen[bytes]"
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def is_at_work(self) -> bool:
        return "is at work for namespace" in self.log

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=30)


@contextmanager
def agent_roles(sandbox: Sandbox) -> Iterator[None]:
    """Create the agent's ServiceAccount and Roles, and delete what is not in the sandbox's namespace afterwards."""
    gateway_namespace, _ = sandbox.lab.gateway.split("/")
    roles = agent_as_yaml(sandbox.namespace, gateway_namespace, service_account=ACCOUNT)
    sandbox.lab.kubectl("apply", "--validate=ignore", "-f", "-", input=roles)
    try:
        yield
    finally:
        sandbox.lab.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", input=roles)


@contextmanager
def running_agent(sandbox: Sandbox, folder: Path, *, server: str | None = None, wait: bool = True) -> Iterator[Agent]:
    """Run an agent for the sandbox's namespace, which ends with the test.

    Args:
        sandbox: The sandbox; its agent's Roles are there.
        folder: A folder of the agent's own, for its files.
        server: The API server's address; None for the one of the lab.
        wait: Whether to wait until it is at work.
    """
    folder.mkdir(parents=True)
    environment = {**os.environ, **_service_account(sandbox, folder, server)}
    (folder / "workspace.yaml").write_text(yaml.safe_dump(_workspace_settings(sandbox)))
    command = [sys.executable, "-m", "controlled_rollout.agent", "--workspace", str(folder / "workspace.yaml")]
    log_file = folder / "log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--service-account", str(folder)], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    agent = Agent(process, log_file)
    try:
        if wait:
            wait_until(agent.is_at_work, "the agent has the Lease", timeout_s=START_S, interval_s=0.2)
        yield agent
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            agent.kill()


def _workspace_settings(sandbox: Sandbox) -> dict[str, Any]:
    """Return the settings that steps have, but for how they sign in."""
    settings = sandbox.workspace.model_dump(mode="json", exclude_unset=True, exclude={"kubeconfig"})
    return {name: value for name, value in settings.items() if value is not None}


def _service_account(sandbox: Sandbox, folder: Path, server: str | None) -> dict[str, str]:
    """Write what a pod has of its ServiceAccount into a folder; return the variables that a pod has."""
    kubeconfig = yaml.safe_load(sandbox.lab.kubeconfig_for(sandbox.namespace, ACCOUNT).read_text())
    cluster = kubeconfig["clusters"][0]["cluster"]
    if data := cluster.get("certificate-authority-data"):
        (folder / "ca.crt").write_bytes(base64.b64decode(data))
    else:
        (folder / "ca.crt").write_bytes(Path(cluster["certificate-authority"]).read_bytes())
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(kubeconfig["users"][0]["user"]["token"])
    address = urlsplit(server or cluster["server"])
    return {"KUBERNETES_SERVICE_HOST": str(address.hostname), "KUBERNETES_SERVICE_PORT": str(address.port or 443)}
