"""The Gateway that a workspace's endpoints are behind: where it is, and what its controller says of our objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.addresses import is_this_machine
from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import GATEWAY
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

__all__ = [
    "CONTROLLER",
    "Acknowledgement",
    "acknowledgement",
    "base_url",
    "check_tls",
    "chosen_listener",
    "envoy_labels",
    "find_gateway",
    "listener_url",
    "parent_reference",
    "parent_references",
]

CONTROLLER: Final = "gateway.envoyproxy.io/gatewayclass-controller"
# Reasons for which a Gateway will never take a route: waiting does not help.
REFUSALS: Final = ("NotAllowedByListeners", "NoMatchingParent", "NoMatchingListenerHostname", "UnsupportedValue")


@dataclass(frozen=True)
class Acknowledgement:
    """Whether the Gateway's controller has taken an object over, as it is now.

    Attributes:
        done: It has taken the newest generation over.
        reason: Otherwise, what it waits for or what is wrong.
        refused: It never will.
    """

    done: bool
    reason: str | None = None
    refused: bool = False


def acknowledgement(
    resource: Object | None, parents: str, *, gateway: tuple[str, str], conditions: Sequence[str]
) -> Acknowledgement:
    """Return whether the Gateway's controller has accepted the newest generation of a route or policy.

    Args:
        resource: The object with its status; None if there is none.
        parents: The field of the status that the controllers write: `parents` of a route, `ancestors` of a policy.
        gateway: Namespace and name of the Gateway.
        conditions: The types of the conditions that have to be true.
    """
    if resource is None:
        return Acknowledgement(False, "it does not exist yet")
    kind, name = resource["kind"], resource["metadata"]["name"]
    of_parents = [
        {condition["type"]: condition for condition in parent.get("conditions") or []}
        for parent in (resource.get("status") or {}).get(parents) or []
        if _is_status_of_gateway(parent, gateway, resource["metadata"]["namespace"])
    ]
    if not of_parents:
        return Acknowledgement(False, f"Envoy Gateway has not reported on {kind} {name} yet")
    for by_type in of_parents:
        for condition_type in conditions:
            condition = by_type.get(condition_type)
            if condition is None or condition.get("observedGeneration", 0) < resource["metadata"]["generation"]:
                return Acknowledgement(False, f"Envoy Gateway has not processed the newest {kind} {name} yet")
            if condition["status"] != "True":
                message = f"{condition.get('reason')}: {condition.get('message')}"
                return Acknowledgement(
                    False,
                    f"Envoy Gateway reports on {kind} {name}: {message}",
                    refused=condition.get("reason") in REFUSALS,
                )
    return Acknowledgement(True)


def _is_status_of_gateway(parent: Object, gateway: tuple[str, str], namespace: str) -> bool:
    """Return whether a status entry is about this Gateway and was written by Envoy Gateway's controller."""
    reference = parent.get("parentRef") or parent.get("ancestorRef") or {}
    names = (reference.get("namespace", namespace), reference.get("name"))
    return names == gateway and parent.get("controllerName") == CONTROLLER


def chosen_listener(gateway: Object, workspace: Workspace) -> str | None:
    """Return the name of the listener that routes attach to; None for all listeners of the Gateway.

    Of a Gateway with plain http beside https only the https listener is taken, so that no key travels in clear. Plain
    http beside https has to be asked for by the listener's name.

    Raises:
        WorkspaceError: The Gateway has http and several https listeners, and the workspace names none.
    """
    if workspace.gateway_listener:
        return workspace.gateway_listener
    listeners = gateway["spec"].get("listeners") or []
    names = [str(listener["name"]) for listener in listeners if listener.get("protocol") == "HTTPS"]
    if not names or all(listener.get("protocol") != "HTTP" for listener in listeners):
        return None
    if len(names) > 1:
        raise WorkspaceError(
            f"Gateway {workspace.gateway!r} has plain http beside the https listeners {', '.join(sorted(names))}: name "
            f"the one that callers use, as {workspace.gateway}/{names[0]} in the setting gateway"
        )
    return names[0]


