"""The window: what callers saw of each version, read from the metric store as counts per time bin."""

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.evidence.model import Evidence, EvidenceSource, Question, Reading, SplitChange
from controlled_rollout.evidence.window import EvidenceWindow
from controlled_rollout.workspace import Workspace

__all__ = ["Evidence", "EvidenceSource", "EvidenceWindow", "Question", "Reading", "SplitChange", "evidence_source"]


def evidence_source(workspace: Workspace) -> EvidenceSource:
    """Return where a workspace's evidence is read.

    `prometheus_url` chooses Prometheus, otherwise it is a Log Analytics workspace: the one that `telemetry_endpoint`
    and `telemetry_workspace_id` name. Without them the supervisor of the local workspace is asked at every look: it
    may be down now and back at the next one. A workspace on Kubernetes has no supervisor and has to name its store.

    Raises:
        WorkspaceError: The settings do not make sense together.
    """
    from controlled_rollout.evidence.local import StateFileEvidence, configured
    from controlled_rollout.evidence.prometheus import PrometheusEvidence

    asked = (workspace.telemetry_workspace_id, workspace.telemetry_endpoint, workspace.telemetry_token_file)
    if workspace.prometheus_url:
        if any(asked):
            raise WorkspaceError(
                f"workspace {workspace.name!r} sets prometheus_url and a telemetry store (telemetry_*): evidence comes "
                "from one of them, leave the other out"
            )
        return PrometheusEvidence(workspace.prometheus_url, workspace.prometheus_selector)
    if workspace.target == "local" and not any(asked):
        return StateFileEvidence(workspace)
    return configured(workspace)
