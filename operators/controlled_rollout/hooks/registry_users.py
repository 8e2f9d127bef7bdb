"""Reads the users of the registries from Airflow's connections."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from controlled_rollout.image import Credentials

__all__ = ["credentials_from", "registry_users", "with_azure_sign_in"]

SETTINGS: Final = {
    "registry_conn_id": "registry",
    "shared_registry_conn_id": "shared_registry",
    "base_image_conn_id": "base_image",
}


def registry_users(workspace: Workspace, connection: "Callable[[str], Connection]") -> "dict[str, Credentials]":
    """Return the credentials of each registry whose connection the workspace names, by registry host.

    Args:
        workspace: Its `registry_conn_id`, `shared_registry_conn_id` and `base_image_conn_id` name connections of any
            type with a login and a password.
        connection: Returns the connection of an id; Airflow masks its password in logs from then on.

    Raises:
        WorkspaceError: A connection is for another registry than the workspace's, has no login or no password, or two
            connections have different users for one registry.
    """
    from controlled_rollout.image.oci.azure_sign_in import is_azure_registry
    from controlled_rollout.image.reference import registry_host

    users: dict[str, Credentials] = {}
    for setting, registry in SETTINGS.items():
        conn_id: str | None = getattr(workspace, setting)
        if conn_id is None:
            continue
        prefix: str | None = getattr(workspace, registry)
        if not prefix:
            raise WorkspaceError(f"workspace {workspace.name!r} sets {setting} and no {registry}: set both or neither")
        host = registry_host(prefix)
        of_registry = connection(conn_id)
        if is_azure_registry(host) and not (of_registry.login or of_registry.password):
            continue  # `with_azure_sign_in` adds the worker's own identity
        user = credentials_from(of_registry, host)
        if users.setdefault(host, user) != user:
            raise WorkspaceError(
                f"workspace {workspace.name!r}: connection {conn_id!r} ({setting}) has another user for {host} than "
                "the connection before it: give one user for a registry"
            )
    return users


def credentials_from(connection: "Connection", host: str) -> "Credentials":
    """Return a connection's login and password as the credentials for a registry.

    Raises:
        WorkspaceError: The connection is for another registry, or has no login or no password.
    """
    from controlled_rollout.image import Credentials
    from controlled_rollout.image.reference import host_of_registry_url

    named = host_of_registry_url(connection.host or "")
    if named and named != host:
        raise WorkspaceError(
            f"connection {connection.conn_id!r} is for the registry {named}, but the workspace's registry is {host}: "
            "name another connection, or correct its host"
        )
    if not connection.login or not connection.password:
        raise WorkspaceError(
            f"connection {connection.conn_id!r} has no {'password' if connection.login else 'login'}: both are needed "
            f"to sign in to {host}"
        )
    return Credentials(connection.login, connection.password)


async def with_azure_sign_in(workspace: Workspace, users: "Mapping[str, Credentials]") -> "dict[str, Credentials]":
    """Return the credentials, plus the worker's own identity for an Azure Container Registry that has none.

    Its token is masked in every log of this task from then on.

    Raises:
        ImageError: There is no such identity, or a registry does not accept it.
    """
    from airflow.sdk.log import mask_secret

    from controlled_rollout.image.oci.azure_sign_in import with_azure_credentials

    all_users = await with_azure_credentials(users, [getattr(workspace, registry) for registry in SETTINGS.values()])
    for user in all_users.values():
        mask_secret(user.password)
    return all_users
