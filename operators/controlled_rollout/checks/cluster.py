"""Checks what a rollout needs of a cluster, at its API server and with this worker's identity; changes nothing."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from controlled_rollout.checks.certificate import with_certificate_end
from controlled_rollout.checks.reachability import check_reachable
from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import (
    BACKEND_TRAFFIC_POLICY,
    CLIENT_TRAFFIC_POLICY,
    CONFIG_MAP,
    GATEWAY,
    HTTP_ROUTE,
    HTTP_ROUTE_FILTER,
    SECURITY_POLICY,
    Kind,
)
from controlled_rollout.endpoint import ROUTED_BY_HEADER
from controlled_rollout.errors import AccessError, TargetUnavailableError, WorkspaceError
from controlled_rollout.target.kubernetes.gateway import base_url, check_tls, chosen_listener
from controlled_rollout.target.kubernetes.permissions import (
    BUILDER,
    ENVOY_NAMESPACE,
    GATEWAY_NAMESPACE,
    NAMESPACE,
    Permission,
)
from controlled_rollout.workspace import Workspace

__all__ = [
    "CLUSTER_CHECKS",
    "actions_text",
    "api_server",
    "callers_faults",
    "clock_difference",
    "closes_by_default",
    "gateway_fault",
    "not_granted",
    "not_served",
    "pod_security_warning",
]

# The label by which a namespace refuses pods that ask for more than a Pod Security level allows.
POD_SECURITY: Final = "pod-security.kubernetes.io/enforce"
REVIEWS: Final = "authorization.k8s.io/v1"
NEEDED_KINDS: Final = (GATEWAY, HTTP_ROUTE, SECURITY_POLICY, BACKEND_TRAFFIC_POLICY, HTTP_ROUTE_FILTER)

# Far less than rows may come late: a gate asks for those of a time that is over by `allowed_lag`.
MAX_CLOCK_DIFFERENCE_S: Final = 2.0

OLD_TLS: Final = "a ClientTrafficPolicy lets callers use TLS before 1.2: set its tls.minVersion to 1.2"

# A verb, an API group, and a resource with its subresource.
Action = tuple[str, str, str]


async def api_server(api: Api) -> str:
    """Check that the API server answers; return its address and Kubernetes version.

    Raises:
        TargetUnavailableError: The API server does not answer; the message says whether its name or port is to blame.
    """
    try:
        version = await api.get("/version")
    except TargetUnavailableError:
        # The kube config says which certificate to trust, so this machine's authorities do not count.
        await check_reachable(api.server, tls=False)
        raise
    return f"{api.server}: Kubernetes {version.get('gitVersion')}"


async def _check_permissions(api: Api, workspace: Workspace) -> str:
    """Check the identity's permissions in each namespace: by its rules, then each action that they do not grant."""
    needed = (
        (workspace.namespace, NAMESPACE),
        (workspace.gateway.partition("/")[0], GATEWAY_NAMESPACE),
        (workspace.envoy_namespace, ENVOY_NAMESPACE),
        *([(workspace.builder_namespace, BUILDER)] if workspace.builder_namespace else []),
    )
    refused = await asyncio.gather(*(_denied_actions(api, namespace, permissions) for namespace, permissions in needed))
    faults = [
        f"in namespace {namespace}: {actions_text(actions)}"
        for (namespace, _), actions in zip(needed, refused, strict=True)
        if actions
    ]
    if faults:
        raise AccessError(
            f"not allowed {', nor '.join(faults)}: give this identity the Roles that docs/aks.md describes"
        )
    return f"all that is needed in {', '.join(dict.fromkeys(namespace for namespace, _ in needed))}"


async def _denied_actions(api: Api, namespace: str, permissions: Sequence[Permission]) -> list[Action]:
    """Return the needed actions that the API server does not allow this identity in a namespace."""
    review = await _post_review(api, "SelfSubjectRulesReview", {"namespace": namespace})
    open_actions = not_granted(permissions, review["status"].get("resourceRules") or [])
    allowed = await asyncio.gather(*(_is_allowed(api, namespace, action) for action in open_actions))
    return [action for action, is_allowed in zip(open_actions, allowed, strict=True) if not is_allowed]


async def _is_allowed(api: Api, namespace: str, action: Action) -> bool:
    """Return whether this identity may do one action in a namespace, from a SelfSubjectAccessReview."""
    verb, group, resource = action
    name, _, subresource = resource.partition("/")
    attributes = {"namespace": namespace, "verb": verb, "group": group, "resource": name, "subresource": subresource}
    review = await _post_review(api, "SelfSubjectAccessReview", {"resourceAttributes": attributes})
    return bool(review["status"].get("allowed"))


