"""How a version is, from what the cluster says of its Deployment and its pods. Pure."""

from collections.abc import Sequence
from datetime import datetime

from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.pods import is_terminating, last_exit, pod_problem
from controlled_rollout.target.protocol import ReplicaState, ReplicaStatus, VersionStatus

__all__ = ["version_status"]


def version_status(
    version: str, deployment: Object | None, pods: Sequence[Object], *, now: datetime | None
) -> VersionStatus:
    """Return how a version is; its log is not part of it.

    Args:
        version: The version's name.
        deployment: Its Deployment; None while there is none.
        pods: Its pods, those on their way out included.
        now: The time, for what may last a while before it counts as failed; None leaves that open.
    """
    if deployment is None:
        return VersionStatus(name=version, ready=False, cause="its Deployment is not there yet")
    wanted = deployment["spec"].get("replicas", 1)
    said = deployment.get("status") or {}
    newest = said.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    ready = bool(
        newest
        and wanted > 0
        and said.get("updatedReplicas", 0) == wanted == said.get("replicas", 0)
        and said.get("readyReplicas", 0) == wanted
    )
    cause, failed = (None, False) if ready else _held_by(deployment, pods, now)
    return VersionStatus(
        name=version,
        ready=ready,
        wanted_replicas=wanted,
        failed=failed,
        down_since=_down_since(deployment),
        cause=cause,
        replicas=tuple(_replica(pod) for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))),
    )


def _down_since(deployment: Object) -> datetime | None:
    """Return since when the Deployment's controller has called it unavailable."""
    for one in (deployment.get("status") or {}).get("conditions") or []:
        if one["type"] == "Available" and one["status"] == "False" and "lastTransitionTime" in one:
            return datetime.fromisoformat(one["lastTransitionTime"])
    return None


def _held_by(deployment: Object, pods: Sequence[Object], now: datetime | None) -> tuple[str | None, bool]:
    """Return what keeps a version from being ready, and whether waiting cannot help."""
    problems = [problem for pod in pods if not is_terminating(pod) if (problem := pod_problem(pod, now))]
    if problems:
        # A pod that can never start tells more than another one that has not started yet.
        worst = max(problems, key=lambda problem: problem.is_permanent)
        return worst.message, worst.is_permanent
    conditions = {one["type"]: one for one in (deployment.get("status") or {}).get("conditions") or []}
    failure = conditions.get("ReplicaFailure")
    if failure and failure["status"] == "True":
        message = f"no pod can be created: {failure.get('message')}"
        return message, "violates PodSecurity" in message
    progressing = conditions.get("Progressing")
    if progressing and progressing["status"] == "False" and progressing.get("reason") == "ProgressDeadlineExceeded":
        return f"no progress: {progressing.get('message')}", True
    return None, False


def _replica(pod: Object) -> ReplicaStatus:
    containers = (pod.get("status") or {}).get("containerStatuses") or [{}]
    waiting = (containers[0].get("state") or {}).get("waiting") or {}
    if is_terminating(pod):
        state = ReplicaState.STOPPING
    elif all(container.get("ready") for container in containers):
        state = ReplicaState.READY
    elif waiting.get("reason") == "CrashLoopBackOff":
        state = ReplicaState.WAITING
    else:
        state = ReplicaState.STARTING
    return ReplicaStatus(
        name=pod["metadata"]["name"],
        state=state,
        restarts=containers[0].get("restartCount", 0),
        last_exit=last_exit(containers[0]),
    )
