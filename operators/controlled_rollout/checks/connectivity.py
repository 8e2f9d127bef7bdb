"""The check before anything is changed: does everything that a rollout needs answer, seen from the worker?"""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from controlled_rollout.checks.reach import ask
from controlled_rollout.errors import ControlledRolloutError, TargetUnavailableError
from controlled_rollout.text_table import text_table
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from controlled_rollout.image import Credentials
    from controlled_rollout.target.local.state import State

__all__ = ["CheckResult", "check", "table"]

TIMEOUT_S = 10.0
# The client takes seconds to import, and signing in may be another program's work.
OPENING_TIMEOUT_S = 60.0
# Hardly anybody calls an endpoint so: the answer is empty, and quick.
NO_ENDPOINT = "check-connectivity"


@dataclass(frozen=True)
class CheckResult:
    """What one check found.

    Attributes:
        name: What a rollout needs.
        works: Whether it is there.
        found: The address and the answer, or what went wrong.
    """

    name: str
    works: bool
    found: str


async def check(workspace: Workspace, users: "Mapping[str, Credentials]") -> list[CheckResult]:
    """Check everything that a rollout needs of a workspace; a failed check is a result, not an error.

    Args:
        workspace: What is checked.
        users: Who signs in to the registries, by host: such as the connections of a task.
    """
    # One after the other: importing the cluster's client keeps everything else in this process waiting.
    cluster = await _check_cluster(workspace)
    here = (_result(name, probe(workspace)) for name, probe in _probes(workspace.target, users))
    return [*cluster, *await asyncio.gather(*here)]


def table(results: Sequence[CheckResult]) -> str:
    """Return the results as lines of text, one a check."""
    return text_table([(result.name, "works" if result.works else "FAILS", result.found) for result in results])


async def _result(name: str, probe: Awaitable[str], timeout_s: float = TIMEOUT_S) -> CheckResult:
    try:
        return CheckResult(name, True, await asyncio.wait_for(probe, timeout_s))
    except TimeoutError:
        return CheckResult(name, False, f"no answer after {timeout_s:g} s")
    except (ControlledRolloutError, OSError) as error:
        return CheckResult(name, False, str(error).partition("\n")[0])


async def _check_cluster(workspace: Workspace) -> list[CheckResult]:
    """Check what only the cluster knows; when its API server does not answer, nothing else is asked of it."""
    if workspace.target != "kubernetes":
        return []
    from controlled_rollout.checks.cluster_probes import CLUSTER_PROBES, api_server
    from controlled_rollout.cluster.api import Api

    api: Api | None = None
    async with AsyncExitStack() as stack:

        async def open_and_ask() -> str:
            nonlocal api
            api = await stack.enter_async_context(Api.open(workspace))
            return await api_server(api)

        server = await _result("API server", open_and_ask(), OPENING_TIMEOUT_S)
        if api is None or not server.works:
            unknown = "not asked: the API server comes first"
            return [server, *(CheckResult(name, False, unknown) for name, _ in CLUSTER_PROBES)]
        asked = (_result(name, probe(api, workspace)) for name, probe in CLUSTER_PROBES)
        return [server, *await asyncio.gather(*asked)]


async def _supervisor(workspace: Workspace) -> str:
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        endpoints = await target.endpoints()
    return f"{workspace.root}: {len(endpoints)} endpoints"


async def _router(workspace: Workspace) -> str:
    url = _state(workspace).router_url
    await ask(url)
    return f"{url} answers"


async def _telemetry_store(workspace: Workspace) -> str:
    if workspace.prometheus_url:
        return await _metric_store(workspace)
    url = workspace.telemetry_endpoint or _state(workspace).telemetry_url
    await ask(url)
    return f"{url} answers"


async def _metric_store(workspace: Workspace) -> str:
    from controlled_rollout.evidence.local import configured

    if workspace.prometheus_url:
        from controlled_rollout.evidence.prometheus import PrometheusEvidence

        routers = await PrometheusEvidence(workspace.prometheus_url, workspace.prometheus_selector).routers()
        return f"{workspace.prometheus_url} scrapes {', '.join(routers)}"
    source = configured(workspace)
    # Any query shows that the store can be reached, lets us in, and has the table.
    newest = await source.newest(NO_ENDPOINT)
    return f"{source.endpoint}: workspace {source.workspace_id} answers" + (f" ({newest})" if newest else "")


async def _registry(workspace: Workspace, users: "Mapping[str, Credentials]") -> str:
    if not workspace.registry:
        return "none is set: images are not built, only deployed by their reference"
    from controlled_rollout.image.oci.registry_client import Registry, Repository
    from controlled_rollout.image.reference import registry_host

    if user := users.get(registry_host(workspace.registry)):
        async with Registry(users) as registry:
            # Whether there is such an image does not matter: the answer comes after signing in.
            await registry.digest(Repository.parse(f"{workspace.registry}/{NO_ENDPOINT}"), "any")
        return f"{workspace.registry} lets {user.username} in"
    url = Repository.parse(f"{workspace.registry}/{NO_ENDPOINT}").url.partition("/v2/")[0] + "/v2/"
    answer = await ask(url)
    if answer.status_code not in (200, 401):
        raise TargetUnavailableError(f"{url} answers {answer.status_code}: this is no registry")
    return f"{url} answers" + (", and asks for a user" if answer.status_code == 401 else "")


async def _cache_folder(workspace: Workspace) -> str:
    def write() -> None:
        workspace.cache_folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workspace.cache_folder) as file:
            file.write(b"\0")
            os.fsync(file.fileno())

    await asyncio.to_thread(write)
    return f"{workspace.cache_folder}: can be written"


def _state(workspace: Workspace) -> "State":
    from controlled_rollout.target.local.state import State

    state = State.read(workspace)
    if state is None:
        raise TargetUnavailableError(
            f"the local workspace {workspace.root} is not running: controlled-rollout local up"
        )
    return state


def _probes(
    target: str, users: "Mapping[str, Credentials]"
) -> Sequence[tuple[str, Callable[[Workspace], Awaitable[str]]]]:
    """Return what a kind of target needs here, beside what is asked of the cluster itself."""
    if target == "local":
        return (
            ("supervisor", _supervisor),
            ("router", _router),
            ("telemetry store", _telemetry_store),
            ("cache folder", _cache_folder),
        )
    return (
        ("metric store", _metric_store),
        ("registry", partial(_registry, users=users)),
        ("cache folder", _cache_folder),
    )