async def _post_review(api: Api, kind: str, spec: Mapping[str, Any]) -> Object:
    """Post a review of this identity's permissions to the API server, and return it with its status."""
    body = {"apiVersion": REVIEWS, "kind": kind, "spec": spec}
    return dict(json.loads(await api.request("POST", f"/apis/{REVIEWS}/{kind.lower()}s", body=body)))


def not_granted(permissions: Iterable[Permission], rules: Iterable[Mapping[str, Any]]) -> list[Action]:
    """Return the needed actions that a namespace's rules do not grant; rules limited to named objects do not count.

    Args:
        permissions: The permissions that are needed.
        rules: `resourceRules` of a SelfSubjectRulesReview.
    """
    rules = [rule for rule in rules if not rule.get("resourceNames")]
    actions = [(verb, permission.group, permission.resource) for permission in permissions for verb in permission.verbs]
    return [action for action in actions if not any(_rule_grants(rule, *action) for rule in rules)]


def _rule_grants(rule: Mapping[str, Any], verb: str, group: str, resource: str) -> bool:
    """Return whether an RBAC rule grants a verb on a resource of an API group."""
    subresource = resource.partition("/")[2]
    resources = {"*", resource} | ({f"*/{subresource}"} if subresource else set())
    return (
        not {"*", verb}.isdisjoint(rule.get("verbs") or ())
        and not {"*", group}.isdisjoint(rule.get("apiGroups") or ())
        and not resources.isdisjoint(rule.get("resources") or ())
    )


def actions_text(actions: Iterable[Action]) -> str:
    """Return actions as one line of text, grouped by resource."""
    verbs: dict[str, list[str]] = {}
    for verb, group, resource in actions:
        verbs.setdefault(f"{resource}.{group}" if group else resource, []).append(verb)
    return "; ".join(f"{', '.join(of_resource)} {resource}" for resource, of_resource in verbs.items())


async def _check_namespace(api: Api, workspace: Workspace) -> str:
    """Check, by creating a ConfigMap as a dry run, that quotas and admission rules of the namespace allow objects.

    Returns:
        That they do, and whether any pod may run there, also one with the node's rights.
    """
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
            ) from error
        raise
    namespace = await api.find(f"/api/v1/namespaces/{workspace.namespace}")
    return f"{workspace.namespace}: objects can be created{pod_security_warning(namespace or {})}"


def pod_security_warning(namespace: Object) -> str:
    """Return what to say about a namespace that does not enforce the Pod Security level `restricted`; else nothing.

    Args:
        namespace: The Namespace.
    """
    level = (namespace.get("metadata", {}).get("labels") or {}).get(POD_SECURITY, "no level")
    if level == "restricted":
        return ""
    return f"; it enforces {level} of Pod Security, and 'restricted' is enough: see docs/aks.md, step 4"


async def _check_gateway_api(api: Api, workspace: Workspace) -> str:
    """Check that the cluster serves all resources of the Gateway API and Envoy Gateway that a rollout needs."""
    versions = dict.fromkeys(kind.version for kind in NEEDED_KINDS)
    resources = await asyncio.gather(*(api.find(f"/apis/{version}") for version in versions))
    missing = not_served(dict(zip(versions, resources, strict=True)))
    if missing:
        needs_both = any(kind.group == GATEWAY.group for kind in missing)
        products = "the Gateway API and Envoy Gateway" if needs_both else "Envoy Gateway"
        names = ", ".join(f"{kind.plural}.{kind.version}" for kind in missing)
        raise WorkspaceError(f"the cluster does not serve {names}: install {products} as docs/aks.md says")
    return ", ".join(versions)


def not_served(versions: Mapping[str, Object | None]) -> list[Kind]:
    """Return the needed resource kinds that a cluster does not serve.

    Args:
        versions: The API server's resource list of each group and version; None for one that it does not serve.
    """
    served = {
        (version, resource["name"])
        for version, resource_list in versions.items()
        for resource in (resource_list or {}).get("resources") or []
    }
    return [kind for kind in NEEDED_KINDS if (kind.version, kind.plural) not in served]


