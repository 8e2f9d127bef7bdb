"""One interface for the conformance tests to the two places that endpoints live in: a local workspace and a cluster."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from controlled_rollout import image
from controlled_rollout.endpoint import VERSION_HEADER, Auth, Endpoint
from controlled_rollout.target.kubernetes.names import endpoint_object_name
from controlled_rollout.target.local.signing_keys import read_signing_keys
from controlled_rollout.target.protocol import Change, EndpointStatus, Target, VersionStatus
from controlled_rollout.target.waiting import wait_until_ready, wait_until_served
from controlled_rollout.tokens import SigningKeys
from controlled_rollout.workspace import Workspace, user_cache
from tests.cluster.lab import Lab
from tests.cluster.lab.layout import NODE_ADDRESS
from tests.cluster.lab.turns import turn
from tests.cluster.sandbox import SMALL, Sandbox, fresh_sandbox
from tests.cluster.scoring_images import MODELS, build_all, project
from tests.local import local_target_lab, token_issuer
from tests.local.local_target_lab import Load, steady_load
from tests.local.telemetry_lab import envelope, export
from tests.local.token_issuer import Issuer
from tests.polling import until

__all__ = ["CHANGE", "MAX_WAIT", "Answer", "TargetLab", "cluster_lab", "local_lab"]

CHANGE = Change(who="a test", reason="to see what happens")
MAX_WAIT = timedelta(seconds=120)
# Requests per second: both targets and the caller share the machine with other tests.
RATE = 110.0


@dataclass(frozen=True)
class Answer:
    """What one request came back with."""

    status: int
    version: str
    body: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class TargetLab:
    """A target that a module's tests share, each with endpoints of its own.

    Attributes:
        workspace: The workspace, for the steps of a rollout, with the store of its telemetry.
        target: The target, opened anew for each call.
        images: The references of the images of tests/cluster/models, by model.
        settings: What every version is given, so that many fit on the machine.
        turn: Held while a test uses the target: another may want to break it.
        signing_keys: Returns the private keys that sign an endpoint's tokens, which only a test looks at.
        issuer: Serves the keys of an outside issuer of tokens; yields it, and the address where the router reads them.
        forge: Writes rows into that store as somebody does who got past all that keeps others out.
    """

    workspace: Workspace
    target: Target
    images: Mapping[str, str]
    settings: Mapping[str, Any]
    turn: Callable[[], AbstractContextManager[None]]
    forge: Callable[[Sequence[Mapping[str, Any]]], None]
    signing_keys: Callable[[str], SigningKeys]
    issuer: Callable[[], AbstractContextManager[tuple[Issuer, str]]]

    def endpoint(self, name: str, *, auth: Auth = Auth.KEY) -> Endpoint:
        """Return an endpoint that no other test has: all endpoints of a Gateway share its paths."""
        return Endpoint(name=f"{name}-{secrets.token_hex(3)}", auth=auth)

    def with_version(self, endpoint: Endpoint, version: str, model: str = "steady", **settings: Any) -> Endpoint:
        """Return the endpoint with one more version."""
        return endpoint.create_version(version, image=self.images[model], **{**self.settings, **settings})

    async def apply(self, endpoint: Endpoint) -> Endpoint:
        return await self.target.apply(endpoint, CHANGE)

    async def serve(self, endpoint: Endpoint) -> Endpoint:
        """Apply, and wait until the router serves it and every version is ready."""
        stored = await self.apply(endpoint)
        await self.served(stored)
        for version in stored.versions:
            await self.ready(stored, version)
        return stored

    async def served(self, endpoint: Endpoint) -> EndpointStatus:
        return await wait_until_served(self.target, endpoint.name, endpoint.revision, timeout=MAX_WAIT)

    async def ready(self, endpoint: Endpoint, version: str) -> VersionStatus:
        return await wait_until_ready(
            self.target, endpoint.name, version, timeout=MAX_WAIT, progress=lambda sentence: None
        )

    async def until(self, endpoint: Endpoint, condition: Callable[[EndpointStatus], object], what: str) -> None:
        """Wait for a condition on the status, as a step that waits would: on Kubernetes that moves the traffic."""
        statuses = self.target.watch(endpoint.name, reconcile=True)
        try:
            async with asyncio.timeout(MAX_WAIT.total_seconds()), aclosing(statuses):
                async for status in statuses:
                    if condition(status):
                        return
        except TimeoutError as error:
            raise AssertionError(f"not within {MAX_WAIT}: {what}") from error

    async def ask(
        self,
        endpoint: Endpoint,
        *,
        key: str | None = None,
        version: str | None = None,
        sleep_s: float = 0.0,
        variables: Sequence[str] = (),
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send one request, on a connection of its own: it may take long, or ask for environment variables."""
        headers = {**(headers or {}), **({"Authorization": f"Bearer {key}"} if key else {})}
        if version:
            headers[VERSION_HEADER] = version
        url = (await self.target.status(endpoint.name)).url
        async with httpx.AsyncClient(timeout=30) as caller:
            answer = await caller.post(url, json={"sleep_s": sleep_s, "variables": variables}, headers=headers)
        return Answer(answer.status_code, answer.headers.get(VERSION_HEADER, ""), answer.text, answer.headers)

    @asynccontextmanager
    async def load(self, endpoint: Endpoint, rate: float = RATE) -> AsyncIterator[Load]:
        """Send requests at a steady rate for as long as the block runs."""
        url = (await self.target.status(endpoint.name)).url
        if endpoint.auth is Auth.TOKEN:
            key = (await self.target.token(endpoint.name)).token
        else:
            key = (await self.target.keys(endpoint.name)).primary
        async with steady_load(url, key, rate=rate) as load:
            yield load

    async def answers(self, endpoint: Endpoint, status: int, *, key: str) -> None:
        """Wait until a request with a key is answered with a status."""

        async def does() -> bool:
            return (await self.ask(endpoint, key=key)).status == status

        await until(does, f"{endpoint.name} answers {status}")


