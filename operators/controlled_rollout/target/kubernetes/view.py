"""How an endpoint is in its cluster: what the API server and the Envoys say, put together; and how that changes."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import DEPLOYMENT, HTTP_ROUTE, POD, SECURITY_POLICY, Kind
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.sizing import Load
from controlled_rollout.target.kubernetes import envoy, health, revisions
from controlled_rollout.target.kubernetes import route as routes
from controlled_rollout.target.kubernetes.envoy import Envoys
from controlled_rollout.target.kubernetes.names import (
    VERSION_LABEL,
    endpoint_labels,
    endpoint_object,
    route_name,
    selector,
)
from controlled_rollout.target.kubernetes.phases import SETTLED, Phase
from controlled_rollout.target.kubernetes.route import Served
from controlled_rollout.target.kubernetes.route_transition import (
    Ack,
    acknowledged,
    changed_by_hand,
    disagreement,
    needs_policy,
    next_rules,
    services,
)
from controlled_rollout.target.protocol import EndpointStatus, VersionStatus
from controlled_rollout.target.transition import CLOSED, Split, allowed_split
from controlled_rollout.workspace import Workspace

__all__ = ["LOG_TAIL", "View", "address", "changes", "clusters", "loads", "look"]

LOG_TAIL: Final = 30
# The Envoys' counters cannot be watched: they are read again while something that only they know is missing.
ENVOY_INTERVAL_S: Final = 0.1
# What only time changes: a pull that has failed for long enough, say.
CLOCK_INTERVAL_S: Final = 5.0

# A split that has just been taken over is compared with what is counted for so long, and again where it differs.
COMPARISON_S: Final = 0.5
COMPARISONS: Final = 3

CarryOn = Callable[["View"], Awaitable["View"]]


@dataclass(frozen=True)
class View:
    """Everything that is known of one endpoint in its cluster at one moment.

    Attributes:
        endpoint: The newest revision.
        gateway: Namespace and name of the Gateway.
        objects: The endpoint's Deployments, pods, HTTPRoute and SecurityPolicy, by kind and name.
        envoy_pods: The Gateway's Envoys, by name.
        envoys: What they say.
        counted: Whether their counters were compared with the split since they took it over, or need not be.
        disagrees: How they contradict it.
    """

    endpoint: Endpoint
    gateway: tuple[str, str]
    objects: Mapping[Kind, Mapping[str, Object]]
    envoy_pods: Mapping[str, Object] = field(default_factory=dict)
    envoys: Envoys = field(default_factory=Envoys)
    counted: bool = True
    disagrees: str | None = None

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
        """The versions by the names of their Services, also those that are deleted and still there."""
        return services(
            {*self.endpoint.versions, *map(_version, self.objects[DEPLOYMENT].values())}, self.endpoint.name
        )

    @cached_property
    def serving(self) -> Served | None:
        """What our rules say."""
        return routes.served(self.rules, self.services)

    @cached_property
    def route_ack(self) -> Ack:
        """What the gateway says of the route."""
        return acknowledged(self.route, "parents", gateway=self.gateway, conditions=("Accepted", "ResolvedRefs"))

    @cached_property
    def policy_ack(self) -> Ack:
        """What the gateway says of the policy that asks callers for their keys."""
        policy = self.objects[SECURITY_POLICY].get(endpoint_object(self.endpoint.name))
        return acknowledged(policy, "ancestors", gateway=self.gateway, conditions=("Accepted",))

    @cached_property
    def ready(self) -> frozenset[str]:
        """The versions whose Deployments are ready."""
        return frozenset(name for name in self.endpoint.versions if self._of_version(name).ready)

    @cached_property
    def available(self) -> frozenset[str]:
        """The versions of which a pod is ready, also those that are deleted and still there."""
        return frozenset(
            _version(deployment)
            for deployment in self.objects[DEPLOYMENT].values()
            if (deployment.get("status") or {}).get("readyReplicas", 0)
        )

    @cached_property
    def proven(self) -> frozenset[str]:
        """The ready versions that every Envoy sees ready in full size."""
        return frozenset(
            version
            for cluster, version in self.by_name.items()
            if version in self.ready and self.envoys.healthy(cluster) >= self._of_version(version).wanted_replicas
        )

    @cached_property
    def connected(self) -> frozenset[str]:
        """The versions of which every Envoy has a replica in the cluster that shares the traffic."""
        return frozenset(version for cluster, version in self.shares.items() if self.envoys.healthy(cluster))

    @cached_property
    def live(self) -> frozenset[str]:
        """The versions of which every Envoy has a replica."""
        return self.connected | {version for cluster, version in self.by_name.items() if self.envoys.healthy(cluster)}

    @cached_property
    def confirmed(self) -> bool:
        """Whether the gateway has acknowledged the route as it is, and every Envoy serves it."""
        if self.serving is None or self.route is None or not self.route_ack.done:
            return False
        where = self.route["metadata"]
        return self.envoys.serve(self.serving.mark.stat(where["namespace"], where["name"]))

    @cached_property
    def served_revision(self) -> int:
        """The newest revision whose whole split the gateway has acknowledged and every Envoy serves; 0 for none."""
        if self.serving is None:
            return 0
        mark = self.serving.mark
        return mark.revision if self.split_is_served and self.counted else mark.served_revision

    @cached_property
    def goal(self) -> Split:
        """The split that may be served now."""
        return allowed_split(
            self.endpoint,
            served=self.serving.split if self.serving else CLOSED,
            ready=self.proven,
            live=self.live,
            closed=needs_policy(self.endpoint) and not self.policy_ack.done,
        )

    @cached_property
    def next_rules(self) -> list[Object]:
        """All rules of the route, as ours among them can be now on the way to that split."""
        wanted = next_rules(
            self.endpoint,
            self.rules,
            self.goal,
            serving=self.serving,
            available=self.available,
            connected=self.connected,
            confirmed=self.confirmed,
        )
        return routes.merge(self.rules, wanted)

    @cached_property
    def left_over(self) -> tuple[str, ...]:
        """The names of the Deployments and Services of deleted versions that no Envoy refers to any more."""
        if self.serving is None or self.serving.mark.revision != self.endpoint.revision or not self.confirmed:
            return ()
        if self.serving.mark.phase not in SETTLED:
            return ()
        return tuple(
            name
            for name, deployment in self.objects[DEPLOYMENT].items()
            if (version := _version(deployment)) not in self.endpoint.versions
            and version not in self.serving.split.weights
            and "deletionTimestamp" not in deployment["metadata"]
        )

    @cached_property
    def has_work(self) -> bool:
        """Whether something can be done now for the newest revision."""
        return not changed_by_hand(self.route) and (self.next_rules != self.rules or bool(self.left_over))

    @cached_property
    def split_is_served(self) -> bool:
        """Whether the rules on every Envoy are the whole split of a revision."""
        return self.serving is not None and self.serving.mark.phase is Phase.WHOLE and self.confirmed

    @cached_property
    def asks_envoys(self) -> bool:
        """Whether something is missing that only the Envoys can tell."""
        come_or_gone = set(self.envoys.pods) != set(envoy.ready(self.envoy_pods.values()))
        routed = frozenset(self.by_name.values())
        return (
            come_or_gone
            or bool(self.ready - self.proven)
            or self.available & routed != self.live & routed
            or (
                self.serving is not None
                and self.route_ack.done
                and (not self.confirmed or self.serving.mark.phase not in SETTLED)
            )
        )

    @cached_property
    def shares(self) -> dict[str, str]:
        """The versions by what Envoy calls their clusters, where the traffic is shared."""
        return clusters(self.route, self.services, by_name=False)

    @cached_property
    def by_name(self) -> dict[str, str]:
        """The versions by what Envoy calls their clusters, where they are asked for by name."""
        return clusters(self.route, self.services, by_name=True)

    def status(self, url_base: str, now: datetime) -> EndpointStatus:
        """Return the endpoint's status.

        Args:
            url_base: Where callers reach the Gateway.
            now: The time.
        """
        return EndpointStatus(
            name=self.endpoint.name,
            url=f"{url_base}/api/v1/service/{self.endpoint.name}/score",
            revision=self.endpoint.revision,
            served_revision=self.served_revision,
            versions={name: self._version_status(name, now) for name in self.endpoint.versions},
            trouble=changed_by_hand(self.route)
            or (self.route_ack.why if self.route_ack.refused else None)
            or self.disagrees,
            waiting_for=self._waiting_for(),
            weight_ppm=_some(self.serving.weights) if self.serving and self.confirmed else {},
            clusters={version: cluster for cluster, version in self.shares.items()},
        )

    def _waiting_for(self) -> str | None:
        """Say what the way to the newest revision's split waits for now; it changes with every step of that way."""
        if needs_policy(self.endpoint) and not self.policy_ack.done:
            return self.policy_ack.why
        if not self.route_ack.done:
            return self.route_ack.why
        if not self.envoys.pods:
            return "no Envoy pod is ready"
        if not self.confirmed:
            return "not every Envoy serves the newest rules yet"
        if self.serving is not None and self.serving.mark.phase is Phase.ENTERING:
            without = sorted(set(self.serving.weights) - self.connected)
            return f"revision {self.serving.mark.revision} is on its way; Envoy has no replica of {without} yet"
        if self.serving is not None and self.serving.mark.phase is Phase.LEAVING:
            return f"revision {self.serving.mark.revision} is on its way; what loses its share is being left"
        if self.goal.waiting_for:
            return self.goal.waiting_for
        return None if self.counted else "the Envoys' counters are compared with the split"

    def _version_status(self, name: str, now: datetime) -> VersionStatus:
        status = self._of_version(name, now)
        by_weight = [one for one, version in self.shares.items() if version == name]
        counted: dict[str, int | bool | str] = {
            "requests": sum(map(self.envoys.requests, by_weight)),
            "active": sum(map(self.envoys.active, by_weight)),
        }
        if status.ready and name not in self.proven:
            counted |= {"ready": False, "cause": "its replicas are ready, the router does not see all of them yet"}
        return status.model_copy(update=counted)

    def _of_version(self, name: str, now: datetime | None = None) -> VersionStatus:
        deployment = next((one for one in self.objects[DEPLOYMENT].values() if _version(one) == name), None)
        pods = [one for one in self.objects[POD].values() if _version(one) == name]
        return health.version_status(name, deployment, pods, now=now)


