"""The connectivity check: does everything that a rollout needs of a workspace answer, seen from this process?"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from controlled_rollout.checks.certificate import with_certificate_end
from controlled_rollout.checks.reachability import check_reachable, http_get
from controlled_rollout.errors import ControlledRolloutError, StorageError, TargetUnavailableError, WorkspaceError
from controlled_rollout.text_table import text_table
from controlled_rollout.workspace import Workspace, is_url

if TYPE_CHECKING:
    from controlled_rollout.image import Credentials
    from controlled_rollout.target.local.supervisor_state import SupervisorState

__all__ = ["CheckResult", "check_connectivity", "check_registry", "results_table", "run_check"]

TIMEOUT_S = 10.0
# A client takes seconds to import, and signing in may start another program.
OPENING_TIMEOUT_S = 60.0
# A name that no endpoint and no image has: the answer is empty, and quick.
UNUSED_NAME = "check-connectivity"


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Attributes:
        name: What was checked.
        works: Whether it works.
        message: The address and the answer, or what went wrong.
    """

    name: str
    works: bool
    message: str


async def check_connectivity(workspace: Workspace, users: "Mapping[str, Credentials]") -> list[CheckResult]:
    """Run all connectivity checks of a workspace; a failed check is a result, not an exception.

    Args:
        workspace: What is checked.
        users: The user of each registry, by host.
    """
    # The cluster first: importing its client blocks everything else in this process.
    cluster = await _check_cluster(workspace)
    others = [run_check(name, check(workspace)) for name, check in _checks_for_target(workspace.target, users)]
    storage = run_check("storage", _check_storage(workspace), OPENING_TIMEOUT_S)
    if workspace.data_engine == "spark":
        others.append(run_check("data engine", _check_spark(workspace), OPENING_TIMEOUT_S))
    return [*cluster, *await asyncio.gather(*others, storage)]


def results_table(results: Sequence[CheckResult]) -> str:
    """Return the check results as a text table, one line per check."""
    return text_table([(result.name, "works" if result.works else "FAILS", result.message) for result in results])


async def run_check(name: str, check: Awaitable[str], timeout_s: float = TIMEOUT_S) -> CheckResult:
    """Await a check for at most `timeout_s` seconds; return its message, or its error as a failed result."""
    try:
        return CheckResult(name, True, await asyncio.wait_for(check, timeout_s))
    except TimeoutError:
        return CheckResult(name, False, f"no answer after {timeout_s:g} s")
    except (ControlledRolloutError, OSError) as error:
        return CheckResult(name, False, str(error).partition("\n")[0])


async def _check_cluster(workspace: Workspace) -> list[CheckResult]:
    """Run the checks of the Kubernetes cluster; without an answer of its API server all others count as failed."""
    if workspace.target != "kubernetes":
        return []
    from controlled_rollout.checks.cluster import CLUSTER_CHECKS, api_server
    from controlled_rollout.cluster.api import Api

    api: Api | None = None
    async with AsyncExitStack() as stack:

        async def open_api() -> str:
            """Open the client of the cluster for all checks, and check the API server."""
            nonlocal api
            api = await stack.enter_async_context(Api.open(workspace))
            return await api_server(api)

        server = await run_check("API server", open_api(), OPENING_TIMEOUT_S)
        if api is None or not server.works:
            message = "not checked: the API server does not work"
            return [server, *(CheckResult(name, False, message) for name, _ in CLUSTER_CHECKS)]
        others = (run_check(name, check(api, workspace)) for name, check in CLUSTER_CHECKS)
        return [server, *await asyncio.gather(*others)]


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


def _checks_for_target(
    target: str, users: "Mapping[str, Credentials]"
) -> Sequence[tuple[str, Callable[[Workspace], Awaitable[str]]]]:
    """Return names and functions of the checks for a target, besides those of the cluster."""
    if target == "local":
        return (
            ("supervisor", _check_supervisor),
            ("router", _check_router),
            ("telemetry store", _check_telemetry_store),
            ("cache folder", _check_cache_folder),
        )
    return (
        ("metric store", _check_metric_store),
        ("registry", partial(check_registry, users=users)),
        ("cache folder", _check_cache_folder),
    )
