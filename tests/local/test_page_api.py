"""The page's API in a real Airflow API server under a base path: who may read, and that nothing is changed by it."""

from collections.abc import Iterator

import httpx
import pytest

from controlled_rollout import __version__
from tests.local.airflow_api_server import AirflowApiServer, airflow_api_server

API = "controlled-rollout/api"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AirflowApiServer]:
    """An Airflow API server."""
    with airflow_api_server(tmp_path_factory.mktemp("page-api") / "airflow", {}) as started:
        yield started


def test_anonymous_reader_gets_401_and_no_description_of_the_api(server: AirflowApiServer) -> None:
    with server.client() as client:
        assert client.get(f"{API}/health").status_code == httpx.codes.UNAUTHORIZED
        for path in ("docs", "redoc", "openapi.json"):
            assert client.get(f"{API}/{path}").status_code == httpx.codes.NOT_FOUND


@pytest.mark.parametrize("user", ["admin", "viewer"])
def test_users_who_may_see_plugins_may_read(server: AirflowApiServer, user: str) -> None:
    with server.client(user) as client:
        answer = client.get(f"{API}/health")
    assert (answer.status_code, answer.json()) == (httpx.codes.OK, {"status": "ok", "version": __version__})