async def look(api: Api, workspace: Workspace, endpoint: Endpoint) -> View:
    """Return how an endpoint is now."""
    return (await _list(api, workspace, endpoint))[0]


async def changes(api: Api, workspace: Workspace, endpoint: Endpoint, carry_on: CarryOn) -> AsyncGenerator[View]:
    """Yield how an endpoint is, once at once and then whenever something may have changed.

    Args:
        api: The cluster.
        workspace: Where in it endpoints live.
        endpoint: Its newest revision.
        carry_on: Does what can be done as things are, and returns what it saw: with a newer revision, maybe.

    Raises:
        TargetUnavailableError: The API server has gone away: begin again.
    """
    queue: asyncio.Queue[tuple[_Source, Object] | BaseException] = asyncio.Queue()
    seen, versions = await _list(api, workspace, endpoint)
    seen = await carry_on(replace(seen, counted=False))
    yield seen
    # Only now: the first look is often enough.
    async with contextlib.AsyncExitStack() as stack:
        for source, version in versions.items():
            stack.push_async_callback(_end, asyncio.create_task(_follow(api, source, version, queue)))
        while True:
            if seen.split_is_served and not seen.counted and seen.disagrees is None:
                seen = replace(seen, counted=True, disagrees=await _disagreement(api, workspace, seen))
                yield seen
            event = None
            with contextlib.suppress(TimeoutError):
                pause = ENVOY_INTERVAL_S if seen.asks_envoys else CLOCK_INTERVAL_S
                event = await asyncio.wait_for(queue.get(), pause)
            before = seen.serving
            while event is not None:
                if isinstance(event, BaseException):
                    raise event
                seen = _after(seen, *event)
                event = None if queue.empty() else queue.get_nowait()
            if seen.serving != before:
                seen = replace(seen, counted=False, disagrees=None)
            if seen.serving is not None and seen.serving.mark.revision > seen.endpoint.revision:
                history = await revisions.history(api, workspace.namespace, endpoint.name)
                # None are left when the endpoint is being deleted.
                seen = replace(seen, endpoint=history[-1].endpoint if history else seen.endpoint)
            if seen.asks_envoys:
                seen = replace(seen, envoys=await _asked(api, workspace, seen))
            seen = await carry_on(seen)
            yield seen