async def _check_gateway(api: Api, workspace: Workspace) -> str:
    """Check that the workspace's Gateway is programmed and takes its routes; return its name and address."""
    gateway = await _get_gateway(api, workspace)
    if fault := gateway_fault(gateway, workspace):
        raise WorkspaceError(f"Gateway {workspace.gateway}: {fault}")
    check_tls(gateway, workspace)
    listener = chosen_listener(gateway, workspace)
    namespace, name = workspace.gateway_name
    security, client = await asyncio.gather(
        *(api.items(kind.path(namespace)) for kind in (SECURITY_POLICY, CLIENT_TRAFFIC_POLICY))
    )
    faults = callers_faults(client, name, [listener] if listener else _listener_names(gateway))
    if workspace.tls and OLD_TLS in faults:
        raise WorkspaceError(f"Gateway {workspace.gateway}: the workspace asks for TLS (setting tls), and {OLD_TLS}")
    if not any(closes_by_default(policy, name) for policy in security):
        faults = ["it lets everybody in where a route has no SecurityPolicy", *faults]
    warning = f"; warning: {'; '.join(faults)}: see docs/aks.md, step 2" if faults else ""
    return f"{workspace.gateway}: programmed, {base_url(gateway, workspace)}{warning}"


def _listener_names(gateway: Object) -> list[str]:
    """Return the names of a Gateway's listeners."""
    return [str(listener["name"]) for listener in gateway["spec"].get("listeners") or []]


def callers_faults(policies: Collection[Object], gateway: str, listeners: Iterable[str]) -> list[str]:
    """Return what the ClientTrafficPolicies of a Gateway leave open that the one of docs/aks.md closes.

    A policy for one listener takes the place of the Gateway's for that listener.

    Args:
        policies: The ClientTrafficPolicies of the Gateway's namespace.
        gateway: The Gateway's name.
        listeners: The names of the listeners that routes attach to.
    """
    whole = [policy for policy in policies if _is_for_gateway(policy, gateway, None)]
    in_force = [
        [policy for policy in policies if _is_for_gateway(policy, gateway, listener)] or whole for listener in listeners
    ]
    faults: list[str] = []
    if not all(any(map(_removes_our_header, of_listener)) for of_listener in in_force):
        faults.append(
            f"no ClientTrafficPolicy takes {ROUTED_BY_HEADER} off what callers send, which telemetry reads: callers "
            "without a key could claim to be evidence"
        )
    if any(any(map(_takes_callers_ids, of_listener)) for of_listener in in_force):
        faults.append(
            "a ClientTrafficPolicy takes request ids from callers (headers.requestID has to be Generate): a caller who "
            "repeats one merges the rows of its requests, and one who chooses them chooses what is collected"
        )
    if not all(any(map(_ends_slow_requests, of_listener)) for of_listener in in_force):
        faults.append("no ClientTrafficPolicy has a requestReceivedTimeout: slow uploads are never ended")
    if any(any(map(_allows_old_tls, of_listener)) for of_listener in in_force):
        faults.append(OLD_TLS)
    return faults


def _allows_old_tls(policy: Object) -> bool:
    """Return whether a ClientTrafficPolicy lets callers use TLS 1.0 or 1.1; Envoy Gateway itself asks for 1.2."""
    tls = policy["spec"].get("tls") or {}
    return any(str(tls.get(bound)) in ("1.0", "1.1") for bound in ("minVersion", "maxVersion"))


def _removes_our_header(policy: Object) -> bool:
    """Return whether a ClientTrafficPolicy takes the header that our rules set off what callers send."""
    early = (policy["spec"].get("headers") or {}).get("earlyRequestHeaders") or {}
    return ROUTED_BY_HEADER in map(str.lower, early.get("remove") or [])


def _takes_callers_ids(policy: Object) -> bool:
    """Return whether a ClientTrafficPolicy lets requests go on without an id of the Gateway's own."""
    headers = policy["spec"].get("headers") or {}
    return headers.get("requestID", "Generate") != "Generate" or bool(headers.get("preserveXRequestID"))


def _ends_slow_requests(policy: Object) -> bool:
    """Return whether a ClientTrafficPolicy ends requests that do not arrive in time."""
    timeouts = (policy["spec"].get("timeout") or {}).get("http") or {}
    return bool(str(timeouts.get("requestReceivedTimeout") or "0").strip("0hms"))


def _is_for_gateway(policy: Object, gateway: str, listener: str | None) -> bool:
    """Return whether a policy targets a Gateway as a whole, or one of its listeners if that is given."""
    spec = policy["spec"]
    return any(
        (target.get("kind"), target.get("name"), target.get("sectionName")) == (GATEWAY.name, gateway, listener)
        for target in [*(spec.get("targetRefs") or []), spec.get("targetRef") or {}]
    )


def closes_by_default(policy: Object, gateway: str) -> bool:
    """Return whether a SecurityPolicy refuses what reaches a Gateway's routes that have no policy of their own."""
    authorization = policy["spec"].get("authorization")
    refuses = authorization is not None and not authorization.get("rules")
    is_default = refuses and authorization.get("defaultAction", "Deny") == "Deny"
    return bool(is_default and _is_for_gateway(policy, gateway, None))


