"""Which servers a workspace needs, seen from where tasks run and from where versions run. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from controlled_rollout.addresses import is_loopback
from controlled_rollout.checks.probe import Destination
from controlled_rollout.endpoint import Version
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace, is_url

__all__ = [
    "API_SERVER",
    "ENDPOINTS",
    "IMAGE_SOURCE",
    "METRIC_STORE",
    "PODS",
    "REGISTRY",
    "SIGN_IN",
    "STORAGE",
    "TABLES",
    "WORKER",
    "Wanted",
    "destination_of",
    "from_pods",
    "from_worker",
    "sign_in_url",
]

# From where: the process that checks, and a pod that has a version's labels.
WORKER: Final = "worker"
PODS: Final = "pods"

API_SERVER: Final = "API server"
REGISTRY: Final = "registry"
IMAGE_SOURCE: Final = "base images"
STORAGE: Final = "storage"
TABLES: Final = "table storage"
METRIC_STORE: Final = "metric store"
SIGN_IN: Final = "sign-in"
ENDPOINTS: Final = "endpoints' address"

AUTHORITY_VARIABLE: Final = "AZURE_AUTHORITY_HOST"
PUBLIC_SIGN_IN: Final = "https://login.microsoftonline.com"
# By the end of a storage's host name: each of Azure's clouds has a sign-in of its own.
SIGN_INS: Final = {
    ".chinacloudapi.cn": "https://login.chinacloudapi.cn",
    ".usgovcloudapi.net": "https://login.microsoftonline.us",
}
AZURE_REGISTRIES: Final = (".azurecr.io", ".azurecr.cn", ".azurecr.us")
DOCKER_HUB: Final = "registry-1.docker.io"
PORTS: Final = {"http": 80, "https": 443}
MAX_DESTINATIONS: Final = 50
TOKENS: Final = "tokens of Azure's identities"


@dataclass(frozen=True)
class Wanted:
    """A server that is to be reached.

    Attributes:
        destination: Where it is.
        needed: Whether a rollout fails without it. Others are shown, and may be closed.
        why: What it is for.
    """

    destination: Destination
    needed: bool
    why: str

    @property
    def name(self) -> str:
        """What it is, such as `registry`."""
        return self.destination.name


def destination_of(name: str, url: str) -> Destination:
    """Return the destination for a URL: `https://host/path`, `http://…`, or `tcp://host:port`.

    Raises:
        WorkspaceError: It is none of them, or holds a user or a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or PORTS.get(parts.scheme, 0)
        if not parts.hostname or not port or parts.scheme not in (*PORTS, "tcp"):
            raise ValueError("no host")
    except ValueError:
        raise WorkspaceError(
            f"{_without_user(url)!r} is not the address of a server: give https://host, http://host:port or "
            "tcp://host:port"
        ) from None
    if "@" in parts.netloc:
        raise WorkspaceError(
            f"the address of {parts.hostname} holds a user or a password, and a check sends none: leave it out"
        )
    return Destination(name, parts.hostname, port, parts.scheme, parts.path or "/")


def _without_user(url: str) -> str:
    """Return a URL without what stands before an `@`, which may be a password."""
    return url.rpartition("@")[2]


def from_worker(
    workspace: Workspace,
    *,
    own: Sequence[str] = (),
    api_server: Destination | None = None,
    endpoints_url: str = "",
    environment: Mapping[str, str],
) -> list[Wanted]:
    """Return what tasks of a workspace have to reach, the command line as well.

    Args:
        workspace: The workspace.
        own: URLs that its user wants checked too.
        api_server: The API server, if there is one.
        endpoints_url: Where callers reach the endpoints; empty where that is not known.
        environment: The variables of this process.
    """
    signs_in = _signs_in(workspace, environment)
    if workspace.target == "local":
        # Of what runs on this machine each has a check of its own.
        storage = _storage_destinations(workspace, needed=True, why="models, records and collected data")
        return _with_own(
            [*storage, *_destination_of_url(SIGN_IN, sign_in_url(workspace, environment), signs_in, TOKENS)], own
        )
    found = [
        *([Wanted(api_server, True, "all steps")] if api_server else []),
        *_endpoints(workspace, endpoints_url, True, "callers"),
        *_storage_destinations(workspace, needed=True, why="models, records and collected data"),
        *_destination_of_url(METRIC_STORE, _metric_store_url(workspace), True, "the gate's queries"),
        *_destination_of_url(SIGN_IN, sign_in_url(workspace, environment), signs_in, TOKENS),
        *_workspace_registries(workspace, needed=True),
    ]
    return _with_own(found, own)


def from_pods(
    workspace: Workspace,
    version: Version,
    *,
    own: Sequence[str] = (),
    api_server: Destination | None = None,
    endpoints_url: str = "",
    environment: Mapping[str, str],
) -> list[Wanted]:
    """Return what is asked from a pod with a version's network identity.

    A version itself calls nobody, and its images are pulled by the node: needed are the storage, and the sign-in, of
    its collector, and what its user names because the script calls it. The others are shown: the retired service's
    router had to reach them from the cluster.

    Args:
        workspace: The workspace.
        version: The version.
        own: URLs that its script calls.
        api_server: The API server, if it is known.
        endpoints_url: Where callers reach the endpoints; empty where that is not known.
        environment: The variables of this process.
    """
    collects = version.collected is not None and workspace.has_collector
    by_identity = collects and bool(workspace.collector_service_account)
    found = [
        *_storage_destinations(workspace, needed=collects, why="collected data"),
        *_destination_of_url(SIGN_IN, sign_in_url(workspace, environment), by_identity, "the collector's identity"),
        *([Wanted(api_server, False, "not called by versions")] if api_server else []),
        *_workspace_registries(workspace, needed=False),
        *_destination_of_url(METRIC_STORE, _metric_store_url(workspace), False, "not called by versions"),
        *_endpoints(workspace, endpoints_url, False, "models that call other endpoints"),
    ]
    return _with_own(found, own)


