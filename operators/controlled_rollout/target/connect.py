"""Which target a workspace has."""

from controlled_rollout.target.protocol import Target
from controlled_rollout.workspace import Workspace

__all__ = ["connect"]


def connect(workspace: Workspace) -> Target:
    """Return the target of a workspace. The only place that knows them all."""
    if workspace.target == "kubernetes":
        from controlled_rollout.target.kubernetes.target import KubernetesTarget

        return KubernetesTarget(workspace)
    from controlled_rollout.target.local.client import LocalTarget

    return LocalTarget(workspace)
