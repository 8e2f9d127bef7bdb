"""Who a task is to the registries: connections become users, and no secret travels further than to the registry."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from controlled_rollout.image import Credentials

__all__ = ["registry_users", "signed_in", "user_of"]

SETTINGS: Final = {
    "registry_conn_id": "registry",
    "shared_registry_conn_id": "shared_registry",
    "base_image_conn_id": "base_image",
}
# What connections of the type docker call Docker Hub.
DOCKER_HUB: Final = {"index.docker.io": "docker.io", "registry-1.docker.io": "docker.io", "hub.docker.com": "docker.io"}


def registry_users(workspace: Workspace, connection: "Callable[[str], Connection]") -> "dict[str, Credentials]":
    """Return the user of each registry for which the workspace names a connection, by host.

    Args:
        workspace: Its `registry_conn_id`, `shared_registry_conn_id` and `base_image_conn_id` name connections of any
            type with a login and a password.
        connection: Reads one; Airflow masks its password in logs from then on.

    Raises:
        WorkspaceError: A connection is for a registry that the workspace does not name, lacks login or password, or
            two of them mean different users of one registry.
    """
    from controlled_rollout.image.oci.azure_sign_in import is_azure_registry
    from controlled_rollout.image.reference import registry_host

    users: dict[str, Credentials] = {}
    for setting, registry in SETTINGS.items():
        conn_id: str | None = getattr(workspace, setting)
        if conn_id is None:
            continue
        place: str | None = getattr(workspace, registry)
        if not place:
            raise WorkspaceError(f"workspace {workspace.name!r} sets {setting} and no {registry}: set both or neither")
        host = registry_host(place)
        found = connection(conn_id)
        if is_azure_registry(host) and not (found.login or found.password):
            continue  # signed in to as the worker's own identity
        user = user_of(found, host)
        if users.setdefault(host, user) != user:
            raise WorkspaceError(
                f"workspace {workspace.name!r}: the connection {conn_id!r} ({setting}) is another user of {host} than "
                "the connection before it: a registry is spoken to as one user"
            )
    return users


def user_of(connection: "Connection", host: str) -> "Credentials":
    """Return the user that a connection holds.

    Raises:
        WorkspaceError: It is for another registry, or has no login or no password.
    """
    from controlled_rollout.image import Credentials

    named = _named_host(connection.host)
    if named and named != host:
        raise WorkspaceError(
            f"connection {connection.conn_id!r} is for the registry {named}, and the workspace means {host}: nothing "
            "was sent there. Name another connection, or correct its host"
        )
    if not connection.login or not connection.password:
        raise WorkspaceError(
            f"connection {connection.conn_id!r} has no {'password' if connection.login else 'login'}: both are needed "
            f"to sign in to {host}"
        )
    return Credentials(connection.login, connection.password)


def _named_host(address: str | None) -> str:
    """Return the host of a connection, which some types write as an address."""
    host = (address or "").partition("://")[2] or address or ""
    host = host.partition("/")[0]
    return DOCKER_HUB.get(host, host)


async def signed_in(workspace: Workspace, users: "Mapping[str, Credentials]") -> "dict[str, Credentials]":
    """Return the users, and the worker's own identity where an Azure Container Registry has no connection.

    The token that stands for a password is masked in every log of this task from then on.

    Raises:
        ImageError: There is no such identity, or a registry does not let it in.
    """
    from airflow.sdk.log import mask_secret

    from controlled_rollout.image.oci.azure_sign_in import with_azure_credentials

    found = await with_azure_credentials(users, [getattr(workspace, registry) for registry in SETTINGS.values()])
    for user in found.values():
        mask_secret(user.password)
    return found