async def _asked(api: Api, workspace: Workspace, seen: View) -> Envoys:
    return await envoy.ask(api, workspace, seen.endpoint.name, seen.envoy_pods.values())


async def _disagreement(api: Api, workspace: Workspace, seen: View) -> str | None:
    """Compare what the Envoys count with the split that they serve; say what they contradict it in, every time."""
    found = None
    for _ in range(COMPARISONS):
        before = await _asked(api, workspace, seen)
        await asyncio.sleep(COMPARISON_S)
        grown = (await _asked(api, workspace, seen)).since(before)
        counted: dict[str, int] = {}
        for cluster, version in seen.shares.items():
            counted[version] = counted.get(version, 0) + (grown[cluster].requests if cluster in grown else 0)
        weights = (
            {version: weight for version, weight in seen.serving.weights.items() if weight} if seen.serving else {}
        )
        if (found := disagreement(weights, counted)) is None:
            return None
    return found


def clusters(route: Object | None, services: Mapping[str, str], *, by_name: bool) -> dict[str, str]:
    """Return the versions by what Envoy calls their clusters; see `route.clusters`.

    Args:
        route: The endpoint's HTTPRoute.
        services: The versions by the names of their Services.
        by_name: See there.
    """
    if route is None:
        return {}
    return routes.clusters(
        route["metadata"]["namespace"],
        route["metadata"]["name"],
        route["spec"].get("rules") or [],
        services,
        by_name=by_name,
    )


