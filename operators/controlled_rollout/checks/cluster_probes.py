"""What a rollout needs of a cluster, asked of its API server with this worker's identity; nothing is changed."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from controlled_rollout.checks.reach import reach
from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CONFIG_MAP,
    GATEWAY,
    HTTP_ROUTE,
    HTTP_ROUTE_FILTER,
    SECURITY_POLICY,
    Kind,
)
from controlled_rollout.errors import AccessError, TargetUnavailableError, WorkspaceError
from controlled_rollout.target.kubernetes.permissions import (
    BUILDER,
    ENVOY_NAMESPACE,
    GATEWAY_NAMESPACE,
    NAMESPACE,
    Permission,
)
from controlled_rollout.target.kubernetes.view import address
from controlled_rollout.workspace import Workspace

__all__ = ["CLUSTER_PROBES", "api_server", "gateway_fault", "in_words", "not_granted", "not_served"]

REVIEWS: Final = "authorization.k8s.io/v1"
SERVED: Final = (GATEWAY, HTTP_ROUTE, SECURITY_POLICY, BACKEND_TRAFFIC_POLICY, HTTP_ROUTE_FILTER)

# A verb, an API group, and a resource with its subresource.
Action = tuple[str, str, str]


async def api_server(api: Api) -> str:
    """Return the API server's address and version.

    Raises:
        TargetUnavailableError: It does not answer; the message says whether its name or its port is to blame.
    """
    try:
        version = await api.get("/version")
    except TargetUnavailableError:
        # Its certificate is the kube config's business: authorities of this machine say nothing about it.
        await reach(api.server, tls=False)
        raise
    return f"{api.server}: Kubernetes {version.get('gitVersion')}"


async def _permissions(api: Api, workspace: Workspace) -> str:
    """Ask for the rules of each namespace at once, and for what they leave open one by one: only that is binding."""
    needed = (
        (workspace.namespace, NAMESPACE),
        (workspace.gateway.partition("/")[0], GATEWAY_NAMESPACE),
        (workspace.envoy_namespace, ENVOY_NAMESPACE),
        *([(workspace.builder_namespace or workspace.namespace, BUILDER)] if workspace.builder == "kubernetes" else []),
    )
    refused = await asyncio.gather(*(_refused(api, namespace, permissions) for namespace, permissions in needed))
    faults = [
        f"in namespace {namespace}: {in_words(actions)}"
        for (namespace, _), actions in zip(needed, refused, strict=True)
        if actions
    ]
    if faults:
        raise AccessError(
            f"not allowed {', nor '.join(faults)}: give this identity the Roles that docs/aks.md describes"
        )
    return f"all that is needed in {', '.join(dict.fromkeys(namespace for namespace, _ in needed))}"


async def _refused(api: Api, namespace: str, permissions: Sequence[Permission]) -> list[Action]:
    review = await _review(api, "SelfSubjectRulesReview", {"namespace": namespace})
    asked = not_granted(permissions, review["status"].get("resourceRules") or [])
    allowed = await asyncio.gather(*(_is_allowed(api, namespace, action) for action in asked))
    return [action for action, may in zip(asked, allowed, strict=True) if not may]


async def _is_allowed(api: Api, namespace: str, action: Action) -> bool:
    verb, group, resource = action
    name, _, subresource = resource.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
    review = await _review(api, "SelfSubjectAccessReview", {"resourceAttributes": attributes})
    return bool(review["status"].get("allowed"))


async def _review(api: Api, kind: str, spec: Mapping[str, Any]) -> Object:
    body = {"apiVersion": REVIEWS, "kind": kind, "spec": spec}
    return dict(json.loads(await api.request("POST", f"/apis/{REVIEWS}/{kind.lower()}s", body=body)))


def not_granted(permissions: Iterable[Permission], rules: Iterable[Mapping[str, Any]]) -> list[Action]:
    """Return the actions that a namespace's rules do not grant; rules for objects of certain names grant nothing.

    Args:
        permissions: What is needed.
        rules: `resourceRules` of a SelfSubjectRulesReview.
    """
    rules = [rule for rule in rules if not rule.get("resourceNames")]
    actions = [(verb, one.group, one.resource) for one in permissions for verb in one.verbs]
    return [action for action in actions if not any(_grants(rule, *action) for rule in rules)]


def _grants(rule: Mapping[str, Any], verb: str, group: str, resource: str) -> bool:
    subresource = resource.partition("/")[2]
    resources = {"*", resource} | ({f"*/{subresource}"} if subresource else set())
    return (
        not {"*", verb}.isdisjoint(rule.get("verbs") or ())
        and not {"*", group}.isdisjoint(rule.get("apiGroups") or ())
        and not resources.isdisjoint(rule.get("resources") or ())
    )


def in_words(actions: Iterable[Action]) -> str:
    """Return actions in one line, resource by resource."""
    verbs: dict[str, list[str]] = {}
    for verb, group, resource in actions:
        verbs.setdefault(f"{resource}.{group}" if group else resource, []).append(verb)
    return "; ".join(f"{', '.join(its)} {resource}" for resource, its in verbs.items())


async def _namespace(api: Api, workspace: Workspace) -> str:
    """Create an object as a trial: that it cannot be is seen before a rollout begins."""
    body = {
        "apiVersion": CONFIG_MAP.version,
        "kind": CONFIG_MAP.name,
        "metadata": {"generateName": "controlled-rollout-"},
    }
    try:
        await api.request("POST", CONFIG_MAP.path(workspace.namespace), body=body, query={"dryRun": "All"})
    except ApiError as error:
        if error.status == 404:
            raise WorkspaceError(
                f"the cluster has no namespace {workspace.namespace!r}: create it, or correct the setting namespace"
            ) from None
        raise
    return f"{workspace.namespace}: takes objects"


async def _gateway_api(api: Api, workspace: Workspace) -> str:
    versions = dict.fromkeys(kind.version for kind in SERVED)
    found = await asyncio.gather(*(api.find(f"/apis/{version}") for version in versions))
    missing = not_served(dict(zip(versions, found, strict=True)))
    if missing:
        both = any(kind.group == GATEWAY.group for kind in missing)
        what = "the Gateway API and Envoy Gateway" if both else "Envoy Gateway"
        names = ", ".join(f"{kind.plural}.{kind.version}" for kind in missing)
        raise WorkspaceError(f"the cluster does not know {names}: install {what}, docs/aks.md says how")
    return ", ".join(versions)


def not_served(versions: Mapping[str, Object | None]) -> list[Kind]:
    """Return the kinds that a cluster does not know.

    Args:
        versions: By group and version, what the API server says of it; None for what it does not know.
    """
    known = {
        (version, resource["name"])
        for version, found in versions.items()
        for resource in (found or {}).get("resources") or []
    }
    return [kind for kind in SERVED if (kind.version, kind.plural) not in known]


async def _gateway(api: Api, workspace: Workspace) -> str:
    gateway = await _gateway_object(api, workspace)
    if fault := gateway_fault(gateway, workspace):
        raise WorkspaceError(f"Gateway {workspace.gateway}: {fault}")
    return f"{workspace.gateway}: programmed, {_address(gateway, workspace)}"


async def _gateway_object(api: Api, workspace: Workspace) -> Object:
    namespace, name = workspace.gateway_name
    gateway = await api.find(GATEWAY.path(namespace, name))
    if gateway is None:
        raise WorkspaceError(
            f"there is no Gateway {name!r} in namespace {namespace!r}: create it, or correct the setting gateway"
        )
    return gateway


def gateway_fault(gateway: Object, workspace: Workspace) -> str | None:
    """Say why a workspace's routes would not be served by its Gateway; None if they would."""
    (namespace, _), section = workspace.gateway_name, workspace.gateway_listener
    if fault := _unprogrammed(gateway.get("status") or {}):
        return fault
    listeners = [one for one in gateway["spec"].get("listeners") or [] if section in (None, one.get("name"))]
    if not listeners:
        return f"it has no listener {section!r}: correct the setting gateway" if section else "it has no listeners"
    states = {one.get("name"): one for one in (gateway.get("status") or {}).get("listeners") or []}
    faults = [_unprogrammed(states.get(one.get("name")) or {}) for one in listeners]
    if all(faults):
        return f"listener {listeners[0].get('name')!r}: {faults[0]}"
    # Of a selector one would have to know the namespace's labels, which the Role need not show.
    if workspace.namespace != namespace and all(_takes_from(one) == "Same" for one in listeners):
        return (
            f"it takes routes from its own namespace only, and the endpoints live in {workspace.namespace}: set "
            "allowedRoutes.namespaces of its listener"
        )
    return None


