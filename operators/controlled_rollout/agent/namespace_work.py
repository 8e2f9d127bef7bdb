"""All that the agent at work does for one namespace: it follows the objects there, and runs what acts on them."""

import asyncio
import logging
import time
from datetime import datetime
from typing import Any, Final

from controlled_rollout.agent.autoscaler import Autoscaler
from controlled_rollout.agent.following import Followed
from controlled_rollout.agent.namespace_state import (
    NamespaceState,
    ObservedDeployment,
    ObservedRoute,
    is_edited,
    observed_deployment,
    observed_route,
)
from controlled_rollout.agent.repair import Repair
from controlled_rollout.agent.unattended import UnattendedRollouts
from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import (
    CONFIG_MAP,
    CONTROLLER_REVISION,
    DEPLOYMENT,
    HTTP_ROUTE,
    MANAGED_BY,
    POD,
)
from controlled_rollout.errors import ControlledRolloutError
from controlled_rollout.polling import until
from controlled_rollout.target.kubernetes import envoy_stats
from controlled_rollout.target.kubernetes.names import ENDPOINT_LABEL, selector
from controlled_rollout.target.kubernetes.revisions import revision_from_object
from controlled_rollout.target.protocol import Revision
from controlled_rollout.workspace import Workspace

__all__ = ["work_for"]

log = logging.getLogger(__name__)

FIRST_LISTS_S: Final = 60.0


async def work_for(workspace: Workspace, watched_since: datetime) -> None:
    """Look after the endpoints of a workspace's namespace until this is cancelled.

    Args:
        workspace: The workspace; its connection sends nothing any more when this agent may not act.
        watched_since: Since when an agent has been at work for the namespace without a gap, this one or others before.
    """
    state, changed = NamespaceState(), set[str]()
    followed = _followed(workspace, state, changed)

    def is_current() -> bool:
        """Return whether the state is complete and up to date."""
        return all(one.is_current for one in followed)

    async with Api.open(workspace) as api, asyncio.TaskGroup() as tasks:
        for one in followed:
            tasks.create_task(one.run(api))
        while not await until(is_current, FIRST_LISTS_S, interval_s=0.1):
            log.warning("namespace %s: its objects are not all known yet", workspace.namespace)
        tasks.create_task(Autoscaler(api, workspace, state, is_current).run())
        tasks.create_task(Repair(api, workspace, state, changed).run())
        tasks.create_task(UnattendedRollouts(api, workspace, state, watched_since).run())


def _followed(workspace: Workspace, state: NamespaceState, changed: set[str]) -> list[Followed[Any]]:
    """Return what is followed of a namespace; the state refers to what is kept.

    Args:
        workspace: The workspace of the namespace.
        state: Is given what is kept.
        changed: Is given the endpoints of which somebody has deleted or edited an object.
    """
    namespace, labels = workspace.namespace, selector(MANAGED_BY)

    def route(resource: Object, before: ObservedRoute | None) -> ObservedRoute:
        """Return what is kept of a route."""
        return observed_route(resource, before, gateway=workspace.gateway_name, now_s=time.monotonic())

    def note_deployment(_name: str, before: ObservedDeployment | None, now: ObservedDeployment | None) -> None:
        """Note the endpoint of a Deployment that was deleted, or changed other than by scaling it."""
        if before is not None and (now is None or is_edited(before, now)):
            changed.add(before.endpoint)

    def note_route(name: str, before: ObservedRoute | None, now: ObservedRoute | None) -> None:
        """Note the endpoint of a route that was deleted."""
        if before is not None and now is None:
            changed.add(name)

    def note_root(_name: str, before: Object | None, now: Object | None) -> None:
        """Note the endpoint of a root object that was deleted, or whose label was edited."""
        if before is not None and (now is None or _endpoint_of(before) != _endpoint_of(now)):
            changed.add(_endpoint_of(before))

    revisions = Followed(
        CONTROLLER_REVISION.path(namespace), labels, _endpoint_of, _stored_revision, is_older=_is_older
    )
    deployments = Followed(
        DEPLOYMENT.path(namespace), labels, _name_of, lambda found, _before: observed_deployment(found), note_deployment
    )
    routes = Followed(HTTP_ROUTE.path(namespace), labels, _name_of, route, note_route)
    roots = Followed(CONFIG_MAP.path(namespace), labels, _name_of, _owner_object, note_root)
    envoys = Followed(
        POD.path(workspace.envoy_namespace),
        envoy_stats.envoy_selector(workspace),
        _name_of,
        lambda found, _before: envoy_stats.is_ready(found),
    )
    state.revisions, state.deployments, state.routes = revisions.items, deployments.items, routes.items
    state.roots, state.envoys = roots.items, envoys.items
    return [revisions, deployments, routes, roots, envoys]


def _is_older(resource: Object, newest: Revision) -> bool:
    """Return whether a stored revision is an older one: when there are more than are kept, the oldest are deleted."""
    return bool(resource["revision"] < newest.number)


def _stored_revision(resource: Object, _before: Revision | None) -> Revision | None:
    """Return the revision that an object stores; None of a deleted endpoint, or of one that cannot be read."""
    if "deletionTimestamp" in resource["metadata"]:
        return None
    try:
        return revision_from_object(resource)
    except (ValueError, ControlledRolloutError) as error:
        name = _name_of(resource)
        log.warning("%s cannot be read, its endpoint is left alone: %s", name, str(error).partition("\n")[0])
        return None


def _owner_object(resource: Object, _before: Object | None) -> Object:
    """Return what is kept of the object that owns an endpoint's others: its metadata without who wrote it."""
    metadata = {key: value for key, value in resource["metadata"].items() if key != "managedFields"}
    return {"metadata": metadata}


def _endpoint_of(resource: Object) -> str:
    """Return the endpoint that an object belongs to, from its label; empty if there is none."""
    return str((resource["metadata"].get("labels") or {}).get(ENDPOINT_LABEL, ""))


def _name_of(resource: Object) -> str:
    """Return an object's name."""
    return str(resource["metadata"]["name"])
