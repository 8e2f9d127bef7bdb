"""The shipped EnvoyProxy on one node: Envoy Gateway makes of it what the page says, and no request fails by scaling."""

import asyncio
import copy
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.sandbox import Sandbox
from tests.local.local_target_lab import steady_load
from tests.polling import until, wait_until

AKS = Path(__file__).parents[2] / "docs" / "aks"
ENVOYS = ("--namespace", "envoy-gateway-system")


def envoy_proxy(file: str) -> dict[str, Any]:
    """Return the EnvoyProxy of a shipped file."""
    documents = yaml.safe_load_all((AKS / file).read_text(encoding="utf-8"))
    [proxy] = [document for document in documents if document["kind"] == "EnvoyProxy"]
    return dict(proxy)


def test_the_envoys_of_the_two_files_differ_in_size_and_scaling_only() -> None:
    production, dev_test = (copy.deepcopy(envoy_proxy(file)) for file in ("gateway.yaml", "gateway-dev-test.yaml"))
    kubernetes = [proxy["spec"]["provider"]["kubernetes"] for proxy in (production, dev_test)]

    assert "envoyHpa" not in kubernetes[1]
    assert kubernetes[1]["envoyDeployment"]["replicas"] == 1
    # Envoy Gateway leaves the number to the autoscaler, whatever stands there.
    assert "replicas" not in kubernetes[0]["envoyDeployment"]
    assert kubernetes[0]["envoyPDB"]["minAvailable"] < kubernetes[0]["envoyHpa"]["minReplicas"]
    for proxy in (production, dev_test):
        del proxy["spec"]["provider"]
        del proxy["spec"]["concurrency"]
    assert production == dev_test


@dataclass(frozen=True)
class Scaled:
    """A sandbox behind a Gateway whose Envoys are the shipped ones, small enough for one node."""

    sandbox: Sandbox
    shipped: dict[str, Any]

    def of_envoys(self, kind: str) -> dict[str, Any] | None:
        """Return the object of a kind that Envoy Gateway has made for the Gateway's Envoys; None if there is none."""
        namespace, _, name = self.sandbox.workspace.gateway.partition("/")
        owner = "gateway.envoyproxy.io/owning-gateway"
        query = ("-l", f"{owner}-name={name},{owner}-namespace={namespace}", "-o", "json")
        items = json.loads(self.sandbox.lab.kubectl(*ENVOYS, "get", kind, *query))["items"]
        return items[0] if items else None

    def scale(self, replicas: int) -> None:
        """Set the number of Envoys, as the autoscaler does."""
        deployment = self.of_envoys("deployments")
        assert deployment is not None
        self.sandbox.lab.kubectl(
            *ENVOYS, "scale", "deployment", deployment["metadata"]["name"], f"--replicas={replicas}"
        )

    def envoys(self) -> tuple[int, int]:
        """Return how many Envoys answer, and how many pods there are, ending ones included."""
        namespace, _, name = self.sandbox.workspace.gateway.partition("/")
        owner = "gateway.envoyproxy.io/owning-gateway"
        query = ("-l", f"{owner}-name={name},{owner}-namespace={namespace}", "-o", "json")
        pods = json.loads(self.sandbox.lab.kubectl(*ENVOYS, "get", "pods", *query))["items"]
        conditions = [{one["type"]: one["status"] for one in pod["status"].get("conditions") or []} for pod in pods]
        return sum(each.get("Ready") == "True" for each in conditions), len(pods)


