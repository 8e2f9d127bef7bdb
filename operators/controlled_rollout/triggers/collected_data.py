"""Counts what a version has collected, in the triggerer, until there is enough."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from controlled_rollout.errors import (
    ControlledRolloutError,
    EndpointError,
    EvidenceUnavailableError,
    StorageError,
    TargetUnavailableError,
)
from controlled_rollout.hooks.workspace import WorkspaceHook, quieten_clients
from controlled_rollout.workspace import Workspace

__all__ = ["CollectedDataTrigger", "control_of", "rows_collected"]

# What may be gone at the next count.
TEMPORARY: Final = (EvidenceUnavailableError, StorageError, TargetUnavailableError)
# A little more than the least interval of a worker's heartbeat, [workers] min_heartbeat_interval.
FIRST_COUNT_AFTER_S: Final = 6.0


class CollectedDataTrigger(BaseTrigger):
    """Fires once a version has collected enough rows; after a restart it counts again.

    Args:
        conn_id: The connection that describes the workspace.
        endpoint: The endpoint's name.
        version: The version; empty for the endpoint's control.
        collection: Whose rows are counted.
        rows: How many are enough.
        since_s: How far back they may have arrived, in seconds.
        interval_s: The time between two counts, in seconds.
    """

    def __init__(
        self, conn_id: str, endpoint: str, version: str, collection: str, rows: int, since_s: float, interval_s: float
    ) -> None:
        """Store the arguments that `serialize` returns."""
        super().__init__()  # type: ignore[no-untyped-call] # Airflow's
        self.arguments: dict[str, Any] = {
            "conn_id": conn_id,
            "endpoint": endpoint,
            "version": version,
            "collection": collection,
            "rows": rows,
            "since_s": since_s,
            "interval_s": interval_s,
        }
        self.conn_id, self.rows, self.interval_s = conn_id, rows, interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments from which a triggerer creates this trigger again."""
        return f"{type(self).__module__}.{type(self).__qualname__}", dict(self.arguments)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Count at intervals, and yield the number of rows once it is enough, or why it cannot be counted."""
        quieten_clients()
        names = {name: self.arguments[name] for name in ("endpoint", "version", "collection")}
        await asyncio.sleep(min(self.interval_s, FIRST_COUNT_AFTER_S))
        while True:
            try:
                workspace = await WorkspaceHook(self.conn_id).aget_workspace()
                found = await rows_collected(
                    workspace, **names, since=timedelta(seconds=float(self.arguments["since_s"]))
                )
            except TEMPORARY as error:
                self.log.info("cannot be counted now: %s", error)
            except (AirflowNotFoundException, ControlledRolloutError) as error:
                yield TriggerEvent({"error": str(error)})  # type: ignore[no-untyped-call] # Airflow's
                return
            else:
                self.log.info("%s of %s rows", f"{found:,}", f"{self.rows:,}")
                if found >= self.rows:
                    yield TriggerEvent({"rows": found})  # type: ignore[no-untyped-call] # Airflow's
                    return
            await asyncio.sleep(self.interval_s)


async def rows_collected(
    workspace: Workspace, *, endpoint: str, version: str, collection: str, since: timedelta
) -> int:
    """Return how many rows a version has collected lately.

    Args:
        workspace: Where the data is.
        endpoint: The endpoint's name.
        version: The version; empty for the endpoint's control.
        collection: Whose rows are counted.
        since: How far back.
    """
    from controlled_rollout.evidence.collected.version_data import count_rows

    name = version or await control_of(workspace, endpoint)
    now = datetime.now(UTC)
    return await asyncio.to_thread(count_rows, workspace, endpoint, name, collection, since=now - since, until=now)


async def control_of(workspace: Workspace, endpoint: str) -> str:
    """Return the name of an endpoint's control; raise EndpointError if it has none."""
    from controlled_rollout.target.connect import connect

    async with connect(workspace) as target:
        control = (await target.endpoint(endpoint)).control
    if control is None:
        raise EndpointError(f"endpoint {endpoint!r} has no control: give the version whose rows are to be counted")
    return control.name
