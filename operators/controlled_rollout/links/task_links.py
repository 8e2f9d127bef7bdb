"""The buttons of tasks. A task pushes its links when it begins: they are there while it waits or is deferred."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperatorLink
from airflow.sdk.execution_time.xcom import XCom

from controlled_rollout.links.portal import portal_query_url
from controlled_rollout.page_address import endpoint_page_url
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context
    from airflow.sdk.types import TaskInstanceKey

__all__ = ["LINKS", "EndpointLink", "ReportLink", "RequestsLink", "VersionLogLink", "push_links", "push_report"]

# How far before the run the requests begin: what callers saw before is what people compare with.
BEFORE: Final = timedelta(hours=1)
# As many bins over the window as a chart can show.
BINS: Final = 500
LEAST_WIDTH: Final = timedelta(minutes=1)


class TaskLink(BaseOperatorLink):
    """A button whose address the task has pushed; no button where it has pushed none."""

    def get_link(self, operator: "BaseOperator", *, ti_key: "TaskInstanceKey") -> str:
        """Return the address that the task has pushed; empty if it has pushed none."""
        return str(XCom.get_value(ti_key=ti_key, key=self.xcom_key) or "")


class EndpointLink(TaskLink):
    """The button that leads to the endpoint's page in Airflow."""

    name = "Endpoint"


class VersionLogLink(TaskLink):
    """The button that leads to the version's log, on the endpoint's page: the last lines of a replica or a pod."""

    name = "Log of the version"


class RequestsLink(TaskLink):
    """The button that leads to the endpoint's requests in the Azure portal, as a query with the rollout's window."""

    name = "Requests in Azure"


class ReportLink(TaskLink):
    """The button that leads to the task's report in the workspace's storage."""

    name = "Report"


# Of every task that works on an endpoint.
LINKS: Final = (EndpointLink(), VersionLogLink(), RequestsLink())


def push_links(
    context: "Context", workspace: Workspace | None, *, conn_id: str, endpoint: str, version: str, log: Any
) -> None:
    """Push the addresses of a task's buttons; one that cannot be pushed is missing, and changes nothing else.

    Args:
        context: The task's context.
        workspace: The workspace of its connection; None if that cannot be read now.
        conn_id: The connection's id.
        endpoint: The endpoint's name.
        version: The version's name; empty without one.
        log: The task's log.
    """
    try:
        _push(context, EndpointLink(), endpoint_page_url(conn_id, endpoint))
        if version:
            _push(context, VersionLogLink(), endpoint_page_url(conn_id, endpoint, version))
        began = getattr(context.get("dag_run"), "start_date", None)
        if workspace is not None and (address := requests_url(workspace, endpoint, began, now=datetime.now(UTC))):
            _push(context, RequestsLink(), address)
    except Exception as error:  # no link is worth a step
        log.warning("the links of this task are not all there: %s", error)


def push_report(context: "Context", address: str, *, log: Any) -> None:
    """Push where a report is, if a browser can open that: a folder on the workers it cannot.

    Args:
        context: The task's context.
        address: The report's address in the workspace's storage.
        log: The task's log.
    """
    if address.startswith("https://"):
        try:
            _push(context, ReportLink(), address)
        except Exception as error:  # the report is there, and its address in the log
            log.warning("the link to the report is not there: %s", error)


def requests_url(workspace: Workspace, endpoint: str, began: datetime | None, *, now: datetime) -> str | None:
    """Return where the portal shows an endpoint's requests since a run began; None without a resource to ask. Pure.

    Args:
        workspace: The workspace, which names the resource.
        endpoint: The endpoint's name.
        began: When the run began; None for now.
        now: The present.
    """
    if workspace.telemetry_resource_id is None:
        return None
    from controlled_rollout.evidence.kql import overview_query

    since = (began or now) - BEFORE
    width = max(LEAST_WIDTH, timedelta(minutes=(now - since) / BINS // LEAST_WIDTH))
    query = overview_query(endpoint, start=since, end=None, width=width)
    return portal_query_url(workspace.telemetry_resource_id, query, since=since, until=None, now=now)


def _push(context: "Context", link: TaskLink, address: str) -> None:
    """Push the address of a button."""
    context["ti"].xcom_push(key=link.xcom_key, value=address)
