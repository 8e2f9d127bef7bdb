"""Applying the objects of an endpoint, all but its route: keys, policies, and what each version has.

Every object is looked at each time: nothing is remembered of what was applied before (docs/adr/0043). A call that finds
all as it should be changes nothing, and so raises no generation that the Gateway would have to acknowledge.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CONFIG_MAP,
    DEPLOYMENT,
    HTTP_ROUTE,
    HTTP_ROUTE_FILTER,
    NETWORK_POLICY,
    POD_DISRUPTION_BUDGET,
    SECURITY_POLICY,
    SERVICE,
    Kind,
)
from controlled_rollout.endpoint import Auth, Endpoint, Version
from controlled_rollout.errors import AccessError, ConflictError, NameTakenError, WorkspaceError
from controlled_rollout.target.kubernetes import drift, key_set_standby, keys_secret, manifests, signing_keys_secret
from controlled_rollout.target.kubernetes.drift import Drift
from controlled_rollout.target.kubernetes.gateway import (
    chosen_listener,
    envoy_labels,
    find_gateway,
    parent_reference,
    parent_references,
)
from controlled_rollout.target.kubernetes.names import (
    endpoint_labels,
    endpoint_object_name,
    route_name,
    version_object_name,
)
from controlled_rollout.target.kubernetes.ownership import check_is_own, find_own
from controlled_rollout.target.kubernetes.route_rules import is_written_by_us
from controlled_rollout.target.kubernetes.scaling import floor_of, scale_version
from controlled_rollout.tokens import SigningKeys
from controlled_rollout.tokens import key_set as public_key_set
from controlled_rollout.workspace import Workspace

__all__ = ["apply_key_set", "apply_objects", "apply_root", "find_drift", "keep_key_sets"]

# Fields that the API server itself fills in, each of them once and for good, are left as they are.
SERVICE_FIELDS: Final = ("selector", "ports", "type")


async def apply_root(api: Api, workspace: Workspace, endpoint: str) -> Object:
    """Create the ConfigMap that owns all other objects of an endpoint, if there is none, and return it.

    Raises:
        NameTakenError: There is one of that name that is not the endpoint's own.
    """
    path = CONFIG_MAP.path(workspace.namespace, endpoint_object_name(endpoint))
    manifest = manifests.root_config_map(endpoint, workspace.namespace)
    found = await api.find(path)
    if found is None:
        found = await api.create(CONFIG_MAP.path(workspace.namespace), manifest) or await api.get(path)
    check_is_own(found, endpoint)
    if found["metadata"].get("labels") != manifest["metadata"]["labels"]:
        found = await api.merge_patch(path, {"metadata": {"labels": manifest["metadata"]["labels"]}})
    return found


async def find_drift(api: Api, workspace: Workspace, endpoint: Endpoint) -> list[Drift]:
    """Return which objects of an endpoint's newest revision are not as it asks for; nothing is changed.

    An identity that may only read cannot ask the server what it would change: then that is what is returned.
    """
    name = endpoint_object_name(endpoint.name)
    try:
        owner = await find_own(api, CONFIG_MAP, workspace.namespace, name, endpoint.name)
        if owner is None:
            return [Drift.missing(CONFIG_MAP, name)]
        return [
            *await apply_objects(api, workspace, endpoint, owner, dry_run=True),
            *await _policies_of_others(api, workspace, endpoint.name),
        ]
    except NameTakenError as error:
        return [Drift.taken(error)]
    except (AccessError, ApiError) as error:
        return [Drift("its objects", "could not be compared with the newest revision", str(error))]


async def apply_objects(
    api: Api, workspace: Workspace, endpoint: Endpoint, owner: Object, *, dry_run: bool = False
) -> list[Drift]:
    """Make all objects of an endpoint except its route as a revision asks for; return what was otherwise.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The revision whose objects they are.
        owner: The endpoint's root object.
        dry_run: Whether to change nothing.

    Raises:
        NameTakenError: An object that is not the endpoint's own has a name that it needs; all else is as it should be.
    """
    differences: list[Drift] = []
    taken: list[NameTakenError] = []
    key_set: str | None = None
    try:
        # Before the policy that names it: a policy without its Secret answers every request with 500.
        key_set, differences = await _apply_keys(api, workspace, endpoint, owner, dry_run=dry_run)
    except NameTakenError as error:
        taken.append(error)
    parts = [
        _apply_policies(api, workspace, endpoint, owner, key_set, dry_run=dry_run),
        _restore_route(api, workspace, endpoint.name, dry_run=dry_run),
        *(
            _apply_version(api, workspace, endpoint, version, owner, dry_run=dry_run)
            for version in endpoint.versions.values()
        ),
    ]
    # All are tried: an object that cannot be made is no reason to leave the others away.
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, NameTakenError):
            taken.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            differences += result
    if taken and not dry_run:
        raise taken[0]
    return [*differences, *map(Drift.taken, taken)]


async def _apply_keys(
    api: Api, workspace: Workspace, endpoint: Endpoint, owner: Object, *, dry_run: bool
) -> tuple[str | None, list[Drift]]:
    """Make the keys of an endpoint's callers; return its public key set, if it has one, and what was otherwise."""
    differences: list[Drift] = []
    if endpoint.auth is Auth.KEY:
        differences += await keys_secret.restore(api, workspace.namespace, endpoint.name, owner, dry_run=dry_run)
    if not endpoint.has_signing_keys:
        return None, differences
    keys, missing = await signing_keys_secret.restore(api, workspace.namespace, endpoint.name, owner, dry_run=dry_run)
    if keys and not dry_run:
        await keep_key_sets(api, workspace, endpoint, owner, keys)
    return public_key_set(keys) if keys else None, [*differences, *missing]


