"""The check before anything is changed: does everything that a rollout needs answer, seen from the worker?"""

import asyncio
import os
import tempfile
import urllib.parse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from controlled_rollout.errors import ControlledRolloutError, TargetUnavailableError
from controlled_rollout.tasks.step import RolloutOperator
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.target.local.state import State

__all__ = ["CheckConnectivityOperator", "CheckResult", "check", "table"]

TIMEOUT_S = 10.0


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


async def check(workspace: Workspace) -> list[CheckResult]:
    """Check everything that a rollout needs of a workspace, all at once; a failed check is a result, not an error."""
    return list(await asyncio.gather(*(_result(name, probe(workspace)) for name, probe in PROBES[workspace.target])))


def table(results: Sequence[CheckResult]) -> str:
    """Return the results as lines of text, one a check."""
    width = max(len(result.name) for result in results)
    return "\n".join(
        f"{result.name:<{width}}  {'works' if result.works else 'FAILS'}  {result.found}" for result in results
    )


class CheckConnectivityOperator(RolloutOperator):
    """Checks that everything a rollout needs answers from this worker, and fails with a table of what does not.

    Args:
        plan: What is going to happen, in words; logged before the checks.
        **kwargs: `endpoint`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "plan")
    ui_color = "#e6e6e6"

    def __init__(self, *, plan: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan

    async def step(self, context: "Context", workspace: Workspace) -> None:
        """Check. What does not answer now may answer at the next try."""
        if self.plan:
            self.say(self.plan)
        results = await check(workspace)
        self.say(f"workspace {workspace.name!r}\n{table(results)}")
        if missing := [result for result in results if not result.works]:
            raise TargetUnavailableError(
                f"workspace {workspace.name!r} cannot be used from here: "
                + "; ".join(f"{result.name}: {result.found}" for result in missing)
            )


async def _result(name: str, probe: Awaitable[str]) -> CheckResult:
    try:
        return CheckResult(name, True, await asyncio.wait_for(probe, TIMEOUT_S))
    except TimeoutError:
        return CheckResult(name, False, f"no answer after {TIMEOUT_S:g} s")
    except (ControlledRolloutError, OSError) as error:
        return CheckResult(name, False, str(error).partition("\n")[0])


async def _supervisor(workspace: Workspace) -> str:
    from controlled_rollout.target import connect

    endpoints = await connect(workspace).endpoints()
    return f"{workspace.root}: {len(endpoints)} endpoints"


async def _router(workspace: Workspace) -> str:
    return await _answers(_state(workspace).router_url)


async def _telemetry_store(workspace: Workspace) -> str:
    return await _answers(workspace.telemetry_endpoint or _state(workspace).telemetry_url)


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


async def _answers(url: str) -> str:
    """Return what a server says of itself; it is not asked for anything, so a refusal is an answer."""
    import httpx

    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=not _is_loopback(url)) as client:
            answer = await client.get(url)
    except httpx.HTTPError as error:
        raise TargetUnavailableError(f"{url} does not answer: {error or type(error).__name__}") from error
    if answer.status_code >= 500:
        raise TargetUnavailableError(f"{url} answers {answer.status_code}")
    return f"{url} answers"


def _is_loopback(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")


# What each kind of target needs; a new kind brings its own list.
PROBES: dict[str, tuple[tuple[str, Callable[[Workspace], Awaitable[str]]], ...]] = {
    "local": (
        ("supervisor", _supervisor),
        ("router", _router),
        ("telemetry store", _telemetry_store),
        ("cache folder", _cache_folder),
    ),
}
