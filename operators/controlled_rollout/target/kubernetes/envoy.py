"""What the Envoy pods of a Gateway say of themselves: the rules they serve, whom they see ready, what they count."""

import asyncio
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import POD
from controlled_rollout.target import counters
from controlled_rollout.target.counters import Counters
from controlled_rollout.target.kubernetes.names import route_name, selector
from controlled_rollout.workspace import Workspace

__all__ = ["Envoys", "ask", "look", "pod_selector", "ready"]

# Where Envoy Gateway lets Prometheus read an Envoy's counters.
STATS_PORT: Final = 19001
_HEALTHY: Final = re.compile(r'^envoy_cluster_membership_healthy\{[^}]*envoy_cluster_name="([^"]*)"[^}]*\} (\d+)', re.M)
_ROUTE: Final = re.compile(r'^envoy_vhost_route_upstream_rq_total\{[^}]*envoy_route="([^"]*)"', re.M)


@dataclass(frozen=True)
class Envoy:
    """What one Envoy says.

    Attributes:
        clusters: What it has counted, by cluster.
        healthy: How many replicas it would send a request to, by cluster.
        rules: The rules whose counters it has: those that it serves, or has served before.
    """

    clusters: Mapping[str, Counters] = field(default_factory=dict)
    healthy: Mapping[str, int] = field(default_factory=dict)
    rules: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what is in the answer of `/stats/prometheus`."""
        return cls(
            clusters=counters.parse(text),
            healthy={cluster: int(number) for cluster, number in _HEALTHY.findall(text)},
            rules=frozenset(_ROUTE.findall(text)),
        )


@dataclass(frozen=True)
class Envoys:
    """What all Envoys of a Gateway say, by the names of their pods."""

    pods: Mapping[str, Envoy] = field(default_factory=dict)

    def serve(self, rule: str) -> bool:
        """Whether every Envoy has taken a rule over."""
        return bool(self.pods) and all(rule in envoy.rules for envoy in self.pods.values())

    def namespaces(self) -> set[str]:
        """The namespaces of all routes of that name that any Envoy serves rules of."""
        return {rule.partition("/")[0] for envoy in self.pods.values() for rule in envoy.rules}

    def healthy(self, cluster: str) -> int:
        """How many replicas of a cluster every Envoy at least would send a request to."""
        return min((envoy.healthy.get(cluster, 0) for envoy in self.pods.values()), default=0)

    def requests(self, cluster: str) -> int:
        """How many requests all Envoys have sent to a cluster."""
        return sum(envoy.clusters.get(cluster, Counters()).requests for envoy in self.pods.values())

    def active(self, cluster: str) -> int:
        """How many requests of a cluster all Envoys are waiting for."""
        return sum(envoy.clusters.get(cluster, Counters()).active for envoy in self.pods.values())

    def since(self, before: "Envoys") -> dict[str, Counters]:
        """Return what all Envoys have counted since an earlier look, by cluster.

        One that was not in that look is left out: what it has counted in its whole life is no growth.
        """
        return counters.total(
            counters.growth(before.pods[name].clusters, envoy.clusters)
            for name, envoy in self.pods.items()
            if name in before.pods
        )

    def ever(self) -> dict[str, Counters]:
        """Return what all Envoys have counted since they started, by cluster."""
        return counters.total(envoy.clusters for envoy in self.pods.values())


def pod_selector(workspace: Workspace) -> str:
    """Return the labels of the pods, in the workspace's `envoy_namespace`, that are Envoys of its Gateway."""
    namespace, name = workspace.gateway_name
    return selector(
        {
            "gateway.envoyproxy.io/owning-gateway-name": name,
            "gateway.envoyproxy.io/owning-gateway-namespace": namespace,
        }
    )


async def look(api: Api, workspace: Workspace, endpoint: str) -> Envoys:
    """Find every Envoy of the workspace's Gateway, and ask it as `ask` does."""
    pods = await api.items(POD.path(workspace.envoy_namespace), labelSelector=pod_selector(workspace))
    return await ask(api, workspace, endpoint, pods)


def ready(pods: Iterable[Object]) -> list[str]:
    """Return the names of the Envoys that can be asked."""
    return [pod["metadata"]["name"] for pod in pods if _ready(pod)]


def _ready(pod: Object) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    leaving = "deletionTimestamp" in pod["metadata"]
    return not leaving and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


async def ask(api: Api, workspace: Workspace, endpoint: str, pods: Iterable[Object]) -> Envoys:
    """Ask Envoys for their counters of an endpoint's route, and of routes of that name in other namespaces.

    Args:
        api: The cluster.
        workspace: Where in it endpoints and Envoys are.
        endpoint: The endpoint's name.
        pods: The Envoys; those that are not ready are not asked.
    """
    names = ready(pods)
    route = f"{workspace.namespace}/{route_name(endpoint)}"
    found = await asyncio.gather(*(_ask(api, workspace.envoy_namespace, name, route) for name in names))
    return Envoys({name: envoy for name, envoy in zip(names, found, strict=True) if envoy is not None})


async def _ask(api: Api, namespace: str, pod: str, route: str) -> Envoy | None:
    path = f"{POD.path(namespace, f'{pod}:{STATS_PORT}', 'proxy')}/stats/prometheus"
    _, _, name = route.partition("/")
    wanted = rf"^(cluster\.httproute/{re.escape(route)}/.*(upstream_rq_(total|active|time)|membership_healthy)$"
    wanted += rf"|vhost\..*\.route\.[^/]+/{re.escape(name)}/.*upstream_rq_total$)"
    try:
        text = await api.request("GET", path, query={"filter": wanted}, accept="*/*")
    except ApiError as error:
        if error.status == 404:  # the pod has gone in between
            return None
        raise
    return Envoy.parse(text.decode(errors="replace"))