@contextmanager
def local_lab(folder: Path, **settings: Any) -> Iterator[TargetLab]:
    """Start a local workspace with these settings in a folder, and stop it at the end."""
    images = {model: _build(model, folder / "sources" / model) for model in MODELS}
    with local_target_lab.running(folder, **settings) as lab:
        # On a busy machine a request may wait long for its replica: only requests that are lost count as failed.
        token = (lab.state.runtime / "telemetry-upload.token").read_text()
        forge = partial(_forge, lab.state.telemetry_url, {"Authorization": f"Bearer {token}"})

        def signing_keys(name: str) -> SigningKeys:
            return read_signing_keys(lab.workspace.endpoints_folder / name)[0]

        settings = {"num_replicas": 1, "max_request_wait_time": 20_000}
        yield TargetLab(lab.workspace, lab.target, images, settings, nullcontext, forge, signing_keys, local_issuer)


@contextmanager
def cluster_lab(lab: Lab, folder: Path) -> Iterator[TargetLab]:
    """Make a namespace with exactly the shipped Role in the lab, and delete it at the end."""

    def use_lab() -> AbstractContextManager[None]:
        return turn(alone=False)

    with ExitStack() as stack:
        with use_lab():
            images = build_all(lab.registry)
            sandbox = stack.enter_context(fresh_sandbox(lab, images, folder))
        forge = partial(_forge_spans, lab)

        def signing_keys(name: str) -> SigningKeys:
            secret = endpoint_object_name(name, "signing-keys")
            data = json.loads(sandbox.kubectl("get", "secret", secret, "-o", "jsonpath={.data}"))
            return SigningKeys(**{part: base64.b64decode(value).decode() for part, value in data.items()})

        yield TargetLab(
            sandbox.workspace,
            sandbox.target,
            images,
            SMALL,
            use_lab,
            forge,
            signing_keys,
            partial(service_issuer, sandbox),
        )
        with use_lab():
            stack.close()


@contextmanager
def local_issuer() -> Iterator[tuple[Issuer, str]]:
    """Serve an issuer's keys to a router of this machine."""
    with token_issuer.serving("127.0.0.1") as issuer:
        yield issuer, f"http://127.0.0.1:{issuer.port}/keys"


@contextmanager
def service_issuer(sandbox: Sandbox) -> Iterator[tuple[Issuer, str]]:
    """Serve an issuer's keys to the Gateway's Envoys, as a Service of the sandbox's namespace."""
    if not sandbox.lab.is_ours:
        pytest.skip("only the lab's pods reach a service of this machine")
    name = f"issuer-{secrets.token_hex(3)}"
    with token_issuer.serving(NODE_ADDRESS) as issuer:
        ports = [{"name": "http", "port": issuer.port, "protocol": "TCP"}]
        service = {"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": {"ports": ports}}
        addresses = {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_ADDRESS]}],
            "ports": ports,
        }
        for manifest in (service, addresses):
            sandbox.kubectl("create", "-f", "-", input=json.dumps(manifest))
        yield issuer, f"http://{name}.{sandbox.namespace}.svc.cluster.local:{issuer.port}/keys"


def _forge(url: str, headers: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Send rows to the telemetry store at a URL as the exporter of Azure Monitor does."""
    answer = httpx.post(f"{url}/v2.1/track", json=[envelope(**row) for row in rows], headers=dict(headers))
    assert answer.status_code == 200, answer.text


def _forge_spans(lab: Lab, rows: Sequence[Mapping[str, Any]]) -> None:
    """Send spans to the collector as another pod could, where no NetworkPolicy is enforced."""
    import grpc  # type: ignore[import-untyped]

    namespace, _ = lab.gateway.split("/")
    address = lab.kubectl("--namespace", namespace, "get", "service", "collector", "-o", "jsonpath={.spec.clusterIP}")
    with grpc.insecure_channel(f"{address}:4317") as channel:
        export_spans = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        export_spans(export(*map(dict, rows)), timeout=10)


def _build(model: str, source: Path) -> str:
    return str(asyncio.run(image.build_local_image(project(model, source), name=model, cache=user_cache())))