async def keep_key_sets(api: Api, workspace: Workspace, endpoint: Endpoint, owner: Object, keys: SigningKeys) -> None:
    """Make sure that every Envoy knows the present and the next key set of an endpoint."""
    # Going back never waits for the Gateway itself.
    with contextlib.suppress(WorkspaceError, AccessError):
        listener = chosen_listener(await find_gateway(api, workspace), workspace)
        parent = parent_reference(workspace, listener)
        await key_set_standby.keep(api, workspace.namespace, endpoint, keys, parent, owner)


async def apply_key_set(api: Api, workspace: Workspace, endpoint: Endpoint, owner: Object, keys: SigningKeys) -> None:
    """Make the router accept tokens of an endpoint's signing keys, and of no others."""
    policy = manifests.security_policy(
        endpoint, namespace=workspace.namespace, owner=owner, key_set=public_key_set(keys)
    )
    await _put_back(api, SECURITY_POLICY, workspace.namespace, policy, endpoint.name, dry_run=False)


async def _apply_policies(
    api: Api, workspace: Workspace, endpoint: Endpoint, owner: Object, key_set: str | None, *, dry_run: bool
) -> list[Drift]:
    """Make an endpoint's policies and direct responses as a revision asks for; return what was otherwise."""
    name, namespace = endpoint.name, workspace.namespace
    policies: list[tuple[Kind, Object]] = [
        (BACKEND_TRAFFIC_POLICY, manifests.traffic_policy(endpoint, namespace=namespace, owner=owner)),
        (NETWORK_POLICY, manifests.network_policy(name, workspace, envoy_labels(workspace), owner=owner)),
    ]
    if key_set is not None or not endpoint.has_signing_keys:
        policy = manifests.security_policy(endpoint, namespace=namespace, owner=owner, key_set=key_set)
        policies.append((SECURITY_POLICY, policy))
    versions = ", ".join(endpoint.versions) or "none"
    responses = {
        "closed": (503, f"endpoint {name} has no version that is ready yet"),
        "unknown": (404, f"endpoint {name} has no version of that name that is ready: it has {versions}"),
    }
    for part, (status, text) in responses.items():
        response = manifests.direct_response(name, part, status, text, namespace=namespace, owner=owner)
        policies.append((HTTP_ROUTE_FILTER, response))
    found = await asyncio.gather(
        *(_put_back(api, kind, namespace, manifest, name, dry_run=dry_run) for kind, manifest in policies)
    )
    return [one for one in found if one is not None]


async def _restore_route(api: Api, workspace: Workspace, endpoint: str, *, dry_run: bool) -> list[Drift]:
    """Put the labels and the Gateway of an endpoint's route back, by which it is found and served.

    The step makes its rules, and the route if there is none, after this: nobody is let in before all else is there.
    """
    path = HTTP_ROUTE.path(workspace.namespace, route_name(endpoint))
    route = await api.find(path)
    if route is None:
        return [Drift.missing(HTTP_ROUTE, route_name(endpoint))]
    if not is_written_by_us(route):
        return []
    change: Object = {"metadata": {"labels": endpoint_labels(endpoint)}}
    # Going back never waits for the Gateway itself: without it the route stays attached as it is.
    with contextlib.suppress(WorkspaceError, AccessError):
        listener = chosen_listener(await find_gateway(api, workspace), workspace)
        change["spec"] = {"parentRefs": parent_references(route, parent_reference(workspace, listener))}
    after = await api.merge_patch(path, change, dry_run=dry_run)
    # Its rules may have been written meanwhile, by another step.
    return [Drift.edited(route)] if _attachment(route) != _attachment(after) else []


def _attachment(route: Object) -> tuple[object, object]:
    """Return the labels of a route and its Gateways."""
    return route["metadata"].get("labels"), route["spec"].get("parentRefs")


