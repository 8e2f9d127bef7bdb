"""Evidence per time bin: what callers saw of each version, from the metric store, and what versions have collected."""

from controlled_rollout.errors import WorkspaceError
from controlled_rollout.evidence.query import (
    CLOCKS_DIFFER,
    CountedPeriod,
    Evidence,
    EvidenceQuery,
    EvidenceSource,
    RouterCounts,
    SplitChange,
)
from controlled_rollout.evidence.window import EvidenceWindow
from controlled_rollout.workspace import Workspace

__all__ = [
    "CLOCKS_DIFFER",
    "CountedPeriod",
    "Evidence",
    "EvidenceQuery",
    "EvidenceSource",
    "EvidenceWindow",
    "RouterCounts",
    "SplitChange",
    "evidence_source",
    "metric_store_source",
]


def evidence_source(workspace: Workspace) -> EvidenceSource:
    """Return the evidence of a workspace: its metric store, with the collected data that a gate's columns name.

    Raises:
        WorkspaceError: The settings contradict each other, or one is missing.
    """
    from controlled_rollout.evidence.collected.part_files import COPIES_FOLDER
    from controlled_rollout.evidence.collected.source import CollectedEvidence

    cache = workspace.cache_folder / COPIES_FOLDER
    return CollectedEvidence(
        metric_store_source(workspace),
        workspace.storage_place,
        cache,
        engine=workspace.data_engine,
        spark_remote=workspace.spark_remote,
    )


def metric_store_source(workspace: Workspace) -> EvidenceSource:
    """Return the metric store that a workspace's settings name: Prometheus, Log Analytics or the local store.

    `prometheus_url` chooses Prometheus; otherwise it is a Log Analytics workspace, the one that `telemetry_endpoint`
    and `telemetry_workspace_id` name. Without them it is the store of the local workspace's supervisor, which is found
    at every look: it may be down now and back at the next one. A workspace on Kubernetes has to name its store.

    Raises:
        WorkspaceError: The settings contradict each other, or one is missing.
    """
    from controlled_rollout.evidence.local import StateFileEvidence, configured_log_analytics
    from controlled_rollout.evidence.prometheus import PrometheusEvidence

    telemetry_settings = (
        workspace.telemetry_workspace_id, workspace.telemetry_endpoint, workspace.telemetry_token_file,
    )  # fmt: skip
    if workspace.prometheus_url:
        if any(telemetry_settings):
            raise WorkspaceError(
                f"workspace {workspace.name!r} sets prometheus_url and a telemetry store (telemetry_*): evidence comes "
                "from one of them, leave the other out"
            )
        return PrometheusEvidence(workspace.prometheus_url, workspace.prometheus_selector)
    if workspace.target == "local" and not any(telemetry_settings):
        return StateFileEvidence(workspace)
    return configured_log_analytics(workspace)
