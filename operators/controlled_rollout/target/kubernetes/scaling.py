"""Setting how many pods a version's Deployment has, and below which number the autoscaler does not go for a while.

Both have a field manager of their own: applying the Deployment again does not take the number back.
"""

from typing import Final

from controlled_rollout.autoscaling import Floor
from controlled_rollout.cluster.api import FIELD_MANAGER, Api, Object
from controlled_rollout.cluster.kinds import DEPLOYMENT
from controlled_rollout.target.kubernetes.annotations import FLOOR
from controlled_rollout.target.kubernetes.names import version_object_name
from controlled_rollout.workspace import Workspace

__all__ = ["SCALE_MANAGER", "floor_of", "keep_at_least", "scale_version"]

SCALE_MANAGER: Final = f"{FIELD_MANAGER}-scale"
# A Deployment changes with each pod that becomes ready, so that a change may have to be tried again.
ATTEMPTS: Final = 10


def floor_of(deployment: Object) -> Floor | None:
    """Return below which number the autoscaler does not go; None for no such number."""
    return Floor.parse((deployment["metadata"].get("annotations") or {}).get(FLOOR, ""))


async def scale_version(
    api: Api, workspace: Workspace, endpoint: str, version: str, replicas: int, *, floor: Floor | None
) -> None:
    """Set the number of a version's pods, and own that field from now on, whatever it was before.

    Whoever else sets it then, also by the subresource `scale`, owns it, and is seen.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The endpoint's name.
        version: The version's name.
        replicas: The number.
        floor: Below which number the autoscaler does not go for a while; None for no such number.
    """
    name = version_object_name(endpoint, version)
    metadata: Object = {"name": name} | ({"annotations": {FLOOR: str(floor)}} if floor else {})
    head = {"apiVersion": DEPLOYMENT.version, "kind": DEPLOYMENT.name, "metadata": metadata}
    path = DEPLOYMENT.path(workspace.namespace, name)
    await api.apply(path, {**head, "spec": {"replicas": replicas}}, manager=SCALE_MANAGER, force=True)


async def keep_at_least(
    api: Api, workspace: Workspace, endpoint: str, version: str, fewest: int, *, now: float
) -> None:
    """Let a version have at least so many pods for a while: set the floor, and the number only if it is lower.

    Whoever sets the number meanwhile is not undone.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The endpoint's name.
        version: The version's name.
        fewest: The number.
        now: The time in seconds since 1970.
    """
    path = DEPLOYMENT.path(workspace.namespace, version_object_name(endpoint, version))
    patch: Object = {}
    for _ in range(ATTEMPTS):
        deployment = await api.get(path)
        floor = Floor.for_shift(fewest, now, floor_of(deployment))
        patch = {"metadata": {"annotations": {FLOOR: str(floor)}}}
        if deployment["spec"].get("replicas", 1) < fewest:
            patch["spec"] = {"replicas": fewest}
        if await api.merge_if_unchanged(path, deployment, patch, manager=SCALE_MANAGER) is not None:
            return
    await api.merge_patch(path, patch, manager=SCALE_MANAGER)
