"""The connectivity check: does all that a rollout needs of a workspace answer, from here and from its versions?"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Awaitable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from controlled_rollout.checks.advice import advice, failure_text, place_text
from controlled_rollout.checks.certificate import with_certificate_end
from controlled_rollout.checks.destinations import (
    API_SERVER,
    ENDPOINTS,
    METRIC_STORE,
    PODS,
    REGISTRY,
    STORAGE,
    WORKER,
    Wanted,
    destination_of,
    from_pods,
    from_worker,
)
from controlled_rollout.checks.probe import SECONDS, Destination, Probe, probe_all
from controlled_rollout.checks.reachability import check_reachable, http_get
from controlled_rollout.checks.result import CheckResult
from controlled_rollout.errors import ControlledRolloutError, StorageError, TargetUnavailableError, WorkspaceError
from controlled_rollout.workspace import Workspace, is_url

if TYPE_CHECKING:
    from controlled_rollout.cluster.api import Api
    from controlled_rollout.endpoint import Endpoint, Version
    from controlled_rollout.image import Credentials
    from controlled_rollout.target.local.supervisor_state import SupervisorState

__all__ = ["CheckScope", "check_connectivity", "check_registry", "run_check", "version_to_be"]

TIMEOUT_S = 10.0
# A client takes seconds to import, and signing in may start another program.
OPENING_TIMEOUT_S = 60.0
# The pod's own limits are shorter, and name what it waits for.
POD_TIMEOUT_S = 100.0
DATA_ENGINE = "data engine"
# A name that no endpoint and no image has: the answer is empty, and quick.
UNUSED_NAME = "check-connectivity"


@dataclass(frozen=True)
class CheckScope:
    """What a connectivity check covers besides the workspace itself.

    Attributes:
        endpoint: Whose versions' network is checked too, from a pod; empty for none. On Kubernetes only.
        version: Whose labels the pod gets; empty, or one that is not there, for control's.
        destinations: URLs that have to be reached besides, from the worker and from the pod.
        needs_pod: Whether it counts as a failure that the pod cannot run, or that there is no such endpoint.
    """

    endpoint: str = ""
    version: str = ""
    destinations: tuple[str, ...] = ()
    needs_pod: bool = True


async def check_connectivity(
    workspace: Workspace, users: "Mapping[str, Credentials]", scope: CheckScope | None = None
) -> list[CheckResult]:
    """Run all connectivity checks of a workspace; a failed check is a result, not an exception.

    First all servers are asked for name, port, certificate and an answer, at once and within `SECONDS`. What signs in,
    reads or writes is tried only where that works.

    Args:
        workspace: What is checked.
        users: The user of each registry, by host.
        scope: What is checked besides.

    Raises:
        WorkspaceError: A destination of the scope is no address of a server.
    """
    scope = scope or CheckScope()
    async with AsyncExitStack() as stack:
        # The cluster first: importing its client blocks everything else in this process.
        api, opening = await _open_cluster(workspace, stack)
        server = _api_destination(api) if api else None
        wanted = from_worker(
            workspace, own=scope.destinations, api_server=server, endpoints_url=_known_url(workspace),
            environment=os.environ,
        )  # fmt: skip
        probes = await asyncio.to_thread(probe_all, [each.destination for each in wanted], SECONDS)
        found = {each.name: (each, one) for each, one in zip(wanted, probes, strict=True)}
        cluster = await _check_cluster(workspace, api, opening, found)
        pods = _check_from_pods(workspace, api, scope, found)
        others = [_check_unless_unreachable(name, check, found) for name, check in _checks(workspace, users)]
        results, from_pods = await asyncio.gather(asyncio.gather(*others), pods)
    done = [*cluster, *results]
    names = {result.name for result in done}
    # Not of `found`: two destinations may have one name, as two paths of a server.
    more = [_probe_result(*pair, WORKER) for pair in zip(wanted, probes, strict=True) if pair[0].name not in names]
    return [*done, *more, *from_pods]


async def _check_unless_unreachable(
    name: str, check: Awaitable[str], found: Mapping[str, tuple[Wanted, Probe]]
) -> CheckResult:
    """Return the result of a check, which is not begun where its server has not answered the probe."""
    if name not in found:
        return await run_check(name, check, _time_for(name))
    wanted, probe = found[name]
    if probe.failed:
        if isinstance(check, Coroutine):
            check.close()
        return _probe_result(wanted, probe, WORKER)
    result = await run_check(name, check, _time_for(name))
    # The check of the endpoints' address says itself when their certificate ends.
    note = "" if name == ENDPOINTS else probe.note
    return replace(result, probe=probe, message="; ".join(filter(None, (result.message, note))))


def _time_for(name: str) -> float:
    """Return how long a check may take: longer where a client is imported and signed in first."""
    return OPENING_TIMEOUT_S if name in (STORAGE, DATA_ENGINE) else TIMEOUT_S


def _probe_result(wanted: Wanted, probe: Probe, origin: str, namespace: str = "") -> CheckResult:
    """Return the result for a server that was only probed."""
    place = "; ".join(filter(None, (place_text(probe), probe.note)))
    return CheckResult(
        wanted.name,
        works=not probe.failed,
        message=failure_text(probe) or f"{place}: {wanted.why}",
        origin=origin,
        needed=wanted.needed,
        advice=advice(probe, wanted, origin, namespace),
        probe=probe,
    )


async def run_check(name: str, check: Awaitable[str], timeout_s: float = TIMEOUT_S) -> CheckResult:
    """Await a check for at most `timeout_s` seconds; return its message, or its error as a failed result."""
    try:
        return CheckResult(name, True, await asyncio.wait_for(check, timeout_s))
    except TimeoutError:
        return CheckResult(name, False, f"no answer after {timeout_s:g} s")
    except (ControlledRolloutError, OSError) as error:
        return CheckResult(name, False, str(error).partition("\n")[0])


async def _open_cluster(workspace: Workspace, stack: AsyncExitStack) -> "tuple[Api | None, CheckResult | None]":
    """Open the client of the workspace's cluster; return it, or why it cannot be opened; neither without a cluster."""
    if workspace.target != "kubernetes":
        return None, None
    from controlled_rollout.cluster.api import Api

    api: Api | None = None

    async def open_api() -> str:
        """Sign in, without a request to the API server."""
        nonlocal api
        api = await stack.enter_async_context(Api.open(workspace))
        return ""

    opening = await run_check(API_SERVER, open_api(), OPENING_TIMEOUT_S)
    return api, opening if api is None else None


