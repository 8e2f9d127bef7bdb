"""Opens a workspace's cluster through the cncf provider's hook and a connection of the type `kubernetes`."""

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
    from airflow.sdk import Connection
    from kubernetes_asyncio.client import ApiClient

__all__ = ["DEFAULT_CONN_ID", "cluster_conn_id", "cluster_settings", "with_cluster", "with_own_cluster"]

DEFAULT_CONN_ID: Final = "kubernetes_default"
CONN_TYPE: Final = "kubernetes"
SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

# The prefix of the fields in connections of older versions of the cncf provider.
OLD_PREFIX: Final = "extra__kubernetes__"
SWITCHES: Final = ("in_cluster", "disable_verify_ssl")
ACCESS_FIELDS: Final = ("in_cluster", "kube_config_path", "kube_config")


def cluster_conn_id(workspace: Workspace) -> str | None:
    """Return the id of a workspace's Kubernetes connection; None if its target is not Kubernetes."""
    return (workspace.kubernetes_conn_id or DEFAULT_CONN_ID) if workspace.target == "kubernetes" else None


def with_cluster(workspace: Workspace, connection: "Connection") -> Workspace:
    """Return a copy of the workspace that opens its cluster with an Airflow connection.

    Nothing is opened yet, and Airflow is not called again, so that a trigger can open it in its event loop.

    Raises:
        WorkspaceError: The connection is of another type, or its kube config cannot be read.
    """
    if connection.conn_type != CONN_TYPE:
        raise WorkspaceError(
            f"workspace {workspace.name!r} names the Kubernetes connection {connection.conn_id!r}, which is of the "
            f"type {connection.conn_type!r}: name one of the type {CONN_TYPE!r} in kubernetes_conn_id"
        )
    settings = cluster_settings(connection.conn_id, connection.extra_dejson)
    if not any(settings.get(field) for field in ACCESS_FIELDS) and _in_pod():
        settings["in_cluster"] = True
    return _with_open_cluster(workspace, connection.conn_id, settings)


def with_own_cluster(workspace: Workspace) -> Workspace:
    """Return a copy of the workspace that opens the cluster of this process's own pod (it has no connection).

    Raises:
        WorkspaceError: The missing connection is not the default one, or this is no pod with a service account.
    """
    conn_id = cluster_conn_id(workspace)
    if conn_id != DEFAULT_CONN_ID or not _in_pod():
        raise WorkspaceError(
            f"workspace {workspace.name!r} is on Kubernetes and its connection {conn_id!r} does not exist: create it "
            f"with the type {CONN_TYPE!r}, or name another one in kubernetes_conn_id"
        )
    return _with_open_cluster(workspace, DEFAULT_CONN_ID, {"in_cluster": True})


def cluster_settings(conn_id: str, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Kubernetes connection's extras without empty fields; booleans become True or are left out.

    The provider's asynchronous hook takes an empty path for a path and the text "false" for true.

    Raises:
        WorkspaceError: The kube config is neither JSON nor YAML of a mapping; the message has nothing of its content.
    """
    named = {name: value for name, value in extras.items() if not name.startswith(OLD_PREFIX)}
    old = {name.removeprefix(OLD_PREFIX): value for name, value in extras.items() if name.startswith(OLD_PREFIX)}
    settings = {name: value for name, value in {**old, **named}.items() if value not in (None, "")}
    for switch in SWITCHES:
        if str(settings.pop(switch, False)).strip().lower() == "true":
            settings[switch] = True
    if "kube_config" in settings:
        settings["kube_config"] = _kube_config_mapping(conn_id, settings["kube_config"])
    return settings


def _kube_config_mapping(conn_id: str, kube_config: Any) -> dict[str, Any]:
    """Return the kube config of a connection as a mapping, parsed from JSON or YAML text if it is text."""
    content = kube_config
    if isinstance(content, str):
        try:
            content = yaml.safe_load(content)
        except yaml.YAMLError:
            content = None
    if not isinstance(content, dict):
        raise WorkspaceError(
            f"kube_config of the connection {conn_id!r} is neither JSON nor YAML of a kube config: paste the whole "
            "file, or give its path as kube_config_path"
        )
    return content


def _in_pod() -> bool:
    """Return whether this process runs in a pod with a mounted service account token."""
    return SERVICE_ACCOUNT_TOKEN.is_file()


def _with_open_cluster(workspace: Workspace, conn_id: str, settings: dict[str, Any]) -> Workspace:
    """Return a copy of the workspace whose `open_cluster` uses these settings of a connection."""
    return workspace.model_copy(
        update={"open_cluster": functools.partial(_open_cluster, workspace.name, conn_id, settings)}
    )


@asynccontextmanager
async def _open_cluster(workspace: str, conn_id: str, settings: Mapping[str, Any]) -> AsyncIterator["ApiClient"]:
    """Context manager: open the API client of a cluster; on exit close it.

    Every opening runs the program that signs in, if the kube config names one (as for AKS with Entra ID).
    """
    # In a thread: importing the client would block the event loop for seconds.
    hook = await asyncio.to_thread(_kubernetes_hook, workspace, conn_id, dict(settings))
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(hook.get_conn())
        except Exception as error:  # the reader of a kube config raises errors of many types
            raise WorkspaceError(
                f"workspace {workspace!r} cannot open its cluster with the connection {conn_id!r}"
                f"{_kube_config_path_text(settings)}: {_without_secrets(error)}"
            ) from None
        yield client


def _kubernetes_hook(workspace: str, conn_id: str, settings: dict[str, Any]) -> "AsyncKubernetesHook":
    """Return the cncf provider's asynchronous hook for these settings; raise WorkspaceError if a package is missing."""
    try:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import AsyncKubernetesHook
        from kubernetes_asyncio.client import Configuration
    except ImportError as error:
        raise WorkspaceError(
            f"workspace {workspace!r} is on Kubernetes and a package is missing ({error.name}): install "
            "airflow-provider-controlled-rollout with the extra kubernetes"
        ) from error
    configuration = Configuration()
    if settings.get("disable_verify_ssl"):
        # The asynchronous hook ignores this setting.
        configuration.verify_ssl = False
    return AsyncKubernetesHook(conn_id=conn_id, connection_extras=settings, client_configuration=configuration)


def _kube_config_path_text(settings: Mapping[str, Any]) -> str:
    """Return the kube config's path in brackets for an error message; empty if none is set."""
    path = settings.get("kube_config_path")
    return f" (kube_config_path {path}{'' if Path(path).exists() else ', which does not exist here'})" if path else ""


def _without_secrets(error: Exception) -> str:
    """Return an error's message up to the first brace: after it, some messages quote the kube config."""
    return str(error).partition("{")[0].strip() or type(error).__name__
