"""Reading an endpoint from its cluster: once, or again whenever something has changed."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import DEPLOYMENT, HTTP_ROUTE, POD, SECURITY_POLICY, Kind
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.polling import cancel
from controlled_rollout.target.kubernetes import envoy_stats, revisions
from controlled_rollout.target.kubernetes.envoy_stats import GatewayStats
from controlled_rollout.target.kubernetes.names import endpoint_labels, replica_selector, selector
from controlled_rollout.target.kubernetes.route_rules import positive_weights
from controlled_rollout.target.kubernetes.shadowing import find_shadows
from controlled_rollout.target.kubernetes.view import EndpointView
from controlled_rollout.workspace import Workspace

__all__ = ["Reconcile", "read_view", "watch_views"]

# The Envoys' counters cannot be watched: they are read again at this interval while something is awaited of them.
COUNTERS_INTERVAL_S: Final = 0.1
# For what only time changes, such as a pull that has failed for long enough.
CLOCK_INTERVAL_S: Final = 5.0

# How long a split that every Envoy has just taken over is compared with the counters, and how often if they differ.
COMPARISON_S: Final = 0.5
COMPARISONS: Final = 3

# Does what a view allows now, and returns the view that it acted on: with a newer revision, if there is one.
Reconcile = Callable[[EndpointView], Awaitable[EndpointView]]


async def read_view(api: Api, workspace: Workspace, endpoint: Endpoint) -> EndpointView:
    """Read the present state of an endpoint, whose newest revision is `endpoint`, from the cluster."""
    view, _ = await _list_sources(api, workspace, endpoint)
    return view


async def watch_views(
    api: Api, workspace: Workspace, endpoint: Endpoint, reconcile: Reconcile
) -> AsyncGenerator[EndpointView]:
    """Yield the state of an endpoint at once, and again whenever something may have changed.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The endpoint's newest revision.
        reconcile: Is called with each state before it is yielded.

    Raises:
        TargetUnavailableError: The API server does not answer, or ended a watch: begin again.
    """
    events: asyncio.Queue[tuple[_Source, Object] | BaseException] = asyncio.Queue()
    view, versions = await _list_sources(api, workspace, endpoint)
    view = await reconcile(replace(view, compared=False))
    yield view
    # The watches begin only now: the first state is often enough.
    async with contextlib.AsyncExitStack() as stack:
        for source, version in versions.items():
            stack.push_async_callback(cancel, asyncio.create_task(_queue_events(api, source, version, events)))
        while True:
            if view.whole_split_is_served and not view.compared and view.contradiction is None:
                view = await _compare_with_counters(api, workspace, view)
                yield view
            view = await _after_events(view, events)
            if view.managed is not None and view.managed.mark.revision > view.endpoint.revision:
                history = await revisions.history(api, workspace.namespace, endpoint.name)
                # There are none while the endpoint is being deleted.
                view = replace(view, endpoint=history[-1].endpoint if history else view.endpoint)
            if view.needs_counters:
                view = replace(view, envoys=await _read_counters(api, workspace, view))
            view = await reconcile(view)
            yield view


async def _after_events(
    view: EndpointView, events: "asyncio.Queue[tuple[_Source, Object] | BaseException]"
) -> EndpointView:
    """Wait for an event or the next reading of counters; return the view with all arrived events applied."""
    event = None
    with contextlib.suppress(TimeoutError):
        pause_s = COUNTERS_INTERVAL_S if view.needs_counters else CLOCK_INTERVAL_S
        event = await asyncio.wait_for(events.get(), pause_s)
    rules = view.managed
    while event is not None:
        if isinstance(event, BaseException):
            raise event
        view = _with_event(view, *event)
        event = None if events.empty() else events.get_nowait()
    if view.managed == rules:
        return view
    return replace(view, compared=False, contradiction=None, seen_requests=None, shadows=())


async def _read_counters(api: Api, workspace: Workspace, view: EndpointView) -> GatewayStats:
    """Read the endpoint's counters from the Envoy pods of the view."""
    return await envoy_stats.read_pod_stats(api, workspace, view.endpoint.name, view.envoy_pods.values())


