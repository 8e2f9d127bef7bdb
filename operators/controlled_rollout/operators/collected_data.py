"""The task that checks what a version has collected, without a rollout: every night, say."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator

from controlled_rollout.arguments import duration, read_all, text, whole_number
from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError
from controlled_rollout.expectations import Suite, read_suite
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.links.task_links import LINKS, ReportLink, push_report
from controlled_rollout.operators.base import EngineCalls, task_of
from controlled_rollout.triggers.collected_data import control_of
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["LOOK_BACK", "CollectedDataGateOperator", "look_back"]

LOOK_BACK: Final = timedelta(days=1)
MAX_ROWS: Final = 1_000_000
LONGEST_NAME: Final = 120
# Each day has a folder of its own that is listed.
LONGEST: Final = timedelta(days=366)


class CollectedDataGateOperator(EngineCalls, BaseOperator):
    """Checks what a version has collected by a suite of Great Expectations, and fails if one is not fulfilled.

    It reads all rows of the time at once, so expectations about all rows together (a mean, a row count) are evaluated
    too. What cannot be evaluated (no rows, a missing column, an exception inside an expectation) fails the task as
    well, and is retried. A report for people is written into the workspace's storage in any case; the task links to it.

    Returns the report's address.

    Args:
        endpoint: The endpoint's name.
        expectations: The suite: an object of Great Expectations, its JSON as a mapping, `{"inputs": suite}`, or the
            path of a JSON file, relative to the DAG file's folder.
        version: The version; None or an empty text for the endpoint's control.
        since: How far back the requests reach, 366 days at most: a timedelta, seconds, or text such as `1 d`.
        max_rows: Of more rows those of as many requests, drawn by their ids, are evaluated.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What every operator takes.
    """

    template_fields = ("conn_id", "endpoint", "version", "expectations", "since", "max_rows")
    operator_extra_links = (*LINKS, ReportLink())
    ui_color = "#dcefe3"

    def __init__(
        self,
        *,
        endpoint: str,
        expectations: Any,
        version: str | None = None,
        since: timedelta | float | str = LOOK_BACK,
        max_rows: int | str = MAX_ROWS,
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.endpoint = endpoint
        # An object of the library is not what Airflow can store.
        self.expectations = expectations if isinstance(expectations, str) else read_suite(expectations).model_dump()
        self.version = version
        self.since = since
        self.max_rows = max_rows
        self.conn_id = conn_id

    def execute(self, context: "Context") -> str:
        """Evaluate the suite, write the report, and fail if an expectation is not fulfilled."""
        return self.run_in_workspace(context, lambda workspace: self._check(context, workspace))

    async def _check(self, context: "Context", workspace: Workspace) -> str:
        """Evaluate the suite on the version's data, write the report, and return its address."""
        from controlled_rollout.evidence.collected.version_data import validate_version
        from controlled_rollout.storage import open_storage

        folder = Path(context["dag"].folder)
        values = read_all(
            {
                "expectations": lambda: _suite(self.expectations, folder),
                "since": lambda: look_back(self.since),
                "max_rows": lambda: whole_number("max_rows", self.max_rows),
                "version": lambda: text("version", self.version or ""),
            }
        )
        version = values["version"] or await control_of(workspace, self.endpoint)
        until = datetime.now(UTC)
        report = await asyncio.to_thread(
            validate_version,
            workspace,
            self.endpoint,
            version,
            values["expectations"],
            since=until - values["since"],
            until=until,
            max_rows=values["max_rows"],
        )
        storage = open_storage(workspace)
        base = f"reports/{self.endpoint}/{version}/{_file_name(task_of(context))}"
        await asyncio.to_thread(storage.put, f"{base}.md", report.as_markdown().encode())
        await asyncio.to_thread(storage.put, f"{base}.html", report.as_html().encode())
        self.report = storage.address_of(f"{base}.html")
        push_report(context, self.report, log=self.log)
        # Not the report itself: it has values that callers sent, and more people read logs.
        self.log_progress(f"{report.headline}: {self.report}")
        of = f"of {self.endpoint}/{version}"
        if report.failed:
            self.fail(context, f"{len(report.failed)} expectations {of} fail: {report.sentences(report.failed)}")
        if report.unseen:
            raise EvidenceUnavailableError(
                f"{len(report.unseen)} expectations {of} could not be evaluated: {report.sentences(report.unseen)}"
            )
        return self.report


def _file_name(task: str) -> str:
    """Return what the report of a task of one run is called: no other task's, however long and odd the names are."""
    readable = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "-_") else "-" for letter in task)
    return f"{readable[:LONGEST_NAME]}-{hashlib.sha256(task.encode()).hexdigest()[:8]}"


def _suite(expectations: Any, folder: Path) -> Suite:
    """Return the suite that an argument is, or that is in the file that it names."""
    if isinstance(expectations, str):
        return read_suite(folder / Path(expectations).expanduser())
    return read_suite(expectations)


def look_back(value: timedelta | float | str) -> timedelta:
    """Return how far back requests may have arrived; raise ArgumentError if that is nothing, or too far."""
    since = duration("since", value)
    if not timedelta(0) < since <= LONGEST:
        raise ArgumentError(f"since = {value!r} is not a time up to {LONGEST.days} days: give one such as '1 d'")
    return since