def loads(before: Envoys, after: Envoys, versions: Mapping[str, str], seconds: float) -> dict[str, Load]:
    """Return the load of each version between two looks at all Envoys.

    Args:
        before: The first look.
        after: The second.
        versions: The versions by their clusters: a version may have several.
        seconds: The time between the looks.
    """
    grown, ever = after.since(before), after.ever()
    found: dict[str, Load] = {}
    for version in set(versions.values()):
        mine = [cluster for cluster, of in versions.items() if of == version]
        new = [grown[cluster] for cluster in mine if cluster in grown]
        # Envoy adds times up once every few seconds: a short look may have caught none.
        timed = new if any(one.answered for one in new) else [ever[cluster] for cluster in mine if cluster in ever]
        answered = sum(one.answered for one in timed)
        found[version] = Load(
            requests_per_s=sum(one.requests for one in new) / seconds,
            request_time_s=sum(one.time_ms for one in timed) / answered / 1000 if answered else None,
        )
    return found


def address(gateway: Object, section: str | None) -> str:
    """Return the base URL of a Gateway's listener, from what its status says.

    Args:
        gateway: The Gateway.
        section: The listener's name; None for the first.
    """
    listeners = gateway["spec"].get("listeners") or [{}]
    listener = next((one for one in listeners if section in (None, one.get("name"))), listeners[0])
    addresses = (gateway.get("status") or {}).get("addresses") or [{}]
    host = listener.get("hostname") or addresses[0].get("value") or "no-address"
    scheme = "https" if listener.get("protocol") == "HTTPS" else "http"
    port = listener.get("port", 80)
    return f"{scheme}://{host}" + ("" if port == {"https": 443, "http": 80}[scheme] else f":{port}")


