"""The counters of a Gateway's Envoy pods: which rules each serves, which replicas it reaches, what it has counted."""

import asyncio
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import POD
from controlled_rollout.sizing import Load
from controlled_rollout.target import counters
from controlled_rollout.target.counters import Counters
from controlled_rollout.target.kubernetes.gateway import envoy_labels
from controlled_rollout.target.kubernetes.names import route_name, selector
from controlled_rollout.workspace import Workspace

__all__ = [
    "EnvoyStats",
    "GatewayStats",
    "contradiction",
    "envoy_selector",
    "is_ready",
    "read_gateway_stats",
    "read_in_flight",
    "read_pod_stats",
    "ready_pods",
    "version_loads",
]

# Where Envoy Gateway lets Prometheus read an Envoy's counters.
STATS_PORT: Final = 19001
_HEALTHY: Final = re.compile(r'^envoy_cluster_membership_healthy\{[^}]*envoy_cluster_name="([^"]*)"[^}]*\} (\d+)', re.M)
_ROUTE: Final = re.compile(r'^envoy_vhost_route_upstream_rq_total\{[^}]*envoy_route="([^"]*)"', re.M)


@dataclass(frozen=True)
class EnvoyStats:
    """The counters of one Envoy.

    Attributes:
        clusters: What it has counted, by cluster.
        healthy: How many replicas it would send a request to, by cluster.
        rules: The rules that it has counters for: those that it serves, or has served before.
    """

    clusters: Mapping[str, Counters] = field(default_factory=dict)
    healthy: Mapping[str, int] = field(default_factory=dict)
    rules: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the counters in an answer of `/stats/prometheus`."""
        return cls(
            clusters=counters.parse_counters(text),
            healthy={cluster: int(number) for cluster, number in _HEALTHY.findall(text)},
            rules=frozenset(_ROUTE.findall(text)),
        )


@dataclass(frozen=True)
class GatewayStats:
    """The counters of all Envoys of a Gateway.

    Attributes:
        pods: Those of each Envoy, by the name of its pod.
    """

    pods: Mapping[str, EnvoyStats] = field(default_factory=dict)

    def serve(self, rule: str) -> bool:
        """Return whether there is an Envoy and all Envoys have counters of `rule`, which means they have loaded it."""
        return bool(self.pods) and all(rule in envoy.rules for envoy in self.pods.values())

    def namespaces(self) -> set[str]:
        """Return the namespaces of all routes that any Envoy has rules of."""
        return {rule.partition("/")[0] for envoy in self.pods.values() for rule in envoy.rules}

    def healthy(self, cluster: str) -> int:
        """Return the number of replicas of a cluster that every Envoy reaches: the minimum over the Envoys."""
        return min((envoy.healthy.get(cluster, 0) for envoy in self.pods.values()), default=0)

    def requests(self, cluster: str) -> int:
        """Return how many requests all Envoys have sent to a cluster."""
        return sum(envoy.clusters.get(cluster, Counters()).requests for envoy in self.pods.values())

    def unsent(self, cluster: str) -> int:
        """Return how many requests for a cluster the Envoys could not send there."""
        return sum(envoy.clusters.get(cluster, Counters()).unsent for envoy in self.pods.values())

    def active(self, cluster: str) -> int:
        """Return how many requests to a cluster all Envoys have open now."""
        return sum(envoy.clusters.get(cluster, Counters()).active for envoy in self.pods.values())

    def since(self, earlier: "GatewayStats") -> dict[str, Counters]:
        """Return what all Envoys have counted since an earlier reading, by cluster.

        An Envoy that was not in that reading is left out: what it has counted in its whole life is no growth.
        """
        return counters.total_counters(
            counters.counter_growth(earlier.pods[name].clusters, envoy.clusters)
            for name, envoy in self.pods.items()
            if name in earlier.pods
        )

    def total(self) -> dict[str, Counters]:
        """Return what all Envoys have counted since they started, by cluster."""
        return counters.total_counters(envoy.clusters for envoy in self.pods.values())


def version_loads(
    earlier: GatewayStats, later: GatewayStats, versions: Mapping[str, str], seconds: float
) -> dict[str, Load]:
    """Return the load of each version between two readings of the Envoys' counters.

    Args:
        earlier: The first reading.
        later: The second.
        versions: The versions by their clusters: a version may have several.
        seconds: The time between the readings.
    """
    growth, total = later.since(earlier), later.total()
    result: dict[str, Load] = {}
    for version in set(versions.values()):
        clusters = [cluster for cluster, name in versions.items() if name == version]
        grown = [growth[cluster] for cluster in clusters if cluster in growth]
        # Envoy adds times up once every few seconds: a short time may have none.
        timed = grown
        if not any(cluster.answered for cluster in grown):
            timed = [total[cluster] for cluster in clusters if cluster in total]
        answered = sum(cluster.answered for cluster in timed)
        result[version] = Load(
            requests_per_s=sum(cluster.requests for cluster in grown) / seconds,
            request_time_s=sum(cluster.time_ms for cluster in timed) / answered / 1000 if answered else None,
        )
    return result


def contradiction(weights: Mapping[str, int], counted: Mapping[str, int]) -> str | None:
    """Return a sentence if the counted requests do not fit the weights of a split; None if they do.

    Six standard deviations of a fair draw, and three requests: a split that is served as it was set is called wrong
    less than once in a hundred million times.

    Args:
        weights: Parts of a million by version.
        counted: Requests by version, over the same time.
    """
    requests, whole = sum(counted.values()), sum(weights.values())
    for version, weight in weights.items():
        share = weight / whole if whole else 0.0
        observed, expected = counted.get(version, 0), requests * share
        if abs(observed - expected) > 6 * math.sqrt(requests * share * (1 - share)) + 3:
            return (
                f"the Envoys have sent {observed} of {requests} requests to version {version!r}; the split that they "
                f"were given asks for about {expected:.0f}"
            )
    return None


def envoy_selector(workspace: Workspace) -> str:
    """Return the label selector of the Envoy pods of the workspace's Gateway."""
    return selector(envoy_labels(workspace))