def _api_destination(api: "Api") -> Destination:
    """Return the API server as its client reaches it, with the authority that the kube config names."""
    destination = destination_of(API_SERVER, api.server)
    return replace(destination, path="/version", **api.trust)


def _known_url(workspace: Workspace) -> str:
    """Return where callers reach the endpoints, if the workspace itself says so."""
    return workspace.endpoint_url or "" if workspace.target == "kubernetes" else ""


async def _check_cluster(
    workspace: Workspace,
    api: "Api | None",
    opening: CheckResult | None,
    found: Mapping[str, tuple[Wanted, Probe]],
) -> list[CheckResult]:
    """Run the checks of the Kubernetes cluster; without an answer of its API server all others count as failed."""
    if workspace.target != "kubernetes":
        return []
    from controlled_rollout.checks.cluster import CLUSTER_CHECKS, api_server

    server = opening or await _check_unless_unreachable(API_SERVER, api_server(api), found) if api else opening
    assert server is not None  # noqa: S101 - the client is open, or the reason why not is there
    if api is None or not server.works:
        message = "not checked: the API server does not work"
        return [server, *(CheckResult(name, False, message) for name, _ in CLUSTER_CHECKS)]
    others = (_check_unless_unreachable(name, check(api, workspace), found) for name, check in CLUSTER_CHECKS)
    return [server, *await asyncio.gather(*others)]


