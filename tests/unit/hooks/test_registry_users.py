"""The credentials of a task for registries. With Airflow and real registries: tests/registry/test_build_task.py."""

import asyncio
from typing import Any

import pytest
from airflow.sdk import Connection

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.hooks.registry_users import registry_users, with_azure_sign_in
from controlled_rollout.image import Credentials
from controlled_rollout.workspace import Workspace

ROBOT = Credentials("robot", "hunter2")


def connection(login: str | None = "robot", password: str | None = "hunter2", host: str | None = None) -> Connection:
    return Connection(conn_id="mine", conn_type="docker", login=login, password=password, host=host)


def users(settings: dict[str, Any], **connections: Connection) -> dict[str, Credentials]:
    workspace = Workspace.from_settings(settings)
    return registry_users(workspace, lambda conn_id: connections[conn_id])


def test_each_registry_has_the_user_of_its_connection() -> None:
    credentials = users(
        {
            "registry": "one.example/models",
            "registry_conn_id": "one",
            "shared_registry": "two.example:5000/all",
            "shared_registry_conn_id": "two",
            "base_image": "python:3.11-slim",
            "base_image_conn_id": "hub",
        },
        one=connection(),
        two=connection(login="reader"),
        hub=connection(host="https://index.docker.io/v1/", login="me"),
    )

    assert credentials == {
        "one.example": ROBOT,
        "two.example:5000": Credentials("reader", "hunter2"),
        "docker.io": Credentials("me", "hunter2"),
    }


def test_without_connections_there_are_no_credentials() -> None:
    assert users({"registry": "one.example/models"}) == {}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"registry_conn_id": "one"}, "sets registry_conn_id and no registry"),
        (
            {
                "registry": "one.example/a",
                "registry_conn_id": "one",
                "shared_registry": "one.example/b",
                "shared_registry_conn_id": "two",
            },
            "give one user for a registry",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(WorkspaceError, match=message):
        users(settings, one=connection(), two=connection(login="other"))


def test_an_azure_registry_without_a_password_is_left_to_the_worker_s_identity() -> None:
    settings = {"registry": "mine.azurecr.io/models", "registry_conn_id": "one"}

    assert users(settings, one=connection(login=None, password=None)) == {}
    with pytest.raises(WorkspaceError, match="has no password"):
        users(settings, one=connection(password=None))


def test_only_azure_registries_without_a_user_are_signed_in_to_as_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from controlled_rollout.image.oci import azure_sign_in

    hosts = []

    async def sign_in(host: str, credential: object) -> Credentials:
        hosts.append(host)
        return Credentials("0", f"token of {host}")

    monkeypatch.setattr(azure_sign_in, "sign_in_to_registry", sign_in)
    workspace = Workspace.from_settings(
        {
            "registry": "mine.azurecr.io/models",
            "shared_registry": "all.azurecr.io/models",
            "base_image": "python:3.11",
        }
    )

    credentials = asyncio.run(with_azure_sign_in(workspace, {"mine.azurecr.io": ROBOT}))

    assert hosts == ["all.azurecr.io"]
    assert credentials["mine.azurecr.io"] == ROBOT