def ready_pods(pods: Iterable[Object]) -> list[str]:
    """Return the names of the pods that are ready and not being deleted."""
    return [pod["metadata"]["name"] for pod in pods if is_ready(pod)]


async def read_gateway_stats(api: Api, workspace: Workspace, endpoint: str) -> GatewayStats:
    """List the Envoy pods of the workspace's Gateway and read the counters of each for one endpoint."""
    pods = await api.items(POD.path(workspace.envoy_namespace), labelSelector=envoy_selector(workspace))
    return await read_pod_stats(api, workspace, endpoint, pods)


async def read_pod_stats(api: Api, workspace: Workspace, endpoint: str, pods: Iterable[Object]) -> GatewayStats:
    """Read an endpoint's counters from the given Envoy pods, also those of same-named routes in other namespaces.

    Args:
        api: The cluster.
        workspace: Where in it endpoints and Envoys are.
        endpoint: The endpoint's name.
        pods: The Envoys; those that are not ready are left out.
    """
    names = ready_pods(pods)
    route = f"{workspace.namespace}/{route_name(endpoint)}"
    stats = await asyncio.gather(*(_read_pod(api, workspace.envoy_namespace, name, route) for name in names))
    return GatewayStats({name: envoy for name, envoy in zip(names, stats, strict=True) if envoy is not None})


async def read_in_flight(api: Api, workspace: Workspace, pods: Iterable[str]) -> GatewayStats:
    """Read from each Envoy pod how many requests it has open or waiting, for all routes of the namespace.

    An Envoy has these counters of a cluster from its first request on, and from the beginning how many replicas it
    reaches.

    Args:
        api: The cluster.
        workspace: Where in it endpoints and Envoys are.
        pods: The names of the Envoys.

    Raises:
        ApiError: One of them no longer exists.
    """
    names = (
        rf"^cluster\.httproute/{re.escape(workspace.namespace)}/.*\.(upstream_rq_(pending_)?active|membership_healthy)$"
    )

    async def read(pod: str) -> EnvoyStats:
        """Read one Envoy."""
        text = await api.request(
            "GET", _stats_path(workspace.envoy_namespace, pod), query={"filter": names}, accept="*/*"
        )
        return EnvoyStats.parse(text.decode(errors="replace"))

    names_of_pods = list(pods)
    return GatewayStats(dict(zip(names_of_pods, await asyncio.gather(*map(read, names_of_pods)), strict=True)))


async def _read_pod(api: Api, namespace: str, pod: str, route: str) -> EnvoyStats | None:
    """Read the counters of one Envoy pod for a route; None if the pod no longer exists."""
    path = _stats_path(namespace, pod)
    _, _, name = route.partition("/")
    metrics = "|".join(("upstream_rq_(total|active|time)", "membership_healthy", *counters.UNSENT))
    names = rf"^(cluster\.httproute/{re.escape(route)}/.*({metrics})$"
    names += rf"|vhost\..*\.route\.[^/]+/{re.escape(name)}/.*upstream_rq_total$)"
    try:
        text = await api.request("GET", path, query={"filter": names}, accept="*/*")
    except ApiError as error:
        if error.status == 404:  # the pod is gone since it was listed
            return None
        raise
    return EnvoyStats.parse(text.decode(errors="replace"))


def _stats_path(namespace: str, pod: str) -> str:
    """Return the API server's path of an Envoy's counters."""
    return f"{POD.path(namespace, f'{pod}:{STATS_PORT}', 'proxy')}/stats/prometheus"


def is_ready(pod: Object) -> bool:
    """Return whether a pod's condition Ready is true and the pod is not being deleted."""
    conditions = (pod.get("status") or {}).get("conditions") or []
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]
