"""What protects an endpoint's versions: who reaches their pods, and how these leave a node that is drained."""

import json
from typing import Any

import pytest

from controlled_rollout.target.kubernetes.names import endpoint_object_name, selector, version_object_name
from tests.cluster.lab import LabError
from tests.cluster.sandbox import Sandbox


def find_objects(sandbox: Sandbox, kind: str, *more: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = json.loads(sandbox.kubectl("get", kind, "-o", "json", *more))["items"]
    return items


def names(objects: list[dict[str, Any]]) -> set[str]:
    return {one["metadata"]["name"] for one in objects}


def evict(sandbox: Sandbox, pod: str) -> None:
    """Ask the API server to evict a pod, as `kubectl drain` does."""
    metadata = {"name": pod, "namespace": sandbox.namespace}
    body = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})
    path = f"/api/v1/namespaces/{sandbox.namespace}/pods/{pod}/eviction"
    sandbox.kubectl("create", "--raw", path, "-f", "-", input=body)


async def test_versions_are_called_by_the_gateways_envoys_only_and_leave_a_node_one_by_one(sandbox: Sandbox) -> None:
    await sandbox.deploy("one", num_replicas=2)
    name, of_one = endpoint_object_name(sandbox.endpoint), version_object_name(sandbox.endpoint, "one")
    pods = find_objects(sandbox, "pods")

    # The lab's network does not enforce NetworkPolicies: that it is there, and whom it lets in, is what can be seen.
    [policy] = find_objects(sandbox, "networkpolicies")
    [rule] = policy["spec"]["ingress"]
    [peer] = rule["from"]
    assert policy["metadata"]["name"] == name
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    chosen = find_objects(sandbox, "pods", "-l", selector(policy["spec"]["podSelector"]["matchLabels"]))
    assert names(chosen) == names(pods)
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]
    envoys = selector(peer["podSelector"]["matchLabels"])
    namespace = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    assert json.loads(sandbox.lab.kubectl("get", "pods", "--namespace", namespace, "-l", envoys, "-o", "json"))["items"]

    assert names(find_objects(sandbox, "poddisruptionbudgets")) == {of_one}
    spread = [one["topologyKey"] for one in pods[0]["spec"]["topologySpreadConstraints"]]
    assert spread == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
    first, second = sorted(names(pods))
    evict(sandbox, first)
    with pytest.raises(LabError, match="disruption budget"):
        evict(sandbox, second)

    sandbox.kubectl("delete", "networkpolicies,poddisruptionbudgets", "--all")
    warnings = "\n".join((await sandbox.target.status(sandbox.endpoint)).warnings)
    assert f"NetworkPolicy {name} does not exist" in warnings
    assert f"PodDisruptionBudget {of_one} does not exist" in warnings
    await sandbox.deploy("two")
    await sandbox.promote("two")
    await sandbox.retire("one")

    assert names(find_objects(sandbox, "networkpolicies")) == {name}
    assert names(find_objects(sandbox, "poddisruptionbudgets")) == {version_object_name(sandbox.endpoint, "two")}
