"""What the agent takes with 100 versions: memory and processor, against an API server that only answers."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from aiohttp import web

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.target.kubernetes.agent_lease import LEASE_NAME
from controlled_rollout.target.kubernetes.gateway import CONTROLLER, envoy_labels
from controlled_rollout.target.kubernetes.names import endpoint_labels, endpoint_object_name
from controlled_rollout.target.kubernetes.route_rules import Mark, annotations, build_rules
from controlled_rollout.workspace import Workspace

__all__ = ["AgentFigures", "measure", "section"]

ENDPOINTS = 50
REVISIONS = 20
ENVOYS = 3
IMAGE = "registry.example/model@sha256:" + "0" * 64
WORKSPACE = Workspace.from_settings({"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"})
START_S = 120.0
SECONDS = 60.0


@dataclass(frozen=True)
class AgentFigures:
    """What an agent has taken.

    Attributes:
        versions: How many versions it scaled.
        memory_mb: Its memory at the end, in 10^6 bytes.
        peak_mb: The most that it had.
        cores: The processor that it took, in cores.
        requests_per_s: The requests that it has sent, per second.
        load: The machine's load average meanwhile.
    """

    versions: int
    memory_mb: float
    peak_mb: float
    cores: float
    requests_per_s: float
    load: float


@dataclass
class ApiServer:
    """An API server that has objects, and changes none but its Lease.

    Attributes:
        lists: The objects, by the plural of their kind.
        stats: What each Envoy says of its counters.
        lease: The agents' Lease.
        requests: How many requests have come.
        ending: Set to end all watches.
        disturbed: Set to tell that somebody has edited all Deployments at once.
    """

    lists: dict[str, list[dict[str, Any]]]
    stats: str
    lease: dict[str, Any] | None = None
    requests: int = 0
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    disturbed: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.requests += 1
        parts = request.path.strip("/").split("/")
        if parts[-1] == "prometheus":
            return web.Response(text=self.stats)
        after = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts else []
        if after[:1] == ["leases"]:
            return await self._answer_lease(request)
        if len(after) == 1 and request.method == "GET":
            if "watch" in request.query:
                return await self._watch(request)
            items = self.lists.get("envoys" if "envoy-gateway-system" in parts else after[0], [])
            return self._page(items, request.query)
        if len(after) > 1:
            found = [one for one in self.lists.get(after[0], []) if one["metadata"]["name"] == after[1]]
            metadata = {"name": after[1], "namespace": "models", "resourceVersion": "1", "labels": {}}
            known = {"metadata": metadata, "spec": {}, "kind": after[0]}
            if after[0] == "secrets":
                known["data"] = {"primary": "a2V5", "secondary": "a2V5"}
            return web.json_response(found[0] if found else known)
        return web.json_response({"kind": "Status", "message": "no such path"}, status=404)

    def _page(self, items: list[dict[str, Any]], query: Mapping[str, str]) -> web.Response:
        """Return one page of a list."""
        first, limit = int(query.get("continue", "0")), int(query.get("limit", "1000000"))
        metadata = {"resourceVersion": "1"}
        if first + limit < len(items):
            metadata["continue"] = str(first + limit)
        return web.json_response({"metadata": metadata, "items": items[first : first + limit]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        """Begin to answer, and say that nothing happens until all Deployments are edited."""
        response = web.StreamResponse()
        await response.prepare(request)
        if request.path.endswith("/deployments"):
            await self.disturbed.wait()
            for one in self.lists["deployments"]:
                edited = {**one, "metadata": {**one["metadata"], "generation": 2, "resourceVersion": "2"}}
                await response.write(json.dumps({"type": "MODIFIED", "object": edited}).encode() + b"\n")
        await self.ending.wait()
        return response

    async def _answer_lease(self, request: web.Request) -> web.Response:
        """Keep the Lease."""
        if request.method != "GET":
            body = await request.json()
            spec = {**(self.lease or {}).get("spec", {}), **body["spec"]}
            self.lease = {"metadata": {"name": LEASE_NAME, "resourceVersion": "1"}, "spec": spec}
        if self.lease is None:
            return web.json_response({"kind": "Status", "message": "not found", "reason": "NotFound"}, status=404)
        return web.json_response(self.lease)


def objects() -> ApiServer:
    """Return an API server with endpoints of two versions each, of which each has a long history."""
    lists: dict[str, list[dict[str, Any]]] = {
        name: [] for name in ("controllerrevisions", "deployments", "httproutes", "configmaps", "envoys")
    }
    lines = []
    for number in range(ENDPOINTS):
        name = f"endpoint-{number:02}"
        endpoint = Endpoint(name=name).create_version("one", image=IMAGE).create_version("two", image=IMAGE)
        root = {
            "metadata": {
                "name": endpoint_object_name(name),
                "uid": name,
                "resourceVersion": "1",
                "labels": endpoint_labels(name),
            }
        }
        lists["configmaps"].append(root)
        for revision in range(1, REVISIONS + 1):
            stored = endpoint.model_copy(update={"revision": revision})
            lists["controllerrevisions"].append(
                {
                    "metadata": {"name": f"{name}-{revision}", "resourceVersion": "1", "labels": endpoint_labels(name)}
                    | {"creationTimestamp": "2026-11-28T12:00:00Z"},
                    "revision": revision,
                    "data": stored.model_dump(mode="json", exclude_unset=True),
                }
            )
        for version in endpoint.versions.values():
            deployment = manifests.deployment(endpoint, version, WORKSPACE, owner=root)
            deployment["metadata"] |= {"resourceVersion": "1", "generation": 1}
            deployment["spec"]["replicas"] = 5
            lists["deployments"].append({**deployment, "status": {"readyReplicas": 5, "observedGeneration": 1}})
        lists["httproutes"].append(_route(endpoint, root))
        for slot in range(2):
            # One open request at each Envoy, three in all: what five replicas of one slot each are kept for.
            for busy, cluster in enumerate((f"rule/{slot + 1}/backend/0", f"rule/0/backend/{slot}")):
                labels = f'{{envoy_cluster_name="httproute/models/{name}/{cluster}"}}'
                lines += [
                    f"envoy_cluster_upstream_rq_active{labels} {busy}",
                    f"envoy_cluster_upstream_rq_pending_active{labels} 0",
                    f"envoy_cluster_membership_healthy{labels} 2",
                ]
    ready = {"conditions": [{"type": "Ready", "status": "True"}]}
    for number in range(ENVOYS):
        metadata = {"name": f"envoy-{number}", "resourceVersion": "1", "labels": envoy_labels(WORKSPACE)}
        lists["envoys"].append({"metadata": metadata, "status": ready})
    return ApiServer(lists, "\n".join(lines) + "\n")


def _route(endpoint: Endpoint, root: dict[str, Any]) -> dict[str, Any]:
    """Return the route of an endpoint that is served."""
    weights = {"one": 900_000, "two": 100_000}
    rules = list(build_rules(endpoint, [], weights=weights, reachable=weights, mark=Mark(REVISIONS)).values())
    parent = {"name": "models", "namespace": "gateway"}
    route = manifests.http_route(endpoint.name, parent, rules, annotations(rules), namespace="models", owner=root)
    route["metadata"] |= {"resourceVersion": "1", "generation": 1}
    conditions = [{"type": kind, "status": "True", "observedGeneration": 1} for kind in ("Accepted", "ResolvedRefs")]
    status = {"parents": [{"parentRef": parent, "controllerName": CONTROLLER, "conditions": conditions}]}
    return {**route, "status": status}


@asynccontextmanager
async def serving(server: ApiServer, folder: Path) -> AsyncIterator[int]:
    """Serve an API server with a certificate of its own; give its port."""
    import ssl

    key, certificate = folder / "key.pem", folder / "ca.crt"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=agent"]
    subprocess.run([*command, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        server.ending.set()
        await runner.cleanup()


async def _measure(seconds: float) -> AgentFigures:
    """Run an agent against the API server, and read what its process has taken."""
    server = objects()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        async with serving(server, folder) as port:
            (folder / "token").write_text("a token")
            (folder / "workspace.yaml").write_text(
                yaml.safe_dump({"target": "kubernetes", "gateway": "gateway/models", "namespace": "models"})
            )
            environment = {
                **os.environ,
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(port),
                # As the image sets them.
                "MALLOC_ARENA_MAX": "1",
                "MALLOC_TRIM_THRESHOLD_": "65536",
            }
            arguments = ("--workspace", str(folder / "workspace.yaml"), "--service-account", str(folder))
            program = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "controlled_rollout.agent", *arguments, env=environment
            )
            try:
                process = psutil.Process(program.pid)
                deadline = asyncio.get_running_loop().time() + START_S
                while server.requests < 20 and asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(0.2)
                await asyncio.sleep(seconds / 3)
                server.disturbed.set()
                before, requests = process.cpu_times(), server.requests
                await asyncio.sleep(seconds)
                after = process.cpu_times()
                status = Path(f"/proc/{program.pid}/status").read_text()
                peak_kb = int(status.partition("VmHWM:")[2].split()[0])
                return AgentFigures(
                    versions=2 * ENDPOINTS,
                    memory_mb=process.memory_info().rss / 1e6,
                    peak_mb=peak_kb * 1024 / 1e6,
                    cores=(after.user + after.system - before.user - before.system) / seconds,
                    requests_per_s=(server.requests - requests) / seconds,
                    load=os.getloadavg()[0],
                )
            finally:
                with suppress(ProcessLookupError):
                    program.terminate()
                await program.wait()


def measure(seconds: float) -> AgentFigures:
    """Return what an agent with 100 versions takes, over some seconds after all Deployments were edited."""
    return asyncio.run(_measure(seconds))


def section() -> Iterator[str]:
    """Yield the lines of the page of figures."""
    figures = measure(SECONDS)
    yield "\n## The agent\n"
    yield (
        f"The cluster's agent with {figures.versions} versions in {ENDPOINTS} endpoints with {REVISIONS} revisions each"
        f", behind {ENVOYS} Envoys, against an API server that only answers; for {SECONDS:g} s, at whose beginning "
        "somebody edits all Deployments at once."
    )
    yield ""
    yield (
        f"{figures.memory_mb:.0f} MB of memory, at most {figures.peak_mb:.0f} MB (goal 64); {figures.cores:.3f} cores "
        f"(goal 0.05); {figures.requests_per_s:.1f} requests/s. Load of the machine: {figures.load:.1f}."
    )
    yield "\n(`python -m tests.benchmarks --only agent`)"
