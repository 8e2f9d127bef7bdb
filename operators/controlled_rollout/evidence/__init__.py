"""The window: what callers saw of each version, read from the metric store as counts per time bin."""

from controlled_rollout.evidence.model import Evidence, EvidenceSource, Question, Reading, SplitChange
from controlled_rollout.workspace import Workspace

__all__ = ["Evidence", "EvidenceSource", "Question", "Reading", "SplitChange", "evidence_source"]


def evidence_source(workspace: Workspace) -> EvidenceSource:
    """Return where a workspace's evidence is read.

    The workspace's own `telemetry_endpoint` and `telemetry_workspace_id` come first; without them the supervisor of
    the local workspace is asked at every look, so that it may be down now and back at the next one. A workspace on
    Kubernetes has no supervisor: it has to name its metric store.

    Raises:
        WorkspaceError: The settings do not make sense together.
    """
    from controlled_rollout.evidence.local import StateFileEvidence, configured

    asked = (workspace.telemetry_workspace_id, workspace.telemetry_endpoint, workspace.telemetry_token_file)
    if workspace.target == "local" and not any(asked):
        return StateFileEvidence(workspace)
    return configured(workspace)
