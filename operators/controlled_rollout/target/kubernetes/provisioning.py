"""Applying the objects of an endpoint, all but its route: keys, policies, and each version's Deployment and Service."""

import hashlib
import json
from typing import Any, Final

from controlled_rollout.cluster.api import FIELD_MANAGER, Api, Object
from controlled_rollout.cluster.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE_FILTER,
    SECRET,
    SECURITY_POLICY,
    SERVICE,
)
from controlled_rollout.endpoint import Auth, Endpoint, Version
from controlled_rollout.target.kubernetes import manifests
from controlled_rollout.target.kubernetes.names import (
    VERSION_LABEL,
    endpoint_labels,
    endpoint_object_name,
    selector,
    version_object_name,
)
from controlled_rollout.target.protocol import Keys
from controlled_rollout.workspace import Workspace

__all__ = ["apply_objects", "apply_root", "scale_version"]

# The annotation of a Deployment and of an endpoint's root object with the digest of the manifests that were applied
# last: what is the same is not sent again.
APPLIED: Final = "controlled-rollout/made-from"


async def apply_root(api: Api, workspace: Workspace, endpoint: str) -> Object:
    """Apply the ConfigMap that owns all other objects of an endpoint, and return it."""
    path = CONFIG_MAP.path(workspace.namespace, endpoint_object_name(endpoint))
    return await api.apply(path, manifests.root_config_map(endpoint, workspace.namespace))


async def apply_objects(api: Api, workspace: Workspace, endpoint: Endpoint, owner: Object) -> None:
    """Apply all objects of an endpoint except its route; skip those that have not changed.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The revision whose objects they are.
        owner: The endpoint's root object.
    """
    await _apply_policies(api, workspace, endpoint, owner)
    labels = selector(endpoint_labels(endpoint.name))
    deployments = {
        deployment["metadata"]["labels"][VERSION_LABEL]: deployment
        for deployment in await api.items(DEPLOYMENT.path(workspace.namespace), labelSelector=labels)
    }
    for version in endpoint.versions.values():
        await _apply_version(api, workspace, endpoint, version, owner, deployments.get(version.name))


async def scale_version(api: Api, workspace: Workspace, endpoint: str, version: str, replicas: int) -> None:
    """Set the number of a version's pods.

    The field has a manager of its own, so that applying the Deployment again does not take the number back.
    """
    path = DEPLOYMENT.path(workspace.namespace, version_object_name(endpoint, version), "scale")
    await api.merge_patch(path, {"spec": {"replicas": replicas}}, manager=f"{FIELD_MANAGER}-scale")


async def _apply_policies(api: Api, workspace: Workspace, endpoint: Endpoint, owner: Object) -> None:
    """Apply an endpoint's policies, direct responses and keys, unless they are unchanged since the last time."""
    name, namespace = endpoint.name, workspace.namespace
    policies = {BACKEND_TRAFFIC_POLICY: manifests.traffic_policy(endpoint, namespace=namespace, owner=owner)}
    if endpoint.auth is Auth.KEY:
        policies[SECURITY_POLICY] = manifests.security_policy(name, namespace=namespace, owner=owner)
    versions = ", ".join(endpoint.versions) or "none"
    responses = {
        "closed": (503, f"endpoint {name} has no version that is ready yet"),
        "unknown": (404, f"endpoint {name} has no version of that name that is ready: it has {versions}"),
    }
    filters = [
        manifests.direct_response(name, part, status, text, namespace=namespace, owner=owner)
        for part, (status, text) in responses.items()
    ]
    digest = _digest([*policies.values(), *filters])
    if _applied_digest(owner) == digest:
        return
    if endpoint.auth is Auth.KEY:
        # Created, not applied: keys that exist stay.
        keys = manifests.keys_secret(name, Keys.new(), namespace=namespace, owner=owner)
        await api.create(SECRET.path(namespace), keys)
    for kind, policy in policies.items():
        await api.apply(kind.path(namespace, endpoint_object_name(name)), policy)
    for route_filter in filters:
        await api.apply(HTTP_ROUTE_FILTER.path(namespace, route_filter["metadata"]["name"]), route_filter)
    if endpoint.auth is Auth.NONE:
        await api.delete(SECURITY_POLICY.path(namespace, endpoint_object_name(name)))
    await api.merge_patch(
        CONFIG_MAP.path(namespace, endpoint_object_name(name)),
        {"metadata": {"annotations": {APPLIED: digest}}},
        manager=f"{FIELD_MANAGER}-notes",
    )


async def _apply_version(
    api: Api, workspace: Workspace, endpoint: Endpoint, version: Version, owner: Object, deployment: Object | None
) -> None:
    """Apply a version's Service and Deployment if they have changed, and raise its replicas to the minimum."""
    name, namespace = version_object_name(endpoint.name, version.name), workspace.namespace
    manifest = manifests.deployment(
        endpoint, version, namespace=namespace, owner=owner, image_pull_secret=workspace.image_pull_secret
    )
    digest = _digest(manifest)
    if deployment is None or _applied_digest(deployment) != digest:
        service = manifests.service(endpoint.name, version.name, namespace=namespace, owner=owner)
        await api.apply(SERVICE.path(namespace, name), service)
        manifest["metadata"]["annotations"] = {APPLIED: digest}
        deployment = await api.apply(DEPLOYMENT.path(namespace, name), manifest)
    replicas = deployment["spec"].get("replicas", 1)
    if replicas < version.replicas_at_start or (version.num_replicas and replicas != version.num_replicas):
        await scale_version(api, workspace, endpoint.name, version.name, version.replicas_at_start)


def _applied_digest(resource: Object) -> str | None:
    """Return the digest of the manifests that were applied last, from the object's annotation; None without one."""
    digest: str | None = (resource["metadata"].get("annotations") or {}).get(APPLIED)
    return digest


def _digest(objects: Any) -> str:
    """Return the SHA-256 digest of objects as JSON."""
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()
