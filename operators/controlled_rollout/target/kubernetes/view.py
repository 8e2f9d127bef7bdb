"""The state of an endpoint in its cluster at one moment, and its status and next rules that follow from it. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.kinds import DEPLOYMENT, HTTP_ROUTE, POD, SECURITY_POLICY, Kind
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.target.kubernetes import health, route_rules
from controlled_rollout.target.kubernetes.annotations import NOT_SCALED
from controlled_rollout.target.kubernetes.drift import Drift, replicas_writer
from controlled_rollout.target.kubernetes.envoy_stats import GatewayStats, ready_pods
from controlled_rollout.target.kubernetes.gateway import Acknowledgement, acknowledgement
from controlled_rollout.target.kubernetes.names import (
    VERSION_LABEL,
    endpoint_object_name,
    route_name,
    version_object_name,
)
from controlled_rollout.target.kubernetes.phases import SETTLED, Phase
from controlled_rollout.target.kubernetes.route_rules import ManagedRules, Mark
from controlled_rollout.target.kubernetes.route_transition import next_rules
from controlled_rollout.target.kubernetes.shadowing import Shadow
from controlled_rollout.target.protocol import EndpointStatus, VersionStatus
from controlled_rollout.target.transition import CLOSED, Split, allowed_split

__all__ = ["EndpointView", "versions_by_cluster", "versions_by_service"]


def versions_by_service(endpoint: str, versions: Iterable[str]) -> dict[str, str]:
    """Return the versions of an endpoint by the names of their Services."""
    return {version_object_name(endpoint, version): version for version in versions}


def versions_by_cluster(route: Object | None, services: Mapping[str, str], *, by_name: bool) -> dict[str, str]:
    """Return the versions of a route by the names of their clusters in Envoy; empty if there is no route.

    Args:
        route: The endpoint's HTTPRoute; None if there is none.
        services: The versions by the names of their Services.
        by_name: The clusters for callers who ask for a version; False for those that share the traffic.
    """
    if route is None:
        return {}
    metadata, rules = route["metadata"], route["spec"].get("rules") or []
    return route_rules.versions_by_cluster(metadata["namespace"], metadata["name"], rules, services, by_name=by_name)


@dataclass(frozen=True)
class EndpointView:
    """Everything that is known of an endpoint in its cluster at one moment.

    Attributes:
        endpoint: The newest revision.
        gateway: Namespace and name of the Gateway.
        objects: The endpoint's Deployments, pods, HTTPRoute and SecurityPolicy, by kind and name.
        envoy_pods: The pods of the Gateway's Envoys, by name.
        envoys: Their counters.
        compared: Whether the counters have been compared with the split since every Envoy serves it, or need not be.
        contradiction: How the counters contradict the split; None if they do not.
        seen_requests: How many requests they were compared by; None if they were not compared.
        drift: The objects that are not as the newest revision asks for.
        shadows: The rules of others that take the endpoint's requests.
        idle_since: Since when no step has been at work on the newest revision; None if one is, or if that is not known.
        changed_by: Who stored the newest revision.
        not_taken_back: Why a treatment that nobody looks at could not be taken back, as a sentence; empty if it could.
    """

    endpoint: Endpoint
    gateway: tuple[str, str]
    objects: Mapping[Kind, Mapping[str, Object]]
    envoy_pods: Mapping[str, Object] = field(default_factory=dict)
    envoys: GatewayStats = field(default_factory=GatewayStats)
    compared: bool = True
    contradiction: str | None = None
    seen_requests: int | None = None
    drift: tuple[Drift, ...] = ()
    shadows: tuple[Shadow, ...] = ()
    idle_since: datetime | None = None
    changed_by: str = ""
    not_taken_back: str = ""

    # The route and its rules

    @cached_property
    def route(self) -> Object | None:
        """The endpoint's HTTPRoute."""
        return self.objects[HTTP_ROUTE].get(route_name(self.endpoint.name))

    @cached_property
    def rules(self) -> list[Object]:
        """All rules of the route."""
        return list(self.route["spec"].get("rules") or []) if self.route else []

    @cached_property
    def services(self) -> dict[str, str]:
        """The versions by the names of their Services, with deleted versions whose Deployments still exist."""
        deployed = map(_version_label, self.objects[DEPLOYMENT].values())
        return versions_by_service(self.endpoint.name, {*self.endpoint.versions, *deployed})

    @cached_property
    def managed(self) -> ManagedRules | None:
        """What our rules in the route say."""
        return route_rules.read_rules(self.rules, self.services)

    @cached_property
    def weight_clusters(self) -> dict[str, str]:
        """The versions by the names of the Envoy clusters that share the traffic by weight."""
        return versions_by_cluster(self.route, self.services, by_name=False)

    @cached_property
    def name_clusters(self) -> dict[str, str]:
        """The versions by the names of the Envoy clusters for callers who name a version."""
        return versions_by_cluster(self.route, self.services, by_name=True)

    @cached_property
    def route_acknowledged(self) -> Acknowledgement:
        """Whether the Gateway has accepted the newest generation of the route."""
        return acknowledgement(self.route, "parents", gateway=self.gateway, conditions=("Accepted", "ResolvedRefs"))

    @cached_property
    def policy_acknowledged(self) -> Acknowledgement:
        """Whether the Gateway enforces the policy that says who may call."""
        policy = self.objects[SECURITY_POLICY].get(endpoint_object_name(self.endpoint.name))
        return acknowledgement(policy, "ancestors", gateway=self.gateway, conditions=("Accepted",))

    @cached_property
    def confirmed(self) -> bool:
        """Whether the Gateway has accepted the present route and every Envoy has loaded its rules."""
        if self.managed is None or self.route is None or not self.route_acknowledged.done:
            return False
        metadata = self.route["metadata"]
        return self.envoys.serve(self.managed.mark.stat(metadata["namespace"], metadata["name"]))

    @cached_property
    def unconfirmed(self) -> str | None:
        """What has to come before every Envoy serves the present rules and policy; None if every Envoy does."""
        for acknowledged in (self.policy_acknowledged, self.route_acknowledged):
            if not acknowledged.done:
                return acknowledged.reason
        if not self.envoys.pods:
            return "no Envoy pod is ready"
        return None if self.confirmed else "not every Envoy serves the newest rules yet"

    def has_taken_over(self, mark: Mark) -> bool:
        """Return whether every Envoy enforces the policy and serves the split of a mark, or a later one."""
        present = self.managed.mark if self.managed else None
        is_written = present is not None and (present.revision, present.step) >= (mark.revision, mark.step)
        return is_written and self.unconfirmed is None

    @cached_property
    def whole_split_is_served(self) -> bool:
        """Whether every Envoy serves the whole split of a revision."""
        return self.managed is not None and self.managed.mark.phase is Phase.WHOLE and self.confirmed

    @cached_property
    def served_revision(self) -> int:
        """The newest revision whose whole split the Gateway has acknowledged and every Envoy serves; 0 for none."""
        if self.managed is None:
            return 0
        mark = self.managed.mark
        is_proven = (
            self.compared
            and self.contradiction is None
            and self.policy_acknowledged.done
            and not self.unreached
            and not any(shadow.takes_all for shadow in self.shadows)
        )
        return mark.revision if self.whole_split_is_served and is_proven else mark.served_revision

    # The versions

    @cached_property
    def available(self) -> frozenset[str]:
        """The versions with at least one ready pod, also deleted versions whose Deployments still exist."""
        return frozenset(
            _version_label(deployment)
            for deployment in self.objects[DEPLOYMENT].values()
            if (deployment.get("status") or {}).get("readyReplicas", 0)
        )

    @cached_property
    def deployed(self) -> frozenset[str]:
        """The versions whose Deployments are ready."""
        return frozenset(name for name in self.endpoint.versions if self._deployment_status(name).ready)

    @cached_property
    def ready(self) -> frozenset[str]:
        """The versions whose Deployments are ready and of which every Envoy reaches all replicas that are awaited."""
        return frozenset(
            version
            for cluster, version in self.name_clusters.items()
            if version in self.deployed and self.envoys.healthy(cluster) >= self._awaited_replicas(version)
        )

    @cached_property
    def connected(self) -> frozenset[str]:
        """The versions of which every Envoy reaches a replica in the cluster that shares the traffic."""
        return frozenset(version for cluster, version in self.weight_clusters.items() if self.envoys.healthy(cluster))

    @cached_property
    def unreached(self) -> frozenset[str]:
        """The versions with a share whose Deployments are ready, and of which an Envoy reaches no replica yet."""
        shared = frozenset(route_rules.positive_weights(self.managed.weights)) if self.managed else frozenset()
        return (shared & self.deployed) - self.connected

    @cached_property
    def live(self) -> frozenset[str]:
        """The versions of which every Envoy reaches a replica."""
        by_name = {version for cluster, version in self.name_clusters.items() if self.envoys.healthy(cluster)}
        return self.connected | by_name

    # What to do next

    @cached_property
    def goal(self) -> Split:
        """The split that may be served now, given the readiness of the versions."""
        return allowed_split(
            self.endpoint,
            served=self.managed.split if self.managed else CLOSED,
            ready=self.ready,
            live=self.live,
            # What serves is never closed for an acknowledgement that is late: who is late may be away for long. The
            # policy is there, every step sees to that, and it goes the same way to the Envoys as closed rules would.
            closed=not (self.policy_acknowledged.done or (self.managed and self.managed.weights)),
        )

    @cached_property
    def next_rules(self) -> list[Object]:
        """All rules that the route should have next on the way to `goal`."""
        return next_rules(
            self.endpoint,
            self.rules,
            self.goal,
            managed=self.managed,
            available=self.available,
            connected=self.connected,
            confirmed=self.confirmed,
        )

    @cached_property
    def unused_objects(self) -> tuple[str, ...]:
        """The names of the Deployments and Services of deleted versions that no Envoy refers to any more."""
        if self.managed is None or not self.confirmed:
            return ()
        mark, weights = self.managed.mark, self.managed.split.weights
        if mark.revision != self.endpoint.revision or mark.phase not in SETTLED:
            return ()
        return tuple(
            name
            for name, deployment in self.objects[DEPLOYMENT].items()
            if _version_label(deployment) not in {*self.endpoint.versions, *weights}
            and "deletionTimestamp" not in deployment["metadata"]
        )

    @cached_property
    def hand_edit(self) -> str | None:
        """Who has edited our rules in the route; None if nobody has."""
        return route_rules.hand_edit(self.route)

    @cached_property
    def has_work(self) -> bool:
        """Whether there is a step to take now for the newest revision."""
        return not self.hand_edit and (self.next_rules != self.rules or bool(self.unused_objects))

    @cached_property
    def needs_counters(self) -> bool:
        """Whether something is awaited that only the Envoys' counters show."""
        routed = frozenset(self.name_clusters.values())
        return (
            set(self.envoys.pods) != set(ready_pods(self.envoy_pods.values()))
            or bool(self.deployed - self.ready)
            or self.available & routed != self.live & routed
            or bool(self.unreached)
            or (
                self.managed is not None
                and self.route_acknowledged.done
                and not (self.confirmed and self.managed.mark.phase in SETTLED)
            )
        )

    # The status

    def status(self, base_url: str, now: datetime) -> EndpointStatus:
        """Return the endpoint's status.

        Args:
            base_url: Where callers reach the Gateway.
            now: The time.
        """
        refusal = self.route_acknowledged.reason if self.route_acknowledged.refused else None
        taken = next((shadow.sentence for shadow in self.shadows if shadow.takes_all), None)
        return EndpointStatus(
            name=self.endpoint.name,
            url=f"{base_url}/api/v1/service/{self.endpoint.name}/score",
            revision=self.endpoint.revision,
            served_revision=self.served_revision,
            versions={name: self._version_status(name, now) for name in self.endpoint.versions},
            trouble=self.hand_edit or refusal or taken or self.contradiction,
            waiting_for=self._waiting_for(),
            warnings=self._warnings(),
            weight_ppm=route_rules.positive_weights(self.managed.weights) if self.managed and self.confirmed else {},
            seen_requests=self.seen_requests,
            split_revision=self.managed.mark.revision if self.managed and self.confirmed else 0,
            clusters={version: cluster for cluster, version in self.weight_clusters.items()},
            routers={name: since for name in self.envoys.pods if (since := self._running_since(name)) is not None},
        )

    def _running_since(self, envoy_pod: str) -> datetime | None:
        """Return since when an Envoy counts: the start of the last of its pod's containers; None if that is not known.

        Which of them is Envoy is not ours to know, and a later start only leaves something uncompared.
        """
        statuses = (self.envoy_pods.get(envoy_pod, {}).get("status") or {}).get("containerStatuses") or []
        starts = [
            running["startedAt"] for status in statuses if (running := (status.get("state") or {}).get("running"))
        ]
        return max((datetime.fromisoformat(start) for start in starts), default=None)

    def _warnings(self) -> tuple[str, ...]:
        """Return what is not as the newest revision asks for, or is somebody else's: a sentence for each."""
        taken = (shadow.sentence for shadow in self.shadows if not shadow.takes_all)
        moved = route_rules.moved_rules(self.route)
        others = [*self._other_replicas(), *self._not_scaled()]
        kept = (self.not_taken_back,) if self.not_taken_back else ()
        sentences = [*kept, *map(str, self.drift), *others, *taken, *((moved,) if moved else ())]
        if self.served_revision > self.endpoint.revision:
            sentences.append(
                f"the router serves revision {self.served_revision}, and somebody has deleted its ControllerRevision: "
                f"the newest that is left is {self.endpoint.revision}, and the next step begins from it"
            )
        if self.idle_since and self.served_revision < self.endpoint.revision:
            sentences.append(
                f"revision {self.endpoint.revision}, by {self.changed_by}, is not served yet, and no step has been at "
                f"work on it since {self.idle_since:%Y-%m-%d %H:%M:%S %Z}: repeat that step, or roll back"
            )
        return tuple(sentences)

    def _other_replicas(self) -> list[str]:
        """Return a sentence for each version whose number of replicas somebody else has set to another one."""
        sentences = []
        for deployment in self.objects[DEPLOYMENT].values():
            version = self.endpoint.versions.get(_version_label(deployment))
            replicas, writer = deployment["spec"].get("replicas", 1), replicas_writer(deployment)
            if version and writer and replicas != version.replicas_at_start:
                sentences.append(
                    f"version {version.name!r} has {replicas} replicas, as {writer} has set it, and its settings ask "
                    f"for {version.replicas_at_start}: no step sets it back"
                )
        return sentences

    def _not_scaled(self) -> list[str]:
        """Return a sentence for each version that the agent's autoscaler leaves alone, with its reason."""
        return [
            f"version {_version_label(deployment)!r} is not scaled by its load: {note}"
            for deployment in self.objects[DEPLOYMENT].values()
            if _version_label(deployment) in self.endpoint.versions
            and (note := (deployment["metadata"].get("annotations") or {}).get(NOT_SCALED))
        ]

    def _waiting_for(self) -> str | None:
        """Return what the newest revision's split waits for now; it changes with every step on the way."""
        if self.unconfirmed or self.managed is None:
            return self.unconfirmed
        mark = self.managed.mark
        if mark.phase is Phase.ENTERING:
            missing = ", ".join(sorted(set(self.managed.weights) - self.connected))
            return f"not every Envoy has a replica of {missing} yet, which revision {mark.revision} gives a share"
        if mark.phase is Phase.LEAVING:
            return (
                f"revision {mark.revision} is being served; the versions that lose their share are taken off the route"
            )
        if self.goal.waiting_for:
            return self.goal.waiting_for
        if self.unreached:
            return f"not every Envoy reaches a replica of {', '.join(sorted(self.unreached))} yet"
        return None if self.compared else "the Envoys' counters are compared with the split"

    def _version_status(self, version: str, now: datetime) -> VersionStatus:
        """Return a version's status with its request counts; ready only if every Envoy reaches all replicas."""
        status = self._deployment_status(version, now)
        shared = [cluster for cluster, name in self.weight_clusters.items() if name == version]
        named = [cluster for cluster, name in self.name_clusters.items() if name == version]
        changes: dict[str, int | bool | str] = {
            "requests": sum(map(self.envoys.requests, shared)),
            "unsent": sum(map(self.envoys.unsent, shared)),
            "active": sum(map(self.envoys.active, [*shared, *named])),
        }
        if status.ready and version not in self.ready:
            changes |= {"ready": False, "cause": "its replicas are ready, and not every Envoy reaches all of them yet"}
        return status.model_copy(update=changes)

    def _deployment_status(self, version: str, now: datetime | None = None) -> VersionStatus:
        """Return a version's status from its Deployment and pods alone."""
        pods = [pod for pod in self.objects[POD].values() if _version_label(pod) == version]
        at_start = self.endpoint.versions[version].replicas_at_start
        return health.version_status(version, self._deployment(version), pods, at_start=at_start, now=now)

    def _awaited_replicas(self, version: str) -> int:
        """Return for how many replicas of a version, which has a Deployment, a step waits."""
        deployment = self._deployment(version)
        return (
            health.awaited_replicas(deployment, self.endpoint.versions[version].replicas_at_start) if deployment else 0
        )

    def _deployment(self, version: str) -> Object | None:
        """Return a version's Deployment; None if there is none."""
        deployments = (item for item in self.objects[DEPLOYMENT].values() if _version_label(item) == version)
        return next(deployments, None)


def _version_label(resource: Object) -> str:
    """Return the version that an object belongs to, from its label; empty if there is none."""
    return str(resource["metadata"]["labels"].get(VERSION_LABEL, ""))