async def _check_from_pods(
    workspace: Workspace,
    api: "Api | None",
    scope: CheckScope,
    found: Mapping[str, tuple[Wanted, Probe]],
) -> list[CheckResult]:
    """Ask the same from a pod with the network identity of an endpoint's version; nothing without an endpoint."""
    if api is None or not scope.endpoint or found[API_SERVER][1].failed:
        return []
    from controlled_rollout.checks.check_pod import probe_from_pod
    from controlled_rollout.target.kubernetes import revisions

    asked: list[Wanted] = []
    probes: list[Probe] = []

    async def run_pod() -> str:
        """Run the pod, and keep what it has found; return a sentence on it."""
        nonlocal asked, probes
        if not scope.needs_pod and not await revisions.history(api, workspace.namespace, scope.endpoint):
            return f"not checked: endpoint {scope.endpoint} does not exist yet"
        history = await revisions.existing_history(api, workspace.namespace, scope.endpoint)
        endpoint = history[-1].endpoint
        version = version_to_be(endpoint, scope.version)
        if version is None:
            return f"not checked: endpoint {endpoint.name} has no version yet, whose network it would be"
        asked = from_pods(
            workspace, version, own=scope.destinations, api_server=found[API_SERVER][0].destination,
            endpoints_url=_known_url(workspace), environment=os.environ,
        )  # fmt: skip
        destinations = [_for_a_pod(each.destination) for each in asked]
        probes = await probe_from_pod(api, workspace, endpoint, version, destinations, SECONDS)
        return f"ran in {workspace.namespace} with the labels of version {version.name} of endpoint {endpoint.name}"

    pod = await run_check("pod", run_pod(), POD_TIMEOUT_S)
    rows = [_probe_result(each, probe, PODS, workspace.namespace) for each, probe in zip(asked, probes, strict=False)]
    return [replace(pod, origin=PODS, needed=scope.needs_pod), *rows]


def _for_a_pod(destination: Destination) -> Destination:
    """Return a destination as a pod can ask it: with its own proxy, and without a file of this machine."""
    file = destination.authorities_file
    authorities = Path(file).read_text(encoding="utf-8") if file and Path(file).is_file() else destination.authorities
    return replace(destination, proxy=None, authorities_file="", authorities=authorities)


def version_to_be(endpoint: "Endpoint", name: str) -> "Version | None":
    """Return the version whose network identity a check takes: the named one, else control, else the default.

    Args:
        endpoint: The endpoint.
        name: The version's name; it need not exist, as that of a rollout does not yet.
    """
    versions = endpoint.versions
    chosen = versions.get(name) or endpoint.control
    return chosen or next(iter(versions.values()), None)


async def _check_supervisor(workspace: Workspace) -> str:
    """Check that the local supervisor answers; return the number of its endpoints."""
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        endpoints = await target.endpoints()
    return f"{workspace.root}: {len(endpoints)} endpoints"


async def _check_router(workspace: Workspace) -> str:
    """Check that the local workspace's router answers HTTP requests."""
    from controlled_rollout.target.authority import endpoint_authority

    state = _supervisor_state(workspace)
    await http_get(state.router_url, authority=endpoint_authority(workspace))
    if workspace.has_tls and not state.router_url.startswith("https:"):
        raise WorkspaceError(
            f"{state.router_url} answers, and the workspace asks for TLS: start it anew with "
            f"`{workspace.local_command('down')}` and `{workspace.local_command('up')} --tls`"
        )
    return await with_certificate_end(f"{state.router_url} answers", state.router_url, workspace)


async def _check_telemetry_store(workspace: Workspace) -> str:
    """Check that the local workspace's telemetry store or Prometheus answers."""
    if workspace.prometheus_url:
        return await _check_metric_store(workspace)
    url = workspace.telemetry_endpoint or _supervisor_state(workspace).telemetry_url
    await http_get(url)
    return f"{url} answers"


async def _check_metric_store(workspace: Workspace) -> str:
    """Check that the configured metric store answers a query."""
    from controlled_rollout.evidence.local import configured_log_analytics

    if workspace.prometheus_url:
        from controlled_rollout.evidence.prometheus import PrometheusEvidence

        routers = await PrometheusEvidence(workspace.prometheus_url, workspace.prometheus_selector).routers()
        return f"{workspace.prometheus_url} scrapes {', '.join(routers)}"
    source = configured_log_analytics(workspace)
    # Any query shows that the store can be reached, accepts our identity, and has the table.
    newest = await source.newest(UNUSED_NAME)
    return f"{source.endpoint}: workspace {source.workspace_id} answers" + (f" ({newest})" if newest else "")


