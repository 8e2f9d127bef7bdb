"""The objects that protect an endpoint's versions."""

from typing import Any

from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.target.kubernetes.gateway import envoy_labels
from controlled_rollout.workspace import Workspace

OWNER = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "root", "uid": "1"}}
WORKSPACE = Workspace.from_settings(
    {"target": "kubernetes", "namespace": "models", "gateway": "edge/public/https", "envoy_namespace": "envoys"}
)
IMAGE = "registry.example/digits@sha256:" + "0" * 64


def pod_labels(endpoint: Endpoint, version: str) -> dict[str, str]:
    labels: dict[str, str] = deployment(endpoint, version)["spec"]["template"]["metadata"]["labels"]
    return labels


def deployment(endpoint: Endpoint, version: str) -> dict[str, Any]:
    return manifests.deployment(endpoint, endpoint.versions[version], WORKSPACE, owner=OWNER)


def test_only_the_envoys_of_the_gateway_reach_an_endpoints_pods_and_only_where_they_score() -> None:
    spec = manifests.network_policy("digits", WORKSPACE, envoy_labels(WORKSPACE), owner=OWNER)["spec"]

    digits = Endpoint(name="digits").create_version("one", image=IMAGE)
    others = Endpoint(name="letters").create_version("one", image=IMAGE)
    chosen = spec["podSelector"]["matchLabels"].items()
    assert chosen <= pod_labels(digits, "one").items()
    assert not chosen <= pod_labels(others, "one").items()
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [
        {
            "from": [
                {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "envoys"}},
                    "podSelector": {
                        "matchLabels": {
                            "gateway.envoyproxy.io/owning-gateway-name": "public",
                            "gateway.envoyproxy.io/owning-gateway-namespace": "edge",
                        }
                    },
                }
            ],
            "ports": [{"protocol": "TCP", "port": 8080}],
        }
    ]


def test_each_version_leaves_one_replica_at_a_time_and_is_spread_for_itself() -> None:
    endpoint = Endpoint(name="digits").create_version("one", image=IMAGE).create_version("two", image=IMAGE)

    budget = manifests.disruption_budget("digits", "two", namespace="models", owner=OWNER)["spec"]
    spread = deployment(endpoint, "two")["spec"]["template"]["spec"]["topologySpreadConstraints"]

    assert (budget["maxUnavailable"], budget["selector"]["matchLabels"]) == (1, pod_labels(endpoint, "two"))
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    assert [one["labelSelector"]["matchLabels"] for one in spread] == [pod_labels(endpoint, "two")] * 2
    assert {one["whenUnsatisfiable"] for one in spread} == {"ScheduleAnyway"}
    assert not budget["selector"]["matchLabels"].items() <= pod_labels(endpoint, "one").items()


def test_memory_and_temporary_files_of_a_replica_are_bounded_also_where_the_author_says_nothing() -> None:
    endpoint = Endpoint(name="digits").create_version("one", image=IMAGE, memory_gb=1.5)
    endpoint = endpoint.create_version("two", image=IMAGE, memory_gb=1.5, memory_gb_limit=2)

    pods = {name: deployment(endpoint, name)["spec"]["template"]["spec"] for name in ("one", "two")}

    limits = {name: pod["containers"][0]["resources"]["limits"]["memory"] for name, pod in pods.items()}
    assert limits == {"one": "3000000000", "two": "2000000000"}
    assert pods["one"]["volumes"] == [{"name": "tmp", "emptyDir": {"sizeLimit": "10Gi"}}]
