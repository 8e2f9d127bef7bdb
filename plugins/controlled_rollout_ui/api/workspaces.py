"""The workspaces that the page shows, each read in the background."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar

from controlled_rollout.errors import (
    ControlledRolloutError,
    EndpointNotFoundError,
    TargetUnavailableError,
    WorkspaceError,
)
from controlled_rollout.steps.holding import hold_refusal
from controlled_rollout.target.connect import connect
from controlled_rollout.target.protocol import Target
from controlled_rollout.view.actions import actions
from controlled_rollout.view.models import Actions, EndpointDetail, LogTail, WorkspaceOverview
from controlled_rollout.view.reading import read_log_tail
from controlled_rollout.workspace import Workspace
from controlled_rollout_ui.api.background import BackgroundLoop
from controlled_rollout_ui.api.settings import dag_ids, workspace_names
from controlled_rollout_ui.api.watched_workspace import WatchedWorkspace

__all__ = ["UnknownWorkspaceError", "Workspaces"]

# How long a request waits for the very first reading of a workspace, and for a log.
FIRST_WAIT_S: Final = 0.15
FIRST_DETAIL_WAIT_S: Final = 2.5
DEADLINE_S: Final = 15.0

Result = TypeVar("Result")


class UnknownWorkspaceError(ControlledRolloutError):
    """There is no workspace of that name among those that the page shows."""


class Workspaces:
    """All workspaces of the setting `ui_workspaces`."""

    def __init__(self) -> None:
        self._background = BackgroundLoop()
        self._watched: dict[str, WatchedWorkspace] = {}
        # Readings of records that dialogs wait for, by workspace, endpoint and version.
        self._hold_refusals: dict[tuple[str, str, str], asyncio.Task[str | None]] = {}

    async def overviews(self) -> tuple[WorkspaceOverview, ...]:
        """Return every workspace as it was last read."""
        return await self._background.run(self._overviews())

    async def detail(self, workspace: str, endpoint: str) -> EndpointDetail:
        """Return an endpoint with all that its page shows.

        Raises:
            UnknownWorkspaceError: The page does not show such a workspace.
            EndpointNotFoundError: There is no such endpoint.
            TargetUnavailableError: The workspace has not answered yet.
        """
        watched = self._one(workspace)
        return await self._background.run(watched.detail(endpoint, wait_s=FIRST_DETAIL_WAIT_S))

    async def detail_of_run(self, dag_id: str, run_id: str) -> EndpointDetail:
        """Return the endpoint that a DAG run rolls out on, or has last changed.

        Raises:
            EndpointNotFoundError: There is none in the workspaces that answer.
            TargetUnavailableError: A workspace has not been read yet, and there is none in the others.
        """
        overviews = await self._background.run(self._overviews(FIRST_DETAIL_WAIT_S))
        for workspace in overviews:
            for endpoint in workspace.endpoints:
                rollout = endpoint.rollout
                runs = [rollout.run if rollout else None, *(version.created_run for version in endpoint.versions)]
                if any(run is not None and (run.dag_id, run.run_id) == (dag_id, run_id) for run in runs):
                    return await self.detail(workspace.workspace, endpoint.name)
        if unread := [workspace.workspace for workspace in overviews if workspace.loading]:
            raise TargetUnavailableError(f"workspaces are being read ({', '.join(unread)}): ask again in a second")
        silent = [workspace.workspace for workspace in overviews if workspace.problem is not None]
        without = f"; these workspaces do not answer: {', '.join(silent)}" if silent else ""
        raise EndpointNotFoundError(f"no version of any endpoint is of the run {dag_id}/{run_id}{without}")

    async def log_tail(self, workspace: str, endpoint: str, version: str, *, tail: int) -> LogTail:
        """Return the last lines of a version's log.

        Raises:
            UnknownWorkspaceError: The page does not show such a workspace.
            EndpointNotFoundError: There is no such endpoint.
            EndpointError: The version's name is none.
            LogNotFoundError: It has no such version, and no log of one is kept.
            TargetUnavailableError: The workspace does not answer.
        """
        return await self._opened(
            workspace, lambda opened, target: read_log_tail(opened, target, endpoint, version, tail=tail)
        )

    async def actions(self, workspace: str, endpoint: str, *, percentile: float) -> Actions:
        """Return what may be done to an endpoint now, from its newest revision.

        Raises:
            UnknownWorkspaceError: The page does not show such a workspace.
            EndpointNotFoundError: There is no such endpoint.
            TargetUnavailableError: The workspace does not answer.
        """

        async def read(opened: Workspace, target: Target) -> Actions:
            """Read history, status and the record's end, and preview the actions."""
            history, status = await target.history(endpoint), await target.status(endpoint, inspect=False)
            rollout = history[-1].endpoint.rollout
            refusal = await self._hold_refusal(opened, endpoint, rollout.version) if rollout else None
            return actions(
                workspace,
                history,
                status,
                dag_ids(),
                percentile=percentile,
                at=datetime.now(UTC),
                hold_refusal=refusal,
            )

        return await self._opened(workspace, read)

    async def _hold_refusal(self, workspace: Workspace, endpoint: str, version: str) -> str | None:
        """Return why a version could not be put on hold now; dialogs that are open at once share one reading.

        A record that does not answer blocks the thread that reads it, which nothing can end: it is one thread, however
        many dialogs ask, and also if they do not wait for it.
        """
        key = workspace.name, endpoint, version
        reading = self._hold_refusals.get(key)
        if reading is None:
            reading = asyncio.create_task(hold_refusal(workspace, endpoint, version))
            self._hold_refusals[key] = reading
            reading.add_done_callback(lambda _: self._hold_refusals.pop(key))
        return await asyncio.shield(reading)

    async def _opened(self, workspace: str, read: Callable[[Workspace, Target], Awaitable[Result]]) -> Result:
        """Return what is read from a workspace with a connection of its own, within a deadline, a few at a time."""
        watched = self._one(workspace)

        async def read_in_time() -> Result:
            """Read in the background's thread."""
            try:
                async with asyncio.timeout(DEADLINE_S), watched.room_for_requests:
                    opened = await watched.open_workspace()
                    async with connect(opened) as target:
                        return await read(opened, target)
            except TimeoutError as error:
                raise TargetUnavailableError(
                    f"workspace {workspace} does not answer within {DEADLINE_S:g} s: ask again"
                ) from error

        return await self._background.run(read_in_time())

    async def _overviews(self, wait_s: float = FIRST_WAIT_S) -> tuple[WorkspaceOverview, ...]:
        """Return every workspace; none waits for another."""
        shown = [self._one(name).overview(wait_s=wait_s) for name in workspace_names()]
        return tuple(await asyncio.gather(*shown))

    def _one(self, name: str) -> WatchedWorkspace:
        """Return a workspace; raise UnknownWorkspaceError if the page does not show it."""
        names = workspace_names()
        if name not in names:
            raise UnknownWorkspaceError(
                f"the page shows no workspace {name!r}: it shows {', '.join(names)}; the setting ui_workspaces of the "
                "section [controlled_rollout] lists them"
            )
        return self._watched.setdefault(name, WatchedWorkspace(name, partial(_read_connection, name)))


def _read_connection(conn_id: str) -> Workspace:
    """Return the workspace that a connection describes; raise WorkspaceError if there is no such connection."""
    from airflow.sdk.exceptions import AirflowNotFoundException

    from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients

    quieten_clients()
    try:
        return WorkspaceHook(conn_id).get_workspace()
    except AirflowNotFoundException as error:
        raise WorkspaceError(
            f"there is no connection {conn_id!r}, which the setting ui_workspaces of [controlled_rollout] names: "
            "create it, or leave it out there"
        ) from error