def _takes_from(listener: Object) -> str:
    return str(((listener.get("allowedRoutes") or {}).get("namespaces") or {}).get("from", "Same"))


def _unprogrammed(status: Object) -> str | None:
    conditions = {one["type"]: one for one in status.get("conditions") or []}
    programmed = conditions.get("Programmed")
    if programmed is None:
        return "no controller has programmed it yet: see that Envoy Gateway runs, and the Gateway's class"
    if programmed["status"] != "True":
        return f"it is not programmed ({programmed.get('reason')}: {programmed.get('message')})"
    return None


async def _endpoints_address(api: Api, workspace: Workspace) -> str:
    if workspace.endpoint_url:
        return await reach(workspace.endpoint_url)
    gateway = await _gateway_object(api, workspace)
    if not (gateway.get("status") or {}).get("addresses"):
        raise WorkspaceError(f"Gateway {workspace.gateway} has no address: give one, or set endpoint_url")
    return await reach(_address(gateway, workspace))


def _address(gateway: Object, workspace: Workspace) -> str:
    return workspace.endpoint_url or address(gateway, workspace.gateway_listener)


CLUSTER_PROBES: tuple[tuple[str, Callable[[Api, Workspace], Awaitable[str]]], ...] = (
    ("permissions", _permissions),
    ("namespace", _namespace),
    ("Gateway API", _gateway_api),
    ("gateway", _gateway),
    ("endpoints' address", _endpoints_address),
)