@pytest.fixture
def scaled(sandbox: Sandbox) -> Iterator[Scaled]:
    """Make an EnvoyProxy of the shipped one, and a Gateway of it."""
    if not sandbox.lab.is_ours:
        pytest.skip("the Envoys of a further Gateway are reached through the lab's node ports")
    namespace, name = sandbox.lab.gateway.partition("/")[0], f"scaled-{secrets.token_hex(3)}"
    shipped = envoy_proxy("gateway.yaml")
    proxy = copy.deepcopy(shipped)
    proxy["metadata"] = {"name": name, "namespace": namespace}
    kubernetes = proxy["spec"]["provider"]["kubernetes"]
    kubernetes["envoyHpa"] |= {"minReplicas": 1, "maxReplicas": 2}
    kubernetes["envoyService"] = {"type": "NodePort", "externalTrafficPolicy": "Cluster"}
    del kubernetes["envoyPDB"]
    # Drained as the shipped ones are, in less time.
    proxy["spec"]["shutdown"] = {"drainTimeout": "15s", "minDrainDuration": "5s"}
    kubernetes["envoyDeployment"]["container"] |= {
        "image": f"{sandbox.lab.registry}/lab/envoy:1",
        "resources": {"requests": {"cpu": "20m", "memory": "64Mi"}},
    }
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "gatewayClassName": "envoy",
            "infrastructure": {"parametersRef": {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": name}},
            "listeners": [
                {"name": "http", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}
            ],
        },
    }
    try:
        sandbox.lab.kubectl("create", "-f", "-", input=json.dumps(proxy))
        sandbox.lab.kubectl("create", "-f", "-", input=json.dumps(gateway))
        found = Scaled(
            replace(sandbox, workspace=sandbox.workspace.model_copy(update={"gateway": f"{namespace}/{name}"})), shipped
        )

        def node_port() -> int | None:
            service = found.of_envoys("services")
            return next((one.get("nodePort") for one in service["spec"]["ports"]), None) if service else None

        port = wait_until(node_port, "the Gateway has a Service", timeout_s=120, interval_s=0.5)
        settings = {"endpoint_url": f"http://127.0.0.1:{port}"}
        workspace = found.sandbox.workspace.model_copy(update=settings)
        yield Scaled(replace(sandbox, workspace=workspace), shipped)
    finally:
        kinds = (f"gateway/{name}", f"envoyproxy/{name}")
        sandbox.lab.kubectl("--namespace", namespace, "delete", *kinds, "--ignore-not-found", "--wait=false")


@pytest.mark.timeout(600, func_only=True)
async def test_envoys_come_and_go_by_the_shipped_autoscaler_and_no_request_fails(scaled: Scaled) -> None:
    sandbox = scaled.sandbox
    await sandbox.deploy("one")
    url, key = (await sandbox.target.status(sandbox.endpoint)).url, await sandbox.key()
    autoscaler = scaled.of_envoys("horizontalpodautoscalers")
    deployment = scaled.of_envoys("deployments")

    assert autoscaler is not None
    assert deployment is not None
    shipped = scaled.shipped["spec"]["provider"]["kubernetes"]["envoyHpa"]
    made = autoscaler["spec"]
    assert made["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert (made["minReplicas"], made["maxReplicas"], made["metrics"]) == (1, 2, shipped["metrics"])
    for direction, rules in shipped["behavior"].items():
        assert rules.items() <= made["behavior"][direction].items()
    [envoy] = [one for one in deployment["spec"]["template"]["spec"]["containers"] if one["name"] == "envoy"]
    assert "--concurrency 2" in " ".join(envoy["args"])

    # There is no metrics server on the lab: the test takes the autoscaler's part.
    async with (
        steady_load(url, key, rate=10, connections=2) as kept,
        steady_load(url, key, rate=5, connections=1, per_connection=1) as fresh,
    ):
        for replicas in (2, 1):
            await asyncio.to_thread(scaled.scale, replicas)

            async def are_there(wanted: int = replicas) -> bool:
                return await asyncio.to_thread(scaled.envoys) == (wanted, wanted)

            await until(are_there, f"there are {replicas} Envoys", timeout_s=180, interval_s=1)
            await fresh.more(10)
            await kept.more(10)

    assert (kept.failed, fresh.failed) == ({}, {}), (kept.broken, fresh.broken, kept.refusals, fresh.refusals)
