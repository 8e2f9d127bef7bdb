"""What an endpoint and its cluster have to fulfil before a revision is stored; nothing is changed here."""

from controlled_rollout.cluster.api import Api, Object
from controlled_rollout.cluster.kinds import GATEWAY, HTTP_ROUTE, SECURITY_POLICY
from controlled_rollout.endpoint import Endpoint, EndpointError
from controlled_rollout.errors import AccessError, ConflictError, WorkspaceError
from controlled_rollout.target import refusals
from controlled_rollout.target.kubernetes import envoy_stats
from controlled_rollout.target.kubernetes.gateway import CONTROLLER, check_tls, chosen_listener, find_gateway
from controlled_rollout.target.kubernetes.names import route_name
from controlled_rollout.target.kubernetes.ownership import check_is_own
from controlled_rollout.target.kubernetes.route_rules import hand_edit
from controlled_rollout.target.kubernetes.shadowing import find_shadows
from controlled_rollout.target.kubernetes.sticky_split import check_sticky
from controlled_rollout.workspace import Workspace

__all__ = ["check_cluster", "check_endpoint"]


def check_endpoint(endpoint: Endpoint, workspace: Workspace) -> None:
    """Raise an error if this target cannot serve the endpoint; nothing is read or changed.

    Raises:
        EndpointError: It asks for another namespace, for what no target can do yet or no Gateway can, or a version has
            no image.
    """
    refusals.check_supported(endpoint, "Kubernetes")
    check_sticky(endpoint)
    if endpoint.namespace not in ("default", workspace.namespace):
        raise EndpointError(
            f"endpoint {endpoint.name!r} asks for namespace {endpoint.namespace!r}, and workspace "
            f"{workspace.name!r} is on {workspace.namespace!r}: use a workspace of that namespace"
        )
    for version in endpoint.versions.values():
        if not version.image:
            raise EndpointError(f"version {version.name!r} names no image: build one and give its reference")


async def check_cluster(api: Api, workspace: Workspace, endpoint: str, *, is_forward: bool) -> None:
    """Raise an error if the cluster lacks an API or the Gateway, or if foreign rules are in the way.

    Args:
        api: The cluster.
        workspace: Where in it endpoints are.
        endpoint: The endpoint's name.
        is_forward: Whether a version gets more traffic. Going back is refused only if the endpoint's route is somebody
            else's: it waits for no Gateway and nobody's rules, and writes our rules again if somebody has edited them.

    Raises:
        ConflictError: Somebody has edited our rules, or has its path on the Gateway.
        NameTakenError: The route of its name is somebody else's.
        WorkspaceError: The Gateway API, Envoy Gateway or the Gateway is missing, another controller serves it, or its
            listener has to be named.
    """
    route = await api.find(HTTP_ROUTE.path(workspace.namespace, route_name(endpoint)))
    if is_forward:
        await _check_kinds(api)
        gateway = await find_gateway(api, workspace)
        await _check_controller(api, workspace, gateway)
        chosen_listener(gateway, workspace)
        check_tls(gateway, workspace)
        if route is None:
            await _check_path_is_free(api, workspace, endpoint)
        await _check_requests_are_ours(api, workspace, endpoint)
    if route is None:
        return
    check_is_own(route, endpoint)
    if is_forward and (edit := hand_edit(route)):
        raise ConflictError(f"{edit}; nothing was changed now")


async def _check_kinds(api: Api) -> None:
    """Raise WorkspaceError if the cluster does not know the kinds of the Gateway API and of Envoy Gateway."""
    for kind in (HTTP_ROUTE, SECURITY_POLICY):
        resources = await api.find(f"/apis/{kind.version}")
        names = [resource["name"] for resource in (resources or {}).get("resources", [])]
        if kind.plural not in names:
            raise WorkspaceError(
                f"the cluster {api.server} does not know {kind.plural}.{kind.group}: install "
                f"{'the Gateway API' if kind is HTTP_ROUTE else 'Envoy Gateway'} first, docs/aks.md says how"
                + ("" if kind is HTTP_ROUTE else "; without it callers would not be asked for their keys")
            )


async def _check_controller(api: Api, workspace: Workspace, gateway: Object) -> None:
    """Raise WorkspaceError if another controller than Envoy Gateway serves the Gateway."""
    name = gateway["spec"]["gatewayClassName"]
    try:
        gateway_class = await api.find(f"/apis/{GATEWAY.version}/gatewayclasses/{name}")
    except AccessError:
        # Not every Role allows it. A route stays closed until Envoy Gateway itself reports that the policy is in force.
        return
    controller = gateway_class["spec"]["controllerName"] if gateway_class else "no controller"
    if controller != CONTROLLER:
        raise WorkspaceError(
            f"Gateway {workspace.gateway!r} is served by {controller}, and only Envoy Gateway ({CONTROLLER}) "
            "is known to ask callers for their keys: name a Gateway of its class"
        )


async def _check_requests_are_ours(api: Api, workspace: Workspace, endpoint: str) -> None:
    """Raise ConflictError if a rule of others takes all requests to the endpoint: then no split reaches a caller."""
    for shadow in await find_shadows(api, workspace, endpoint):
        if shadow.takes_all:
            raise ConflictError(f"no split of endpoint {endpoint!r} reaches its callers: {shadow.sentence}")


async def _check_path_is_free(api: Api, workspace: Workspace, endpoint: str) -> None:
    """Raise ConflictError if the Gateway serves the endpoint's path for another namespace, whose route would win."""
    namespaces = (await envoy_stats.read_gateway_stats(api, workspace, endpoint)).namespaces() - {workspace.namespace}
    if namespaces:
        raise ConflictError(
            f"Gateway {workspace.gateway!r} serves an endpoint {endpoint!r} of namespace "
            f"{', '.join(map(repr, sorted(namespaces)))} already, and both would have the path "
            f"/api/v1/service/{endpoint}: choose another name, or another Gateway"
        )
