"""What a version's pods have logged, and what Kubernetes warns of them."""

from collections.abc import Iterable
from typing import Final

from controlled_rollout.cluster.api import Api, ApiError, Object
from controlled_rollout.cluster.kinds import EVENT, POD
from controlled_rollout.cluster.pods import newest_warning
from controlled_rollout.errors import AccessError
from controlled_rollout.target.kubernetes.manifests import CONTAINER
from controlled_rollout.target.kubernetes.names import replica_selector, version_labels
from controlled_rollout.target.kubernetes.startup import is_startup_warning
from controlled_rollout.target.protocol import EndpointStatus, ReplicaState, VersionStatus
from controlled_rollout.visible_text import visible_text
from controlled_rollout.workspace import Workspace

__all__ = ["version_logs", "with_logs"]

STATUS_LINES: Final = 30
# Of one pod, however long the lines are that its model prints.
MOST_BYTES: Final = 1024 * 1024


async def version_logs(api: Api, workspace: Workspace, endpoint: str, version: str, lines: int) -> str:
    """Read the last lines of the logs of a version's pods; the newest pod's lines come last."""
    labels = replica_selector(version_labels(endpoint, version))
    pods = await api.items(POD.path(workspace.namespace), labelSelector=labels)
    text: list[str] = []
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["creationTimestamp"])):
        label = f"[{pod['metadata']['name']}] " if len(pods) > 1 else ""
        log = await _pod_log(api, workspace, pod, lines)
        text += [label + visible_text(line) for line in log.splitlines()]
    return "\n".join(text[-lines:])


async def with_logs(
    api: Api, workspace: Workspace, status: EndpointStatus, versions: Iterable[VersionStatus]
) -> EndpointStatus:
    """Return the status with log lines and the newest Kubernetes warning added to the given versions."""
    changed = dict(status.versions)
    for version in versions:
        try:
            log_tail = await version_logs(api, workspace, status.name, version.name, STATUS_LINES)
        except AccessError:
            log_tail = ""  # what waits for a version need not read what its model prints
        warning = await _newest_warning(api, workspace, version)
        if warning and is_startup_warning(version.cause, warning):
            warning = None
        warning = f"Kubernetes: {warning}" if warning and version.cause else warning
        cause = "; ".join(filter(None, (version.cause, warning))) or None
        changed[version.name] = version.model_copy(update={"log_tail": log_tail, "cause": cause})
    return status.model_copy(update={"versions": changed})


async def _pod_log(api: Api, workspace: Workspace, pod: Object, lines: int) -> str:
    """Read the last lines of a pod's log, or of its previous container's log while it waits to restart."""
    path = POD.path(workspace.namespace, pod["metadata"]["name"], "log")
    containers = (pod.get("status") or {}).get("containerStatuses") or [{}]
    # A container that waits for its next start has logged nothing yet: the one before it says why it ended.
    previous = "waiting" in (containers[0].get("state") or {}) and containers[0].get("restartCount", 0) > 0
    query = {"container": CONTAINER, "previous": str(previous).lower(), "limitBytes": str(MOST_BYTES)}
    while True:
        try:
            log = await api.request("GET", path, query={**query, "tailLines": str(lines)}, accept="*/*")
        except ApiError:
            return ""  # a container that never started has no log
        # What is longer is cut at its end, which is the newest: fewer lines have it. The limit is kept about.
        if len(log) < 0.9 * MOST_BYTES or lines == 1:
            return log.decode(errors="replace")
        lines = max(1, lines // 8)


async def _newest_warning(api: Api, workspace: Workspace, version: VersionStatus) -> str | None:
    """Return the newest warning about the version's first pod that is not ready; None if there is none."""
    pod = next((replica.name for replica in version.replicas if replica.state is not ReplicaState.READY), None)
    if pod is None:
        return None
    fields = f"type=Warning,involvedObject.kind=Pod,involvedObject.name={pod}"
    try:
        return newest_warning(await api.items(EVENT.path(workspace.namespace), fieldSelector=fields))
    except AccessError:
        return None  # a Role that may not read events only makes the message shorter