async def _compare_with_counters(api: Api, workspace: Workspace, view: EndpointView) -> EndpointView:
    """Compare the Envoys' counters with the served split; return the view with the result.

    It is contradicted only if each comparison shows that. Rules of others that take the requests first are looked for
    as well: then there are no requests, which contradicts nothing.
    """
    shadows = tuple(await find_shadows(api, workspace, view.endpoint.name))
    contradiction, requests = None, 0
    for _ in range(COMPARISONS):
        before = await _read_counters(api, workspace, view)
        await asyncio.sleep(COMPARISON_S)
        growth = (await _read_counters(api, workspace, view)).since(before)
        counted: dict[str, int] = {}
        for cluster, version in view.weight_clusters.items():
            counted[version] = counted.get(version, 0) + (growth[cluster].requests if cluster in growth else 0)
        requests += sum(counted.values())
        contradiction = envoy_stats.contradiction(
            positive_weights(view.managed.weights) if view.managed else {}, counted
        )
        if contradiction is None:
            break
    return replace(view, compared=True, contradiction=contradiction, seen_requests=requests, shadows=shadows)


# Lists and watches


@dataclass(frozen=True)
class _Source:
    """Objects of one kind that a view is made of.

    Attributes:
        kind: Their kind.
        namespace: Their namespace.
        labels: Which of them, as a selector.
        are_envoys: Whether they are the Gateway's Envoys and not the endpoint's.
    """

    kind: Kind
    namespace: str
    labels: str
    are_envoys: bool = False

    @property
    def path(self) -> str:
        """The path of the list of these objects on the API server."""
        return self.kind.path(self.namespace)


def _view_sources(workspace: Workspace, endpoint: str) -> list[_Source]:
    """Return what a view is made of: the endpoint's objects of each kind, and the Gateway's Envoy pods."""
    labels = selector(endpoint_labels(endpoint))
    kinds = (DEPLOYMENT, HTTP_ROUTE, SECURITY_POLICY)
    return [
        *(_Source(kind, workspace.namespace, labels) for kind in kinds),
        _Source(POD, workspace.namespace, replica_selector(endpoint_labels(endpoint))),
        _Source(POD, workspace.envoy_namespace, envoy_stats.envoy_selector(workspace), are_envoys=True),
    ]


async def _list_sources(api: Api, workspace: Workspace, endpoint: Endpoint) -> tuple[EndpointView, dict[_Source, str]]:
    """List every source once; return the view, and the resource version from which each source can be watched."""
    sources = _view_sources(workspace, endpoint.name)
    lists = await asyncio.gather(*(api.get(source.path, labelSelector=source.labels) for source in sources))
    view = EndpointView(endpoint, workspace.gateway_name, {source.kind: {} for source in sources})
    versions: dict[_Source, str] = {}
    for source, listed in zip(sources, lists, strict=True):
        objects = {item["metadata"]["name"]: _with_kind(item, source.kind) for item in listed.get("items") or []}
        view = _with_objects(view, source, objects)
        versions[source] = listed["metadata"]["resourceVersion"]
    return replace(view, envoys=await _read_counters(api, workspace, view)), versions


async def _queue_events(
    api: Api, source: _Source, version: str, events: "asyncio.Queue[tuple[_Source, Object] | BaseException]"
) -> None:
    """Watch a source and put its events into a queue; put the error in as well when the watch fails."""
    try:
        while True:
            async for event in api.watch(source.path, version, labelSelector=source.labels, allowWatchBookmarks="true"):
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    events.put_nowait((source, {**event, "object": _with_kind(event["object"], source.kind)}))
    except ApiError as error:
        if error.status == 410:
            expired = TargetUnavailableError(f"the watch of {source.kind.plural} was too slow: {error}")
            expired.__cause__ = error
            events.put_nowait(expired)
        else:
            events.put_nowait(error)
    except Exception as error:
        events.put_nowait(error)


def _with_event(view: EndpointView, source: _Source, event: Object) -> EndpointView:
    """Return the view with one event of a source applied. Pure."""
    before = view.envoy_pods if source.are_envoys else view.objects[source.kind]
    changed = event["object"]
    after = {name: item for name, item in before.items() if name != changed["metadata"]["name"]}
    if event["type"] != "DELETED":
        after[changed["metadata"]["name"]] = changed
    return _with_objects(view, source, after)


def _with_objects(view: EndpointView, source: _Source, objects: Mapping[str, Object]) -> EndpointView:
    """Return the view with all objects of one source replaced."""
    if source.are_envoys:
        return replace(view, envoy_pods=objects)
    return replace(view, objects={**view.objects, source.kind: objects})


def _with_kind(item: Object, kind: Kind) -> Object:
    """Return an object with `apiVersion` and `kind`, which the items of lists lack."""
    return {"apiVersion": kind.version, "kind": kind.name, **item}
