"""The address of a query in the Azure portal: the format that the portal's own button *Copy link to query* has. Pure.

It is not a documented interface: where the portal changes it, the link opens the portal without the query.
"""

import base64
import gzip
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import quote

__all__ = ["portal_query_url"]

PORTAL: Final = "https://portal.azure.com"
BLADE: Final = "Microsoft_OperationsManagementSuite_Workspace/Logs.ReactView"
ONE_DAY: Final = timedelta(days=1)


def portal_query_url(resource_id: str, query: str, *, since: datetime, until: datetime | None, now: datetime) -> str:
    """Return the address at which the portal opens a query of a Log Analytics workspace, with its window of time.

    Args:
        resource_id: The workspace's resource id, `/subscriptions/…`.
        query: The KQL.
        since: When the window begins.
        until: When it ends; None for a window that is still open: it then is the last days, back to `since`.
        now: The present.
    """
    packed = base64.b64encode(gzip.compress(query.encode(), mtime=0)).decode()
    if until is None:
        window = f"P{max(0, (now - since) // ONE_DAY) + 2}D"
    else:
        window = f"{_format_time(since)}/{_format_time(until)}"
    return (
        f"{PORTAL}/#view/{BLADE}/resourceId/{quote(resource_id, safe='')}/source/LogsBlade.AnalyticsShareLinkToQuery"
        f"/q/{quote(packed, safe='')}/timespan/{quote(window, safe='')}"
    )


def _format_time(moment: datetime) -> str:
    """Return a time as ISO 8601 in UTC, without fractions of a second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
