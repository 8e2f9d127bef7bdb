"""The window: what callers saw of each version, read from the metric store as counts per time bin."""

from controlled_rollout.evidence.model import Evidence, EvidenceSource, Question, SplitChange
from controlled_rollout.workspace import Workspace

__all__ = ["Evidence", "EvidenceSource", "Question", "SplitChange", "evidence_source"]


def evidence_source(workspace: Workspace) -> EvidenceSource:
    """Return where a workspace's evidence is read.

    The workspace's own `telemetry_endpoint` and `telemetry_workspace_id` come first; without them the supervisor of
    the local workspace is asked at every look, so that it may be down now and back at the next one.

    Raises:
        WorkspaceError: The settings do not make sense together.
    """
    from controlled_rollout.evidence.local import StateFileEvidence, configured

    if workspace.telemetry_workspace_id or workspace.telemetry_endpoint:
        return configured(workspace)
    return StateFileEvidence(workspace)
