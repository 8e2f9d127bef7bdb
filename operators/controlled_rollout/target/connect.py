"""Which target a workspace has."""

from contextlib import AbstractAsyncContextManager

from controlled_rollout.target.protocol import Target
from controlled_rollout.workspace import Workspace

__all__ = ["connect"]


def connect(workspace: Workspace) -> AbstractAsyncContextManager[Target]:
    """Context manager: open the local or Kubernetes target of a workspace; close it on exit.

    One opening does for a whole step: on Kubernetes every opening signs in, which may run a program such as kubelogin.
    Opening sends no request, so an API server or a supervisor that is away does not keep it from being opened.

    Raises:
        WorkspaceError: The workspace does not lead to a cluster.
    """
    if workspace.target == "kubernetes":
        from controlled_rollout.target.kubernetes.target import KubernetesTarget

        return KubernetesTarget.open(workspace)
    from controlled_rollout.target.local.client import LocalTarget

    return LocalTarget.open(workspace)
