"""What an agent knows of the endpoints of a namespace, from watches: no request is sent to look at one. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from controlled_rollout.autoscaling import Floor
from controlled_rollout.cluster.api import Object
from controlled_rollout.target.kubernetes import drift, route_rules
from controlled_rollout.target.kubernetes.annotations import NOT_SCALED
from controlled_rollout.target.kubernetes.gateway import acknowledgement
from controlled_rollout.target.kubernetes.names import ENDPOINT_LABEL, VERSION_LABEL
from controlled_rollout.target.kubernetes.phases import Phase
from controlled_rollout.target.kubernetes.scaling import floor_of
from controlled_rollout.target.kubernetes.view import versions_by_cluster
from controlled_rollout.target.protocol import Revision

__all__ = [
    "NamespaceState",
    "ObservedDeployment",
    "ObservedRoute",
    "is_edited",
    "observed_deployment",
    "observed_route",
]


@dataclass(frozen=True, slots=True)
class ObservedDeployment:
    """What matters of a version's Deployment.

    Attributes:
        name: Its name, which is that of its Service as well.
        endpoint: The endpoint.
        version: The version.
        resource_version: The state of the object that this was read from.
        replicas: How many it is to have.
        ready: How many are ready.
        floor: What sizing has given it for a change of traffic.
        writer: Who else than controlled-rollout has set the number of its replicas; None for nobody.
        note: Why it is not scaled, as it is noted there; empty for nothing.
        generation: Counts the changes of its content.
        uid: Another one has another.
        is_leaving: Whether it is being deleted.
    """

    name: str
    endpoint: str
    version: str
    resource_version: str
    replicas: int = 1
    ready: int = 0
    floor: Floor | None = None
    writer: str | None = None
    note: str = ""
    generation: int = 0
    uid: str = ""
    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class ObservedRoute:
    """What matters of an endpoint's HTTPRoute.

    Attributes:
        clusters: The names of Services by the names of their clusters in Envoy; a Service may have several.
        revision: The revision that its rules were made from; 0 for none.
        is_whole: Whether the rules say all of that revision's split.
        is_accepted: Whether the Gateway has accepted them.
        renamed_s: Since when the clusters have these names, by the agent's clock, in seconds.
    """

    clusters: Mapping[str, str]
    revision: int = 0
    is_whole: bool = False
    is_accepted: bool = False
    renamed_s: float = 0.0


@dataclass(slots=True)
class NamespaceState:
    """The endpoints of a namespace, and the Gateway's Envoys.

    Attributes:
        revisions: The newest revision of each endpoint.
        roots: The objects that own all others of an endpoint, by name.
        deployments: The versions' Deployments, by name.
        routes: The route of each endpoint.
        envoys: Whether each of the Envoys' pods is ready, by name.
        autoscalers: Who else scales a Deployment, by its name; None while that is not known.
    """

    revisions: dict[str, Revision] = field(default_factory=dict)
    roots: dict[str, Object] = field(default_factory=dict)
    deployments: dict[str, ObservedDeployment] = field(default_factory=dict)
    routes: dict[str, ObservedRoute] = field(default_factory=dict)
    envoys: dict[str, bool] = field(default_factory=dict)
    autoscalers: dict[str, str] | None = None

    def ready_envoys(self) -> list[str]:
        """Return the names of the Envoys' pods that are ready."""
        return [name for name, is_ready in self.envoys.items() if is_ready]

    def is_half_done(self, endpoint: str) -> bool:
        """Return whether the cluster is not all that an endpoint's newest revision asks for."""
        revision, route = self.revisions[endpoint], self.routes.get(endpoint)
        if route is None or route.revision != revision.number or not route.is_whole:
            return True
        versions = {one.version for one in self.deployments.values() if one.endpoint == endpoint and not one.is_leaving}
        return versions != set(revision.endpoint.versions)


def observed_deployment(resource: Object) -> ObservedDeployment:
    """Return what matters of a version's Deployment."""
    metadata, status = resource["metadata"], resource.get("status") or {}
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    with_kind = {"kind": "Deployment", **resource}
    return ObservedDeployment(
        name=metadata["name"],
        endpoint=labels.get(ENDPOINT_LABEL, ""),
        version=labels.get(VERSION_LABEL, ""),
        resource_version=metadata["resourceVersion"],
        replicas=resource["spec"].get("replicas", 1),
        ready=status.get("readyReplicas", 0),
        floor=floor_of(with_kind),
        writer=drift.replicas_writer(with_kind),
        note=annotations.get(NOT_SCALED, ""),
        generation=metadata.get("generation", 0),
        uid=metadata.get("uid", ""),
        is_leaving="deletionTimestamp" in metadata,
    )


def is_edited(before: ObservedDeployment, now: ObservedDeployment) -> bool:
    """Return whether a Deployment was made anew, or changed other than by setting the number of its replicas once."""
    if (now.uid, now.endpoint, now.version) != (before.uid, before.endpoint, before.version):
        return True
    changes = now.generation - before.generation
    return changes > 1 or (changes == 1 and now.replicas == before.replicas)


def observed_route(
    resource: Object, before: ObservedRoute | None, *, gateway: tuple[str, str], now_s: float
) -> ObservedRoute:
    """Return what matters of an endpoint's HTTPRoute.

    Args:
        resource: The route.
        before: What was seen of it before; None for nothing.
        gateway: Namespace and name of the Gateway.
        now_s: The agent's clock, in seconds.
    """
    rules = resource["spec"].get("rules") or []
    services = {backend["name"]: backend["name"] for rule in rules for backend in rule.get("backendRefs") or []}
    clusters = {
        cluster: service
        for by_name in (False, True)
        for cluster, service in versions_by_cluster(resource, services, by_name=by_name).items()
    }
    managed = route_rules.read_rules(rules, services)
    accepted = acknowledgement(
        {"kind": "HTTPRoute", **resource}, "parents", gateway=gateway, conditions=("Accepted", "ResolvedRefs")
    )
    return ObservedRoute(
        clusters=clusters,
        revision=managed.mark.revision if managed else 0,
        is_whole=managed is not None and managed.mark.phase is Phase.WHOLE,
        is_accepted=accepted.done,
        renamed_s=before.renamed_s if before is not None and before.clusters == clusters else now_s,
    )