def check_tls(gateway: Object, workspace: Workspace) -> None:
    """Raise WorkspaceError if the workspace asks for TLS, and its Gateway does not offer it to the endpoints' callers.

    Nothing of the Gateway is ours to change: whoever runs the cluster's network owns it.
    """
    if not workspace.tls:
        return
    named = workspace.gateway_listener
    listeners = [one for one in gateway["spec"].get("listeners") or [] if named in (None, one.get("name"))]
    secure = [one for one in listeners if one.get("protocol") == "HTTPS"]
    remedy = (
        "ask who runs the Gateway for a listener with protocol HTTPS and tls.certificateRefs that name a Secret with "
        "the certificate (docs/aks/gateway.yaml has one), or take the setting tls out"
    )
    if not secure:
        place = f"the listener of Gateway {workspace.gateway!r}" if named else f"Gateway {workspace.gateway!r}"
        protocols = ", ".join(sorted({str(one.get("protocol")) for one in listeners})) or "none"
        raise WorkspaceError(
            f"the workspace asks for TLS (setting tls), and {place} has no https (protocols: {protocols}): {remedy}"
        )
    terminating = [one for one in secure if (one.get("tls") or {}).get("mode", "Terminate") == "Terminate"]
    if not any((one.get("tls") or {}).get("certificateRefs") for one in terminating):
        raise WorkspaceError(
            f"the workspace asks for TLS (setting tls), and listener {secure[0].get('name')!r} of Gateway "
            f"{workspace.gateway!r} names no certificate: {remedy}"
        )


def listener_url(gateway: Object, section: str | None) -> str:
    """Return the base URL of a Gateway's listener, from the Gateway's spec and status.

    Args:
        gateway: The Gateway.
        section: The listener's name; None for the first with https, or the first of all if there is none.
    """
    listeners = gateway["spec"].get("listeners") or [{}]
    secure = [listener for listener in listeners if listener.get("protocol") == "HTTPS"]
    first = (secure or listeners)[0]
    listener = next((one for one in listeners if section is not None and one.get("name") == section), first)
    addresses = (gateway.get("status") or {}).get("addresses") or [{}]
    host = listener.get("hostname") or addresses[0].get("value") or "no-address"
    scheme = "https" if listener.get("protocol") == "HTTPS" else "http"
    port = listener.get("port", 80)
    return f"{scheme}://{host}" + ("" if port == {"https": 443, "http": 80}[scheme] else f":{port}")


def base_url(gateway: Object, workspace: Workspace) -> str:
    """Return the URL at which callers reach the Gateway: the workspace's `endpoint_url`, else the Gateway's address.

    A setting with plain http to another machine does not count if the listener has https: keys are sent to this URL.
    """
    url, setting = listener_url(gateway, workspace.gateway_listener), workspace.endpoint_url
    if setting is None or (setting.startswith("http:") and url.startswith("https:") and not is_this_machine(setting)):
        return url
    return setting


def parent_references(route: Object | None, parent: Object) -> list[Object]:
    """Return the `parentRefs` of a route with which it attaches to the chosen listener; those of others stay.

    Args:
        route: The route as it is; None if there is none yet.
        parent: The reference to the workspace's Gateway.
    """
    found = [] if route is None else list(route["spec"].get("parentRefs") or [])
    own = (parent["namespace"], parent["name"])
    namespace = route["metadata"]["namespace"] if route else ""
    others = [one for one in found if (one.get("namespace", namespace), one.get("name")) != own]
    return [parent, *others] if "sectionName" in parent or len(others) == len(found) else found


def parent_reference(workspace: Workspace, listener: str | None) -> Object:
    """Return the `parentRef` by which a route names the workspace's Gateway, or one listener of it."""
    namespace, name = workspace.gateway_name
    section = {"sectionName": listener} if listener else {}
    return {"group": GATEWAY.group, "kind": GATEWAY.name, "namespace": namespace, "name": name, **section}


def envoy_labels(workspace: Workspace) -> dict[str, str]:
    """Return the labels that Envoy Gateway gives the Envoy pods of the workspace's Gateway."""
    namespace, name = workspace.gateway_name
    return {
        "gateway.envoyproxy.io/owning-gateway-name": name,
        "gateway.envoyproxy.io/owning-gateway-namespace": namespace,
    }


async def find_gateway(api: Api, workspace: Workspace) -> Object:
    """Read the workspace's Gateway from the cluster and return it.

    Raises:
        WorkspaceError: There is none of that name.
    """
    namespace, name = workspace.gateway_name
    gateway = await api.find(GATEWAY.path(namespace, name))
    if gateway is None:
        raise WorkspaceError(
            f"the cluster {api.server} has no Gateway {name!r} in namespace {namespace!r}: create it, or correct "
            f"the setting gateway of workspace {workspace.name!r}; docs/aks.md says how"
        )
    return gateway
