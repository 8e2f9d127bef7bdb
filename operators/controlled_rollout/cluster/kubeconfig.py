"""Sign in to a cluster as kubectl would, without Airflow."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from yaml import YAMLError

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

__all__ = ["open_kubeconfig"]

SERVICE_ACCOUNT_TOKEN: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@asynccontextmanager
async def open_kubeconfig(workspace: Workspace) -> AsyncIterator["ApiClient"]:
    """Context manager: yield a client of a workspace's cluster; close it on exit.

    The cluster is that of the workspace's `kubeconfig`, else of $KUBECONFIG or ~/.kube/config, else the one that this
    process's pod runs in.

    Raises:
        WorkspaceError: None of them leads to a cluster, or the package kubernetes_asyncio is not installed.
    """
    try:
        from kubernetes_asyncio import client, config
    except ImportError as error:
        raise WorkspaceError(
            f"workspace {workspace.name!r} is on Kubernetes and the package kubernetes_asyncio is missing: install "
            "airflow-provider-controlled-rollout with the extra kubernetes"
        ) from error
    if workspace.kubeconfig is not None and not workspace.kubeconfig.is_file():
        raise WorkspaceError(
            f"workspace {workspace.name!r} has the kubeconfig {workspace.kubeconfig}, and there is no such file: name "
            "a file that kubectl can use"
        )
    settings = client.Configuration()
    try:
        await config.load_kube_config(
            config_file=str(workspace.kubeconfig) if workspace.kubeconfig else None,
            context=workspace.kube_context,
            client_configuration=settings,
        )
    except (config.ConfigException, YAMLError, OSError, TypeError, ValueError) as error:
        chosen = workspace.kubeconfig is not None or workspace.kube_context is not None
        if chosen or not await asyncio.to_thread(SERVICE_ACCOUNT_TOKEN.exists):
            # The cause is dropped: its message may quote whole entries of the file, tokens included.
            raise _no_cluster_error(workspace, error) from None
        try:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException as error:
            raise _no_cluster_error(workspace, error) from error
    async with client.ApiClient(settings) as opened:
        yield opened


def _no_cluster_error(workspace: Workspace, error: Exception) -> WorkspaceError:
    """Return the error for settings that do not lead to a cluster; it quotes no content of the kubeconfig file."""
    # A message about the file's content is cut before the first entry that it quotes; YAML errors quote lines.
    message = "" if isinstance(error, YAMLError) else str(error).partition("{")[0].rstrip(" /:")
    return WorkspaceError(
        f"workspace {workspace.name!r} does not lead to a cluster ({message or type(error).__name__}): set kubeconfig "
        "to a file that kubectl can use, or run in a pod with a service account"
    )
