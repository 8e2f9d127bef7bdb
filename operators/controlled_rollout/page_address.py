"""Where the page of an endpoint is in Airflow, for links and notifications."""

from urllib.parse import quote, urlencode

__all__ = ["endpoint_page_url"]

# Airflow's route to the plugin's page.
ROUTE = "plugin/controlled-rollout"


def endpoint_page_url(workspace: str, endpoint: str, version: str = "") -> str:
    """Return the address of an endpoint's page, relative to Airflow's base address and without a leading slash.

    Airflow's own pages resolve it by their base element, so that it is right under a base path as well.

    Args:
        workspace: The id of the workspace's connection.
        endpoint: The endpoint's name.
        version: The version whose log the page shows; empty for none.
    """
    page = f"{ROUTE}/{quote(workspace, safe='')}/{quote(endpoint, safe='')}"
    return f"{page}?{urlencode({'version': version})}" if version else page
