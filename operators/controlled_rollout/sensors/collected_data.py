"""The task that waits until a version has collected enough."""

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseSensorOperator, conf

from controlled_rollout.arguments import duration, read_all, text, whole_number
from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError, StorageError, TargetUnavailableError
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import EngineCalls
from controlled_rollout.operators.collected_data import LOOK_BACK, look_back
from controlled_rollout.triggers.collected_data import CollectedDataTrigger, rows_collected

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["CollectedDataSensor"]

INTERVAL: Final = timedelta(minutes=1)


class CollectedDataSensor(EngineCalls, BaseSensorOperator):
    """Waits until a version has collected so many rows.

    While the storage does not answer it goes on waiting. How long at most is the sensor's own `timeout`.

    Args:
        endpoint: The endpoint's name.
        rows: How many rows are enough.
        version: The version; None or an empty text for the endpoint's control.
        collection: `inputs`, `predictions`, or a collection that the script has chosen.
        since: How far back the rows may have arrived, 366 days at most: a timedelta, seconds, or text such as `1 d`.
        interval: The time between two counts.
        deferrable: Whether to wait in the triggerer instead of in a worker.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What every sensor takes.
    """

    template_fields = ("conn_id", "endpoint", "version", "collection", "rows", "since", "interval")
    ui_color = "#dcefe3"

    def __init__(
        self,
        *,
        endpoint: str,
        rows: int | str,
        version: str | None = None,
        collection: str = "predictions",
        since: timedelta | float | str = LOOK_BACK,
        interval: timedelta | float | str = INTERVAL,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.endpoint = endpoint
        self.rows = rows
        self.version = version
        self.collection = collection
        self.since = since
        self.interval = interval
        self.deferrable = deferrable
        self.conn_id = conn_id

    def execute(self, context: "Context") -> Any:
        """Count in the triggerer, or in this worker at intervals."""
        try:
            values = self._arguments()
        except ArgumentError as error:
            self.fail(context, str(error))
        if not self.deferrable:
            self.poke_interval = values["interval"].total_seconds()
            return super().execute(context)
        self.defer(
            trigger=CollectedDataTrigger(
                self.conn_id,
                self.endpoint,
                values["version"],
                values["collection"],
                values["rows"],
                values["since"].total_seconds(),
                values["interval"].total_seconds(),
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=float(self.timeout)),
        )

    def poke(self, context: "Context") -> bool:
        """Count once; whether it is enough."""
        return self.run_in_workspace(context, self._is_enough)

    def execute_complete(self, context: "Context", event: Mapping[str, Any]) -> None:
        """Succeed with the number of rows that the trigger has counted, or fail with what it says."""
        if error := event.get("error"):
            self.fail(context, str(error))
        self.log_progress(f"{event['rows']:,} rows")

    def _arguments(self) -> dict[str, Any]:
        """Return all arguments, read; raise one ArgumentError with the faults of all of them."""
        return read_all(
            {
                "rows": lambda: _at_least_one(whole_number("rows", self.rows)),
                "since": lambda: look_back(self.since),
                "interval": lambda: _interval(self.interval),
                "version": lambda: text("version", self.version or ""),
                "collection": lambda: text("collection", self.collection),
            }
        )

    async def _is_enough(self, workspace: Any) -> bool:
        """Count once; while the storage does not answer it is not enough."""
        values = self._arguments()
        names = {"version": values["version"], "collection": values["collection"]}
        try:
            found = await rows_collected(workspace, endpoint=self.endpoint, **names, since=values["since"])
        except (EvidenceUnavailableError, StorageError, TargetUnavailableError) as error:
            self.log_progress(f"cannot be counted now: {error}")
            return False
        self.log_progress(f"{found:,} of {values['rows']:,} rows")
        return bool(found >= values["rows"])


def _at_least_one(rows: int) -> int:
    """Return a number of rows; raise ArgumentError if it is below 1."""
    if rows < 1:
        raise ArgumentError(f"rows = {rows} is nothing to wait for: give 1 or more")
    return rows


def _interval(value: timedelta | float | str) -> timedelta:
    """Return the time between two counts; raise ArgumentError if it is none."""
    interval = duration("interval", value)
    if interval <= timedelta(0):
        raise ArgumentError(f"interval = {value!r} is no time between two counts: give one above 0, such as '1 min'")
    return interval