async def check_registry(workspace: Workspace, users: "Mapping[str, Credentials]") -> str:
    """Check that the workspace's registry answers and accepts its credentials, if it has any; return a sentence.

    Raises:
        TargetUnavailableError: It does not answer as a registry does.
        ImageError: It does not accept the user.
    """
    if not workspace.registry:
        return "none is set: images are not built, only deployed by their reference"
    from controlled_rollout.image.oci.registry_client import RegistryClient, Repository
    from controlled_rollout.image.reference import registry_host

    if user := users.get(registry_host(workspace.registry)):
        async with RegistryClient(users) as registry:
            # Whether there is such an image does not matter: the registry answers only after signing in.
            await registry.digest(Repository.parse(f"{workspace.registry}/{UNUSED_NAME}"), "any")
        return f"{workspace.registry} lets {user.username} in"
    url = Repository.parse(f"{workspace.registry}/{UNUSED_NAME}").url.partition("/v2/")[0] + "/v2/"
    response = await http_get(url)
    if response.status_code not in (200, 401):
        raise TargetUnavailableError(f"{url} answers {response.status_code}: this is not a registry")
    return f"{url} answers" + (", and asks for a user" if response.status_code == 401 else "")


async def _check_cache_folder(workspace: Workspace) -> str:
    """Check that a file can be written into the workspace's cache folder."""

    def write_temporary_file() -> None:
        """Create the folder and write a temporary file into it."""
        workspace.cache_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workspace.cache_folder) as file:
            file.write(b"\0")
            os.fsync(file.fileno())

    await asyncio.to_thread(write_temporary_file)
    return f"{workspace.cache_folder}: can be written"


async def _check_storage(workspace: Workspace) -> str:
    """Check that a file can be written into the workspace's storage, read and deleted; nothing if none is set.

    Without a storage nothing may ever be written: a rollout of an image that exists needs none.
    """
    place = workspace.storage_place
    if workspace.storage is None and workspace.target != "local":
        return f"none is set: {place}, which tasks of other machines do not see"
    if is_url(place):
        await check_reachable(place)

    def write_read_delete() -> None:
        """Write a small file of a name of its own, read it and delete it; raise if another content comes back."""
        from controlled_rollout.storage import open_storage

        storage = open_storage(workspace)
        name, content = f"{UNUSED_NAME}/{secrets.token_hex(8)}", secrets.token_bytes(16)
        storage.put(name, content)
        try:
            if storage.get(name) != content:
                raise StorageError(f"{storage.address_of(name)} has another content than was written a moment ago")
        finally:
            storage.delete(name)

    await asyncio.to_thread(write_read_delete)
    hidden = workspace.model_copy(update={"storage": None}).records_folder  # where they are without a storage
    if (workspace.records_address or workspace.records_folder != hidden) and any(hidden.glob("*.jsonl")):
        records = workspace.records_address or workspace.records_folder
        return f"{place}: can be written. Decisions in {hidden} are not read: records are in {records}"
    return f"{place}: can be written"


async def _check_spark(workspace: Workspace) -> str:
    """Check that the Spark that summarises collected data answers a query."""
    from controlled_rollout.evidence.collected.spark_engine import SparkEngine

    version = await asyncio.to_thread(SparkEngine(workspace.spark_remote).version)
    return f"{workspace.spark_remote or 'the session that its own configuration describes'}: Spark {version} answers"


def _supervisor_state(workspace: Workspace) -> "SupervisorState":
    """Return the state of the local supervisor; raise TargetUnavailableError if it does not run."""
    from controlled_rollout.target.local.supervisor_state import SupervisorState

    state = SupervisorState.read(workspace)
    if state is None:
        raise TargetUnavailableError(
            f"the local workspace {workspace.root} is not running: start it with `{workspace.local_command('up')}`"
        )
    return state


def _checks(workspace: Workspace, users: "Mapping[str, Credentials]") -> list[tuple[str, Awaitable[str]]]:
    """Return names and coroutines of the checks besides those of the cluster."""
    cache = ("cache folder", _check_cache_folder(workspace))
    storage = (STORAGE, _check_storage(workspace))
    spark = [(DATA_ENGINE, _check_spark(workspace))] if workspace.data_engine == "spark" else []
    if workspace.target == "local":
        return [
            ("supervisor", _check_supervisor(workspace)),
            ("router", _check_router(workspace)),
            ("telemetry store", _check_telemetry_store(workspace)),
            cache,
            *spark,
            storage,
        ]
    return [
        (METRIC_STORE, _check_metric_store(workspace)),
        (REGISTRY, check_registry(workspace, users)),
        cache,
        *spark,
        storage,
    ]