async def _get_gateway(api: Api, workspace: Workspace) -> Object:
    """Return the workspace's Gateway from the API server; raise WorkspaceError if it does not exist."""
    namespace, name = workspace.gateway_name
    gateway = await api.find(GATEWAY.path(namespace, name))
    if gateway is None:
        raise WorkspaceError(
            f"there is no Gateway {name!r} in namespace {namespace!r}: create it, or correct the setting gateway"
        )
    return gateway


def gateway_fault(gateway: Object, workspace: Workspace) -> str | None:
    """Return why a Gateway would not serve the workspace's routes; None if it would."""
    (namespace, _), section = workspace.gateway_name, workspace.gateway_listener
    if fault := _not_programmed(gateway.get("status") or {}):
        return fault
    listeners = [
        listener for listener in gateway["spec"].get("listeners") or [] if section in (None, listener.get("name"))
    ]
    if not listeners:
        return f"it has no listener {section!r}: correct the setting gateway" if section else "it has no listeners"
    statuses = {status.get("name"): status for status in (gateway.get("status") or {}).get("listeners") or []}
    faults = [_not_programmed(statuses.get(listener.get("name")) or {}) for listener in listeners]
    if all(faults):
        return f"listener {listeners[0].get('name')!r}: {faults[0]}"
    # A selector is not checked: that needs the namespace's labels, which the Role need not allow to read.
    if workspace.namespace != namespace and all(_listener_allows_from(listener) == "Same" for listener in listeners):
        return (
            f"it takes routes from its own namespace only, and the endpoints live in {workspace.namespace}: set "
            "allowedRoutes.namespaces of its listener"
        )
    return None


def _listener_allows_from(listener: Object) -> str:
    """Return from which namespaces a listener takes routes: `Same`, `All` or `Selector`."""
    return str(((listener.get("allowedRoutes") or {}).get("namespaces") or {}).get("from", "Same"))


def _not_programmed(status: Object) -> str | None:
    """Return why a Gateway or a listener is not programmed, from its status conditions; None if it is."""
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    programmed = conditions.get("Programmed")
    if programmed is None:
        return "no controller has programmed it yet: check that Envoy Gateway runs, and the Gateway's class"
    if programmed["status"] != "True":
        return f"it is not programmed ({programmed.get('reason')}: {programmed.get('message')})"
    return None


async def _check_endpoints_address(api: Api, workspace: Workspace) -> str:
    """Check that the endpoints' address accepts connections; return its host, port and addresses."""
    if workspace.endpoint_url:
        return await _check_address(workspace.endpoint_url, workspace)
    gateway = await _get_gateway(api, workspace)
    if not (gateway.get("status") or {}).get("addresses"):
        raise WorkspaceError(f"Gateway {workspace.gateway} has no address: give one, or set endpoint_url")
    return await _check_address(base_url(gateway, workspace), workspace)


async def _check_address(url: str, workspace: Workspace) -> str:
    """Check that an address accepts connections, and its certificate; return where it leads and when that ends."""
    place = await check_reachable(url, authority=workspace.endpoint_ca)
    return await with_certificate_end(place, url, workspace)


async def _check_clock(api: Api, workspace: Workspace) -> str:
    """Check that this machine's clock and the API server's show the same time, as looks at the telemetry assume."""
    before = datetime.now(UTC)
    server = await api.server_time()
    off_s = clock_difference(before, server, datetime.now(UTC))
    if off_s > MAX_CLOCK_DIFFERENCE_S:
        raise WorkspaceError(
            f"this machine's clock and the API server's differ by {off_s:.0f} s, and {MAX_CLOCK_DIFFERENCE_S:g} s are "
            "allowed: a gate would look for requests at the wrong time. Synchronise both with a time server"
        )
    return f"as the API server's, within {max(off_s, 1):.0f} s"


def clock_difference(before: datetime, server: datetime, after: datetime) -> float:
    """Return by how many seconds a server's clock differs from this machine's at least; 0 if nothing proves it.

    Args:
        before: This machine's time when the server was asked.
        server: The server's time, cut to the second.
        after: This machine's time when it had answered.
    """
    second = timedelta(seconds=1)
    return max((before - server - second).total_seconds(), (server - after).total_seconds(), 0.0)


CLUSTER_CHECKS: tuple[tuple[str, Callable[[Api, Workspace], Awaitable[str]]], ...] = (
    ("permissions", _check_permissions),
    ("namespace", _check_namespace),
    ("Gateway API", _check_gateway_api),
    ("gateway", _check_gateway),
    ("endpoints' address", _check_endpoints_address),
    ("clock", _check_clock),
)
