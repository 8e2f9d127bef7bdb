"""The Gateway that a workspace's endpoints are behind: where it is, and what its controller says of our objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import GATEWAY
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

__all__ = [
    "CONTROLLER",
    "Acknowledgement",
    "acknowledgement",
    "base_url",
    "find_gateway",
    "listener_url",
    "parent_reference",
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


def listener_url(gateway: Object, section: str | None) -> str:
    """Return the base URL of a Gateway's listener, from the Gateway's spec and status.

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


def base_url(gateway: Object, workspace: Workspace) -> str:
    """Return the URL at which callers reach the Gateway: the workspace's `endpoint_url`, else the Gateway's address."""
    return workspace.endpoint_url or listener_url(gateway, workspace.gateway_listener)


def parent_reference(workspace: Workspace) -> Object:
    """Return the `parentRef` by which a route names the workspace's Gateway."""
    (namespace, name), listener = workspace.gateway_name, workspace.gateway_listener
    section = {"sectionName": listener} if listener else {}
    return {"group": GATEWAY.group, "kind": GATEWAY.name, "namespace": namespace, "name": name, **section}


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
