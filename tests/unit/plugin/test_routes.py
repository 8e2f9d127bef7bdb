"""The addresses of the page's API: each has one meaning, whatever the names in it are."""

import pytest
from starlette.routing import Match, Route

from controlled_rollout_ui.api.app import create_app


@pytest.fixture(scope="module")
def routes() -> list[Route]:
    return [route for route in create_app().routes if isinstance(route, Route)]


@pytest.mark.parametrize("workspace", ["ml", "eu/west:ml", "endpoints", "a/endpoints/b"])
@pytest.mark.parametrize("endpoint", ["digits", "endpoints", "versions", "actions"])
def test_an_endpoint_or_a_version_may_be_called_like_a_part_of_an_address(
    routes: list[Route], workspace: str, endpoint: str
) -> None:
    names = {"workspace": workspace, "endpoint": endpoint}
    page = f"/workspaces/{workspace}/endpoints/{endpoint}"
    assert called(routes, page) == ("detail", names)
    assert called(routes, f"{page}/actions") == ("actions", names)
    for version in ("v1a", "endpoints", "versions", "log"):
        assert called(routes, f"{page}/versions/{version}/log") == ("log", {**names, "version": version})


def called(routes: list[Route], path: str) -> tuple[str, dict[str, str]]:
    """Return the name of the function that answers a path, and its arguments."""
    scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
    for route in routes:
        match, found = route.matches(scope)
        if match is Match.FULL:
            return route.name, found["path_params"]
    raise AssertionError(path)
