import base64
import gzip
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlled_rollout.evidence.kql import overview_query
from controlled_rollout.links.portal import portal_query_url
from controlled_rollout.links.task_links import requests_url
from controlled_rollout.workspace import Workspace

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
RESOURCE = (
    "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/ml (test)"
    "/providers/Microsoft.OperationalInsights/workspaces/telemetry"
).replace(" ", "_")


def parts(url: str) -> dict[str, str]:
    """Return the parts of an address of the portal by their names, decoded."""
    start, _, rest = url.partition("/Logs.ReactView/")
    assert start == "https://portal.azure.com/#view/Microsoft_OperationsManagementSuite_Workspace"
    names = rest.split("/")
    decoded = {name: unquote(value) for name, value in zip(names[::2], names[1::2], strict=True)}
    decoded["q"] = gzip.decompress(base64.b64decode(decoded["q"], validate=True)).decode()
    return decoded


@given(st.text(max_size=2_000))
def test_any_query_arrives_in_the_portal_as_it_was(query: str) -> None:
    query = query.encode(errors="replace").decode()
    url = portal_query_url(RESOURCE, query, since=NOW, until=None, now=NOW)
    assert parts(url)["q"] == query
    assert url.isascii()
    assert not set(url) & set(" \"'<>|")


def test_an_ended_window_has_its_ends_and_an_open_one_reaches_back_to_its_begin() -> None:
    since = NOW - timedelta(days=3, hours=2)
    ended = portal_query_url(RESOURCE, "AppRequests", since=since, until=NOW, now=NOW)
    is_open = portal_query_url(RESOURCE, "AppRequests", since=since, until=None, now=NOW)
    assert parts(ended)["timespan"] == "2026-11-26T10:00:00Z/2026-11-29T12:00:00Z"
    assert parts(is_open)["timespan"] == "P5D"
    assert parts(ended)["resourceId"] == RESOURCE
    assert parts(ended)["source"] == "LogsBlade.AnalyticsShareLinkToQuery"


def test_the_portal_gets_the_endpoint_s_requests_since_an_hour_before_the_run() -> None:
    workspace = Workspace.from_settings({"telemetry_resource_id": RESOURCE})
    began = NOW - timedelta(days=2)
    url = requests_url(workspace, "digits", began, now=NOW)
    assert url is not None
    since = began - timedelta(hours=1)
    assert parts(url)["q"] == overview_query("digits", start=since, end=None, width=timedelta(minutes=5))
    assert "datetime(2026-11-27T11:00:00.000000Z) and TimeGenerated < now()" in parts(url)["q"]
    assert requests_url(Workspace.from_settings({}), "digits", began, now=NOW) is None


@pytest.mark.parametrize(
    "given", ["telemetry", "/subscriptions/x/resourceGroups/g", f"{RESOURCE}/tables/x", f"{RESOURCE}?sig=secret"]
)
def test_what_is_no_resource_of_log_analytics_is_refused_without_being_shown(given: str) -> None:
    from controlled_rollout.errors import WorkspaceError

    with pytest.raises(WorkspaceError, match="telemetry_resource_id: give the resource id") as refused:
        Workspace.from_settings({"telemetry_resource_id": given})
    assert "secret" not in str(refused.value)
