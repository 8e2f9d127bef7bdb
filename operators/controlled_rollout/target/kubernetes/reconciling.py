"""Bringing an endpoint's route to its newest revision, step by step, and deleting what no router refers to any more."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import DEPLOYMENT, HTTP_ROUTE, POD_DISRUPTION_BUDGET, SERVICE
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import AccessError, ConflictError, WorkspaceError
from controlled_rollout.target.kubernetes import manifests, revisions
from controlled_rollout.target.kubernetes.gateway import (
    chosen_listener,
    find_gateway,
    parent_reference,
    parent_references,
)
from controlled_rollout.target.kubernetes.names import endpoint_labels, route_name
from controlled_rollout.target.kubernetes.ownership import is_own
from controlled_rollout.target.kubernetes.provisioning import apply_root
from controlled_rollout.target.kubernetes.root_notes import notes_of, write_note
from controlled_rollout.target.kubernetes.route_rules import DIGEST, POSITIONS, foreign_rules
from controlled_rollout.target.kubernetes.route_rules import annotations as route_annotations
from controlled_rollout.target.kubernetes.view import EndpointView
from controlled_rollout.target.kubernetes.watching import read_view
from controlled_rollout.target.protocol import Revision
from controlled_rollout.workspace import Workspace

__all__ = [
    "ATTEMPTS",
    "WORKED_AT",
    "WORKED_INTERVAL",
    "delete_rules",
    "delete_version_objects",
    "idle_since",
    "note_work",
    "reconcile_endpoint",
    "reconcile_view",
    "write_rules",
]

log = logging.getLogger(__name__)

# The annotation of an endpoint's root object with the last time at which a step that waits was at work.
WORKED_AT: Final = "controlled-rollout/worked-at"
# How often a step that waits writes it, and after which time without it nobody is at work.
WORKED_INTERVAL: Final = timedelta(seconds=10)
IDLE_AFTER: Final = timedelta(seconds=60)

# How often a change is tried that others may prevent by changing the same object at the same time.
ATTEMPTS: Final = 5


async def reconcile_endpoint(api: Api, workspace: Workspace, endpoint: Endpoint, *, is_forward: bool) -> None:
    """Take the next step for an endpoint's newest revision; repeat if others change the route at the same time.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The newest revision.
        is_forward: Whether it gives a version more traffic than the one before: then rules that somebody has edited are
            left as they are. Going back never waits for a person: it writes them again.
    """
    for _ in range(ATTEMPTS):
        view = await read_view(api, workspace, endpoint)
        if view.hand_edit and is_forward:
            log.warning("%s", view.hand_edit)
            return
        if view.hand_edit:
            log.warning("%s; this step goes back, and writes them again now", view.hand_edit)
        if await _take_step(api, workspace, view):
            return


async def reconcile_view(api: Api, workspace: Workspace, view: EndpointView) -> EndpointView:
    """Take the next step that a view allows for the newest revision; return the view with that revision.

    Nothing is done if somebody has changed the route since: the next view shows that.
    """
    if not view.has_work:
        return view
    # Two callers that wait for two revisions would undo each other's rules.
    history = await revisions.existing_history(api, workspace.namespace, view.endpoint.name)
    view = replace(view, endpoint=history[-1].endpoint)
    if view.has_work:
        await _take_step(api, workspace, view)
    return view


async def note_work(api: Api, workspace: Workspace, endpoint: str, now: datetime) -> None:
    """Write down at the endpoint's root object that a step is at work now; if it is gone, who looks next says so."""
    await write_note(api, workspace.namespace, endpoint, WORKED_AT, now.isoformat(), writer="waits")


def idle_since(root: Object | None, revision: Revision, now: datetime) -> datetime | None:
    """Return since when no step has been at work on the newest revision; None if one is, or has been just now. Pure.

    Args:
        root: The endpoint's root object.
        revision: The newest revision.
        now: The time.
    """
    # Somebody may have edited it: then the revision's own time counts.
    worked = revisions.time_of(notes_of(root).get(WORKED_AT)) or revision.created
    last = max(worked, revision.created)
    return last if now - last > IDLE_AFTER else None


async def delete_rules(api: Api, workspace: Workspace, endpoint: str) -> None:
    """Delete our rules from an endpoint's route, or the whole route if it has no other rules.

    Raises:
        ConflictError: Others change the route all the time.
    """
    path = HTTP_ROUTE.path(workspace.namespace, route_name(endpoint))
    for _ in range(ATTEMPTS):
        route = await api.find(path)
        if route is None or not is_own(route, endpoint):
            return
        foreign = foreign_rules(route["spec"].get("rules") or [])
        if not foreign:
            await api.delete(path)
            return
        metadata = {
            "annotations": {DIGEST: None, POSITIONS: None},
            "labels": dict.fromkeys(endpoint_labels(endpoint)),
            "ownerReferences": [],
        }
        if await api.merge_if_unchanged(path, route, {"metadata": metadata, "spec": {"rules": foreign}}) is not None:
            return
    raise ConflictError(
        f"the rules of endpoint {endpoint!r} were to be deleted from its HTTPRoute, which others changed at each of "
        f"{ATTEMPTS} attempts: delete the endpoint again"
    )


async def _take_step(api: Api, workspace: Workspace, view: EndpointView) -> bool:
    """Write the rules that the route should have next; if it has them, delete the objects that no Envoy refers to.

    Returns:
        False if somebody has changed the route since the view: nothing was done.
    """
    if view.next_rules != view.rules:
        return await write_rules(api, workspace, view.endpoint.name, view.route, view.next_rules)
    for name in view.unused_objects:
        await delete_version_objects(api, workspace.namespace, view.endpoint.name, name)
    return True


async def delete_version_objects(api: Api, namespace: str, endpoint: str, name: str) -> None:
    """Delete the objects of a version that no Envoy refers to any more, by their name; those of others stay."""
    # The Deployment last: it is what the next view is made from.
    for kind in (POD_DISRUPTION_BUDGET, SERVICE, DEPLOYMENT):
        path = kind.path(namespace, name)
        found = await api.find(path)
        if found is not None and is_own(found, endpoint):
            await api.delete(path)


async def write_rules(
    api: Api, workspace: Workspace, endpoint: str, route: Object | None, rules: Sequence[Object]
) -> bool:
    """Write all rules of a route; return False, with nothing written, if it was changed since it was read."""
    namespace, annotations = workspace.namespace, route_annotations(rules)
    if route is None:
        owner = await apply_root(api, workspace, endpoint)
        parent = parent_reference(workspace, chosen_listener(await find_gateway(api, workspace), workspace))
        manifest = manifests.http_route(endpoint, parent, rules, annotations, namespace=namespace, owner=owner)
        return await api.create(HTTP_ROUTE.path(namespace), manifest) is not None
    metadata: Object = {"annotations": annotations}
    if foreign_rules(rules):
        # Drop the ownerReference: garbage collection would delete foreign rules too.
        metadata["ownerReferences"] = []
    spec: Object = {"rules": list(rules)}
    # Going back never waits for the Gateway itself: without it the route stays attached as it is.
    with contextlib.suppress(WorkspaceError, AccessError):
        listener = chosen_listener(await find_gateway(api, workspace), workspace)
        spec["parentRefs"] = parent_references(route, parent_reference(workspace, listener))
    change = {"metadata": metadata, "spec": spec}
    path = HTTP_ROUTE.path(namespace, route_name(endpoint))
    return await api.merge_if_unchanged(path, route, change) is not None
