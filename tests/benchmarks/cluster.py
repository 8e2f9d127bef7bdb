"""Costs of the Kubernetes target on the lab's cluster: time to serve, time to shift, the router, API requests."""

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import httpx

from controlled_rollout.cluster.api import Api
from controlled_rollout.workspace import Workspace
from tests.benchmarks import load
from tests.cluster.lab import Lab
from tests.cluster.sandbox import Sandbox, create_sandbox, delete_roles
from tests.cluster.scoring_images import build_all

NAMESPACE = "benchmark"
SHIFTS = 10


@dataclass(frozen=True)
class ClusterFigures:
    """Everything that is measured on the cluster.

    Attributes:
        first_answer_s: From `apply` of a new endpoint's first version to its first answer.
        shifts_s: From a shift being asked for to the first answer of the version that now has all the traffic.
        router: By number of connections: past the router and through it.
        requests: API requests of each step of one rollout; of all shifts the mean.
    """

    first_answer_s: float
    shifts_s: list[float]
    router: dict[int, dict[str, load.Figures]]
    requests: "dict[str, Requests]"


@contextmanager
def cluster_sandbox() -> Iterator[Sandbox]:
    """Create a namespace of the lab's cluster for the block."""
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab.up()
        lab.kubectl("create", "namespace", NAMESPACE)
        try:
            yield create_sandbox(lab, NAMESPACE, build_all(lab.registry), Path(folder))
        finally:
            lab.kubectl("delete", "namespace", NAMESPACE)
            delete_roles(lab, NAMESPACE)


@dataclass
class Requests:
    """API requests of one step, and how often it signed in for them."""

    sign_ins: int = 0
    all: int = 0
    watches: int = 0
    envoy: int = 0


class Meter:
    """Counts what goes to the API server."""

    def __init__(self) -> None:
        self.by_step: dict[str, Requests] = {}

    @asynccontextmanager
    async def of(self, step: str) -> AsyncIterator[None]:
        """Count what is sent in the block as that step's."""
        counts = self.by_step.setdefault(step, Requests())
        send, open_api = Api._response, Api.open

        def counted_opening(workspace: Workspace) -> AbstractAsyncContextManager[Api]:
            counts.sign_ins += 1
            return open_api(workspace)

        def counted(
            api: Api, method: str, path: str, body: Any, query: Any, *rest: Any
        ) -> AbstractAsyncContextManager[Any]:
            counts.all += 1
            counts.watches += (query or {}).get("watch") == "true"
            counts.envoy += "/proxy/stats/" in path
            return send(api, method, path, body, query, *rest)

        with patch.object(Api, "_response", counted), patch.object(Api, "open", counted_opening):
            yield


async def rollout(at: Sandbox, requests: Meter) -> tuple[float, list[float]]:
    """Roll out, shift several times, promote, retire; return the seconds to the first response, and of every shift."""
    began = time.perf_counter()
    async with requests.of("first version"):
        await at.deploy("one")
    headers = {"Authorization": f"Bearer {await at.key()}"}
    async with httpx.AsyncClient(headers=headers, trust_env=False) as client:

        async def until_answered_by(version: str) -> None:
            while (await client.post(at.url, content=b"{}")).headers.get("azureml-model-deployment") != version:
                pass

        await until_answered_by("one")
        first_answer_s = time.perf_counter() - began
        async with requests.of("treatment"):
            await at.deploy("two")
        shifts = []
        for number in range(SHIFTS):
            version, percentile = (("two", 100), ("one", 0))[number % 2]
            began = time.perf_counter()
            async with requests.of("shift"):
                await at.shift("two", percentile)
            await until_answered_by(version)
            shifts.append(time.perf_counter() - began)
        async with requests.of("promotion"):
            await at.promote("two")
        async with requests.of("retirement"):
            await at.retire("one")
    return first_answer_s, shifts


def past_the_router(at: Sandbox) -> str:
    """Open the version's replica to this machine by a Service of type NodePort; return its base URL."""
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "past-the-router"},
        "spec": {
            "type": "NodePort",
            "selector": {"controlled-rollout/endpoint": at.endpoint},
            "ports": [{"port": 80, "targetPort": "http"}],
        },
    }
    at.kubectl("apply", "-f", "-", input=json.dumps(service))
    port = at.kubectl("get", "service", "past-the-router", "-o", "jsonpath={.spec.ports[0].nodePort}")
    url = f"http://127.0.0.1:{port}/score"
    deadline = time.monotonic() + 30
    while True:
        try:
            httpx.post(url, content=b"{}", trust_env=False).raise_for_status()
            return url
        except httpx.HTTPError:
            assert time.monotonic() < deadline, f"{url} does not answer"


def measure(*, rounds: int = 3, seconds: float = 3.0) -> ClusterFigures:
    """Measure everything, in a namespace of its own."""
    with cluster_sandbox() as at:
        requests = Meter()
        first_answer_s, shifts_s = asyncio.run(rollout(at, requests))
        direct, routed = urlsplit(past_the_router(at)), urlsplit(at.url)
        key = {"Authorization": f"Bearer {asyncio.run(at.key())}"}
        calls = {
            "replica": load.Call(direct.path, "{}", port=direct.port),
            "router": load.Call(routed.path, "{}", port=routed.port, headers=key),
        }
        router = {
            connections: load.side_by_side(calls, connections=connections, seconds=seconds, rounds=rounds)
            for connections in (1, 8)
        }
        shift = requests.by_step["shift"]
        requests.by_step["shift"] = Requests(
            shift.sign_ins // SHIFTS, shift.all // SHIFTS, shift.watches // SHIFTS, shift.envoy // SHIFTS
        )
        return ClusterFigures(first_answer_s, shifts_s, router, requests.by_step)