async def _policies_of_others(api: Api, workspace: Workspace, endpoint: str) -> list[Drift]:
    """Return the policies of others for an endpoint's route, which may take the place of ours."""
    found: list[Drift] = []
    for kind in (SECURITY_POLICY, BACKEND_TRAFFIC_POLICY):
        for policy in await api.items(kind.path(workspace.namespace)):
            name = policy["metadata"]["name"]
            if name != endpoint_object_name(endpoint) and drift.targets_route(policy, route_name(endpoint)):
                remedy = "it may take the place of ours: no step changes it, delete it or give it another target"
                found.append(Drift(f"{kind.name} {name}", f"is somebody else's, for HTTPRoute {endpoint}", remedy))
    return found


async def _apply_version(
    api: Api, workspace: Workspace, endpoint: Endpoint, version: Version, owner: Object, *, dry_run: bool
) -> list[Drift]:
    """Make a version's Service, PodDisruptionBudget and Deployment as a revision asks for; return what was otherwise.

    The number of replicas is the endpoint's until somebody else sets it, a person or an autoscaler: then it is theirs.
    """
    name, namespace = version_object_name(endpoint.name, version.name), workspace.namespace
    service = manifests.service(endpoint.name, version.name, namespace=namespace, owner=owner)
    budget = manifests.disruption_budget(endpoint.name, version.name, namespace=namespace, owner=owner)
    of_others = await asyncio.gather(
        *(
            _put_back(api, kind, namespace, wanted, endpoint.name, version=version.name, dry_run=dry_run)
            for kind, wanted in ((SERVICE, service), (POD_DISRUPTION_BUDGET, budget))
        )
    )
    found = [one for one in of_others if one is not None]
    manifest = manifests.deployment(endpoint, version, workspace, owner=owner)
    path = DEPLOYMENT.path(namespace, name)
    before = await find_own(api, DEPLOYMENT, namespace, name, endpoint.name)
    if before is not None and not (labels := manifest["metadata"]["labels"]).items() <= _labels(before).items():
        # By them it is found. Its pods have theirs from its template.
        found.append(Drift.relabelled(before, version.name))
        if dry_run:
            return found
        before = await api.merge_patch(path, {"metadata": {"labels": labels}})
    if before is not None and version.collected is not None and not workspace.has_collector:
        # Who goes back from a workspace that names no collector must not take it from the pods, with what it has not
        # shipped.
        return found
    try:
        deployment = await api.apply(path, manifest, dry_run=dry_run)
    except ConflictError as error:
        if before is None:
            raise
        return [*found, Drift.left(before, str(error), version.name)]
    if before is None:
        found.append(Drift.missing(DEPLOYMENT, name, version.name))
    elif drift.container_writers(deployment):
        found.append(Drift.left(deployment, "fields of its containers are theirs", version.name))
    elif drift.is_changed(before, deployment):
        found.append(Drift.edited(before, version.name))
    replicas = deployment["spec"].get("replicas", 1)
    replicas_owner = drift.replicas_owner(deployment)
    if dry_run or drift.is_other(replicas_owner):
        return found
    is_wrong = replicas < version.replicas_at_start or (version.num_replicas and replicas != version.num_replicas)
    if is_wrong or replicas_owner is None:
        wanted = version.num_replicas or max(replicas, version.replicas_at_start)
        await scale_version(api, workspace, endpoint.name, version.name, wanted, floor=floor_of(deployment))
    return found


def _labels(resource: Object) -> dict[str, str]:
    """Return an object's labels."""
    return resource["metadata"].get("labels") or {}


async def _put_back(
    api: Api,
    kind: Kind,
    namespace: str,
    manifest: Object,
    endpoint: str,
    *,
    version: str | None = None,
    dry_run: bool,
) -> Drift | None:
    """Make an object that is wholly ours exactly as its manifest says; return how it was otherwise, if it was.

    Args:
        api: The cluster.
        kind: The object's kind.
        namespace: Its namespace.
        manifest: As it is to be.
        endpoint: The endpoint whose it is.
        version: The version that it belongs to; None if it belongs to the endpoint.
        dry_run: Whether to change nothing.
    """
    name = manifest["metadata"]["name"]
    path = kind.path(namespace, name)
    before = await find_own(api, kind, namespace, name, endpoint)
    if before is None:
        await api.create(kind.path(namespace), manifest, dry_run=dry_run)
        return Drift.missing(kind, name, version)
    metadata = {part: manifest["metadata"][part] for part in ("labels", "ownerReferences")}
    spec = _spec_patch(kind, before["spec"], manifest["spec"])
    after = await api.merge_patch(path, {"metadata": metadata, "spec": spec}, dry_run=dry_run)
    return Drift.edited(before, version) if drift.is_changed(before, after) else None


def _spec_patch(kind: Kind, found: Mapping[str, object], wanted: Mapping[str, object]) -> Object:
    """Return the merge patch for a `spec`: fields that others have added are taken out, those of the server are not."""
    if kind is SERVICE:
        found = {field: found[field] for field in SERVICE_FIELDS if field in found}
    return drift.exact_patch(found, wanted)
