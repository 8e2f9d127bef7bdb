"""A Gateway of a test's own, whose Envoys may come and go without a word to other tests."""

import copy
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.sandbox import Sandbox
from tests.polling import wait_until

__all__ = ["OwnGateway", "envoy_proxy", "own_gateway"]

AKS = Path(__file__).parents[2] / "docs" / "aks"
ENVOYS = ("--namespace", "envoy-gateway-system")


def envoy_proxy(file: str) -> dict[str, Any]:
    """Return the EnvoyProxy of a shipped file."""
    documents = yaml.safe_load_all((AKS / file).read_text(encoding="utf-8"))
    [proxy] = [document for document in documents if document["kind"] == "EnvoyProxy"]
    return dict(proxy)


@dataclass(frozen=True)
class OwnGateway:
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
        pods = self.pods()
        return sum(pods.values()), len(pods)

    def delete(self, pod: str) -> None:
        """Delete the pod of an Envoy, and do not wait for its end."""
        self.sandbox.lab.kubectl(*ENVOYS, "delete", "pod", pod, "--wait=false")

    def pods(self) -> dict[str, bool]:
        """Return whether each Envoy answers, by the name of its pod."""
        namespace, _, name = self.sandbox.workspace.gateway.partition("/")
        owner = "gateway.envoyproxy.io/owning-gateway"
        query = ("-l", f"{owner}-name={name},{owner}-namespace={namespace}", "-o", "json")
        pods = json.loads(self.sandbox.lab.kubectl(*ENVOYS, "get", "pods", *query))["items"]
        return {
            pod["metadata"]["name"]: any(
                (one["type"], one["status"]) == ("Ready", "True") for one in pod["status"].get("conditions") or []
            )
            for pod in pods
        }


@contextmanager
def own_gateway(sandbox: Sandbox) -> Iterator[OwnGateway]:
    """Context manager: make an EnvoyProxy of the shipped one, and a Gateway of it; delete them afterwards."""
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
        found = OwnGateway(
            replace(sandbox, workspace=sandbox.workspace.model_copy(update={"gateway": f"{namespace}/{name}"})), shipped
        )

        def node_port() -> int | None:
            service = found.of_envoys("services")
            return next((one.get("nodePort") for one in service["spec"]["ports"]), None) if service else None

        port = wait_until(node_port, "the Gateway has a Service", timeout_s=120, interval_s=0.5)
        settings = {"endpoint_url": f"http://127.0.0.1:{port}"}
        workspace = found.sandbox.workspace.model_copy(update=settings)
        yield OwnGateway(replace(sandbox, workspace=workspace), shipped)
    finally:
        kinds = (f"gateway/{name}", f"envoyproxy/{name}")
        sandbox.lab.kubectl("--namespace", namespace, "delete", *kinds, "--ignore-not-found", "--wait=false")
