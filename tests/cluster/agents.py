"""Agents of a test: they sign in with the shipped ServiceAccount and Roles, as their pods would."""

import asyncio
import base64
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from controlled_rollout.agent.leadership import Leadership
from controlled_rollout.agent.namespace_work import work_for
from controlled_rollout.cluster.api import Api
from controlled_rollout.cluster.pod_client import open_pod_client
from controlled_rollout.target.kubernetes.permissions import agent_as_yaml
from tests.agent_image import agent_image
from tests.cluster.agent_callers import LONG_S, kubectl
from tests.cluster.sandbox import Sandbox
from tests.polling import until, wait_until

__all__ = [
    "ACCOUNT",
    "Agent",
    "Line",
    "agent_pods",
    "agent_roles",
    "lease_holder",
    "recorded_agent",
    "running_agent",
]

ACCOUNT = "controlled-rollout-agent"
START_S = 90


@dataclass
class Agent:
    """One agent's process.

    Attributes:
        process: The process.
        log_file: What it has written.
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


@asynccontextmanager
async def agent_pods(sandbox: Sandbox) -> AsyncIterator[str]:
    """Run the agent's pods as they are shipped, until the test's namespace is deleted; give the name of who leads."""
    image = await asyncio.to_thread(agent_image, sandbox.lab.registry)
    text = (Path(__file__).parents[2] / "docs" / "aks" / "agent.yaml").read_text()
    for shipped, here in (
        ("registry.example/agent@sha256:" + 64 * "0", image),
        ("gateway: gateway/models", f"gateway: {sandbox.lab.gateway}"),
        ("namespace: models", f"namespace: {sandbox.namespace}"),
        ("--namespace=models", f"--namespace={sandbox.namespace}"),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    with agent_roles(sandbox):
        await kubectl(sandbox, "apply", "-f", "-", input=text)
        deployment = "deployment/controlled-rollout-agent"
        await kubectl(sandbox, "wait", "--for=condition=Available", deployment, f"--timeout={LONG_S}s")
        leads = partial(lease_holder, sandbox)
        yield await until(leads, "one of them has the Lease", timeout_s=LONG_S, interval_s=1.0)


async def lease_holder(sandbox: Sandbox) -> str:
    """Return who has the agents' Lease; empty if nobody has it."""
    lease = ("lease", "controlled-rollout-agent", "--ignore-not-found", "-o=jsonpath={.spec.holderIdentity}")
    return await kubectl(sandbox, "get", *lease)


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


@dataclass
class Line:
    """A line to the API server, which can be cut: then nothing is answered, and nothing is refused.

    Attributes:
        server: The address behind it.
        address: Its own address, on the same host: the server's certificate is for that.
        is_open: Cleared to cut it.
    """

    server: str
    address: str = ""
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Line"]:
        """Pass on what comes, until the end of the block."""
        host, port = urlsplit(self.server).hostname, urlsplit(self.server).port or 443
        self.is_open.set()

        async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Pass the bytes of one direction on."""
            with suppress(OSError):
                while content := await reader.read(65536):
                    await self.is_open.wait()
                    writer.write(content)
                    await writer.drain()
            writer.close()

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Pass the bytes of one connection on, in both directions."""
            # Known before anything is awaited: the end of the block may come at any moment.
            self.writers.append(writer)
            connecting = asyncio.current_task()
            assert connecting is not None
            self.tasks.append(connecting)
            there, back = await asyncio.open_connection(host, port)
            self.writers.append(back)
            self.tasks += [asyncio.create_task(pass_on(*pair)) for pair in ((reader, back), (there, writer))]

        server = await asyncio.start_server(connect, host, 0)
        self.address = f"https://{host}:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            for writer in self.writers:
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()


@asynccontextmanager
async def recorded_agent(sandbox: Sandbox, folder: Path) -> AsyncIterator[set[tuple[str, str, str]]]:
    """Run an agent in this process; give what it has asked the API server for: verb, API group and resource."""
    folder.mkdir(parents=True)
    used: set[tuple[str, str, str]] = set()

    class Recorded:
        """A client that notes what is asked for."""

        def __init__(self, client: Any) -> None:
            self._client = client
            self.configuration = client.configuration
            self.update_params_for_auth = client.update_params_for_auth

        @property
        def rest_client(self) -> "Recorded":
            return self

        async def request(self, method: str, url: str, **options: Any) -> Any:
            if permission := _permission(method, urlsplit(url).path, options["query_params"]):
                used.add(permission)
            response = await self._client.request(method, url, **options)
            if permission and method == "PATCH" and response.status == 201:
                # An apply of an object that was not there.
                used.add(("create", *permission[1:]))
            return response

    @asynccontextmanager
    async def open_recorded() -> AsyncIterator[Recorded]:
        async with open_pod_client(folder) as client:
            yield Recorded(client)

    with pytest.MonkeyPatch.context() as patched:
        for name, value in _service_account(sandbox, folder, None).items():
            patched.setenv(name, value)
        workspace = sandbox.workspace.model_copy(update={"open_cluster": open_recorded, "kubeconfig": None})
        async with Api.open(workspace) as api:
            leadership = Leadership(api, sandbox.namespace, "recorded")
            running = asyncio.create_task(leadership.run(partial(work_for, workspace)))
            try:
                yield used
            finally:
                running.cancel()
                with suppress(asyncio.CancelledError):
                    await running


def _permission(method: str, path: str, query: dict[str, str]) -> tuple[str, str, str] | None:
    """Return the verb, the API group and the resource of a request; None if it needs no permission of a namespace."""
    match = re.fullmatch(r"/(?:api|apis/([^/]+))/[^/]+/namespaces/[^/]+/([^/]+)(?:/([^/]+)(?:/(\w+).*)?)?", path)
    if match is None:
        return None
    group, resource, name, subresource = match.groups(default="")
    verb = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[method]
    if method == "GET" and not name:
        verb = "watch" if query.get("watch") else "list"
    return verb, group, f"{resource}/{subresource}" if subresource else resource