@dataclass(frozen=True)
class _Source:
    """Objects of one kind that a view is made of.

    Attributes:
        kind: Their kind.
        namespace: Where they are.
        labels: Which of them, as a selector.
        are_envoys: Whether they are the Gateway's and not the endpoint's.
    """

    kind: Kind
    namespace: str
    labels: str
    are_envoys: bool = False

    @property
    def path(self) -> str:
        return self.kind.path(self.namespace)


def _sources(workspace: Workspace, endpoint: str) -> list[_Source]:
    labels = selector(endpoint_labels(endpoint))
    kinds = (DEPLOYMENT, POD, HTTP_ROUTE, SECURITY_POLICY)
    return [
        *(_Source(kind, workspace.namespace, labels) for kind in kinds),
        _Source(POD, workspace.envoy_namespace, envoy.pod_selector(workspace), are_envoys=True),
    ]


async def _list(api: Api, workspace: Workspace, endpoint: Endpoint) -> tuple[View, dict[_Source, str]]:
    """List everything once, and say from where on it can be watched."""
    sources = _sources(workspace, endpoint.name)
    lists = await asyncio.gather(*(api.get(source.path, labelSelector=source.labels) for source in sources))
    view = View(endpoint, workspace.gateway_name, {source.kind: {} for source in sources})
    versions: dict[_Source, str] = {}
    for source, found in zip(sources, lists, strict=True):
        objects = {one["metadata"]["name"]: _typed(one, source.kind) for one in found.get("items") or []}
        view = _with(view, source, objects)
        versions[source] = found["metadata"]["resourceVersion"]
    return replace(view, envoys=await _asked(api, workspace, view)), versions


async def _follow(
    api: Api, source: _Source, version: str, queue: "asyncio.Queue[tuple[_Source, Object] | BaseException]"
) -> None:
    """Put what happens to the objects of a source into a queue, and the error that ends it."""
    try:
        while True:
            async for event in api.watch(source.path, version, labelSelector=source.labels, allowWatchBookmarks="true"):
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    queue.put_nowait((source, {**event, "object": _typed(event["object"], source.kind)}))
    except ApiError as error:
        if error.status == 410:
            queue.put_nowait(TargetUnavailableError(f"the watch of {source.kind.plural} was too slow: {error}"))
        else:
            queue.put_nowait(error)
    except Exception as error:
        queue.put_nowait(error)


async def _end(task: "asyncio.Task[None]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _after(seen: View, source: _Source, event: Object) -> View:
    """Return the view after one event."""
    before = seen.envoy_pods if source.are_envoys else seen.objects[source.kind]
    found = event["object"]
    after = {name: one for name, one in before.items() if name != found["metadata"]["name"]}
    if event["type"] != "DELETED":
        after[found["metadata"]["name"]] = found
    return _with(seen, source, after)


def _with(seen: View, source: _Source, objects: Mapping[str, Object]) -> View:
    if source.are_envoys:
        return replace(seen, envoy_pods=objects)
    return replace(seen, objects={**seen.objects, source.kind: objects})


def _typed(found: Object, kind: Kind) -> Object:
    """Lists leave out what kind their objects are."""
    return {"apiVersion": kind.version, "kind": kind.name, **found}


def _some(weights: Mapping[str, int]) -> dict[str, int]:
    return {version: weight for version, weight in weights.items() if weight}


def _version(found: Object) -> str:
    return str(found["metadata"]["labels"].get(VERSION_LABEL, ""))