def _with_own(found: Sequence[Wanted], own: Sequence[str]) -> list[Wanted]:
    """Return what was found with the destinations that a user names, each of them once.

    Raises:
        WorkspaceError: One is no address of a server, or there are too many.
    """
    named = dict.fromkeys(own)
    if len(named) > MAX_DESTINATIONS:
        raise WorkspaceError(f"{len(named)} destinations are given, and at most {MAX_DESTINATIONS} are checked at once")
    destinations = [destination_of("", url) for url in named]
    return [
        *found,
        *(Wanted(replace(each, name=f"{each.host}:{each.port}"), True, "named by you") for each in destinations),
    ]


def _destination_of_url(name: str, url: str, needed: bool, why: str) -> list[Wanted]:
    """Return the destination for a URL; nothing for an empty one."""
    return [Wanted(destination_of(name, url), needed, why)] if url else []


def _endpoints(workspace: Workspace, url: str, needed: bool, why: str) -> list[Wanted]:
    """Return where callers reach the endpoints, whose certificate may be of an authority of one's own."""
    file = str(workspace.endpoint_ca or "")
    found = _destination_of_url(ENDPOINTS, url, needed, why)
    return [replace(each, destination=replace(each.destination, authorities_file=file)) for each in found]


def _storage_destinations(workspace: Workspace, *, needed: bool, why: str) -> list[Wanted]:
    """Return the account of blobs, and the account of tables beside it, which nothing of ours needs."""
    place = workspace.storage_place
    if not is_url(place):
        return []
    blobs = destination_of(STORAGE, place)
    blobs = replace(blobs, path="/")
    account, separator, rest = blobs.host.partition(".blob.")
    tables = Destination(TABLES, f"{account}.table.{rest}", blobs.port, blobs.scheme) if separator else None
    return [
        Wanted(blobs, needed, why),
        *([Wanted(tables, False, "of the retired service; nothing here calls it")] if tables else []),
    ]


def _workspace_registries(workspace: Workspace, *, needed: bool) -> list[Wanted]:
    """Return the workspace's registry and that of base images."""
    why = "images" if needed else "pulled by the nodes, whose network is their own"
    found = _registry_destination(REGISTRY, f"{workspace.registry}/any" if workspace.registry else None, needed, why)
    return [*found, *_registry_destination(IMAGE_SOURCE, workspace.base_image, needed, why)]


def _registry_destination(name: str, reference: str | None, needed: bool, why: str) -> list[Wanted]:
    """Return the registry of an image or a prefix; nothing without one."""
    if not reference:
        return []
    from controlled_rollout.image.reference import registry_host

    host = registry_host(reference)
    host = DOCKER_HUB if host == "docker.io" else host
    scheme = "http" if is_loopback(host) else "https"
    return _destination_of_url(name, f"{scheme}://{host}/v2/", needed, why)


def _metric_store_url(workspace: Workspace) -> str:
    """Return where the gate's evidence is read; empty for the store of a local workspace."""
    if workspace.prometheus_url:
        return workspace.prometheus_url
    if workspace.telemetry_endpoint:
        return workspace.telemetry_endpoint
    if not workspace.telemetry_workspace_id:
        return ""
    from controlled_rollout.evidence.log_analytics import PUBLIC_ENDPOINT

    return PUBLIC_ENDPOINT


def sign_in_url(workspace: Workspace, environment: Mapping[str, str]) -> str:
    """Return where Azure's identities sign in for this workspace; empty if nothing of it is Azure's."""
    if not _is_azure(workspace):
        return ""
    if host := environment.get(AUTHORITY_VARIABLE):
        return host if is_url(host) else f"https://{host}"
    storage = urlsplit(workspace.storage or "").hostname or ""
    return next((url for end, url in SIGN_INS.items() if storage.endswith(end)), PUBLIC_SIGN_IN)


def _is_azure(workspace: Workspace) -> bool:
    """Return whether a part of a workspace is of Azure's, and may be signed in to with an identity."""
    registry = (workspace.registry or "").partition("/")[0]
    return (
        ".blob." in (urlsplit(workspace.storage or "").hostname or "")
        or registry.endswith(AZURE_REGISTRIES)
        or (workspace.target == "kubernetes" and _metric_store_url(workspace).endswith("loganalytics.io"))
    )


def _signs_in(workspace: Workspace, environment: Mapping[str, str]) -> bool:
    """Return whether this process signs in with an identity, and not with a connection string or a file's token."""
    storage = ".blob." in (urlsplit(workspace.storage or "").hostname or "")
    queries = _metric_store_url(workspace).endswith("loganalytics.io") and not workspace.telemetry_token_file
    return queries or (storage and not environment.get("AZURE_STORAGE_CONNECTION_STRING"))
