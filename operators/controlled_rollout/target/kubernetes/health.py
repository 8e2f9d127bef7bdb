"""The status of a version, from its Deployment and its pods. Pure."""

from collections.abc import Sequence
from datetime import datetime

from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.pods import is_terminating, last_exit, pod_problem
from controlled_rollout.target.kubernetes.annotations import SCALED
from controlled_rollout.target.kubernetes.drift import replicas_writer
from controlled_rollout.target.kubernetes.scaling import floor_of
from controlled_rollout.target.kubernetes.startup import startup_problem
from controlled_rollout.target.protocol import ReplicaState, ReplicaStatus, VersionStatus

__all__ = ["awaited_replicas", "version_status"]


def version_status(
    version: str, deployment: Object | None, pods: Sequence[Object], *, at_start: int, now: datetime | None
) -> VersionStatus:
    """Return the status of a version from its Deployment and pods, without its log.

    Args:
        version: The version's name.
        deployment: Its Deployment; None while there is none.
        pods: Its pods, terminating ones included.
        at_start: With how many replicas its settings let it start.
        now: The time, for faults that count as failures only after a while; None if that does not matter.
    """
    if deployment is None:
        return VersionStatus(name=version, ready=False, cause="its Deployment does not exist yet")
    wanted = deployment["spec"].get("replicas", 1)
    status = deployment.get("status") or {}
    is_observed = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    awaited = awaited_replicas(deployment, at_start)
    running = status.get("replicas", 0)
    ready = bool(
        is_observed
        and 0 < awaited <= running <= wanted
        and status.get("updatedReplicas", 0) == running
        and status.get("readyReplicas", 0) >= awaited
    )
    cause, failed = (None, False) if ready else _readiness_problem(deployment, pods, now)
    if wanted == 0:
        # Whoever did it may want it so: no step sets it back, and waiting does not help.
        writer = replicas_writer(deployment) or "an unknown writer"
        cause, failed = f"it is scaled to 0 replicas, by {writer}: scale its Deployment up again", True
    return VersionStatus(
        name=version,
        ready=ready,
        wanted_replicas=wanted,
        failed=failed,
        down_since=_down_since(deployment, pods),
        cause=cause,
        scaling=(deployment["metadata"].get("annotations") or {}).get(SCALED),
        replicas=tuple(_replica_status(pod) for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))),
    )


def awaited_replicas(deployment: Object, at_start: int) -> int:
    """Return for how many replicas a step waits: all that a Deployment should have, but for those of the load alone.

    Args:
        deployment: The version's Deployment.
        at_start: With how many replicas its settings let it start.
    """
    wanted = int(deployment["spec"].get("replicas", 1))
    annotations = deployment["metadata"].get("annotations") or {}
    if SCALED not in annotations:
        return wanted
    floor = floor_of(deployment)
    return min(wanted, max(at_start, floor.replicas if floor else 0))


def _down_since(deployment: Object, pods: Sequence[Object]) -> datetime | None:
    """Return since when the Deployment has not been available; None if it is.

    It is not available either while one replica of several is missing, such as an added one for which there is no node:
    so the version is down no longer than its last ready pod has been unready.
    """
    available = _conditions_by_type(deployment).get("Available")
    if not available or available["status"] != "False" or "lastTransitionTime" not in available:
        return None
    since = datetime.fromisoformat(available["lastTransitionTime"])
    return max([since, *(moment for pod in pods if (moment := _unready_since(pod)) is not None)])


def _unready_since(pod: Object) -> datetime | None:
    """Return when a pod that was ready before stopped being ready; None if it is ready, or never was."""
    conditions = _conditions_by_type(pod)
    changed = [
        datetime.fromisoformat(condition["lastTransitionTime"])
        for kind in ("Initialized", "Ready")
        if (condition := conditions.get(kind)) and condition.get("lastTransitionTime")
    ]
    # A pod's condition Ready is False from the beginning, and has a later time only if it was True in between.
    if len(changed) < 2 or changed[1] <= changed[0] or conditions["Ready"]["status"] == "True":
        return None
    return changed[1]


def _readiness_problem(deployment: Object, pods: Sequence[Object], now: datetime | None) -> tuple[str | None, bool]:
    """Return why a version is not ready (None if unknown), and whether the problem is permanent."""
    problems = [
        problem
        for pod in pods
        if not is_terminating(pod) and (problem := startup_problem(pod, now) or pod_problem(pod, now))
    ]
    if problems:
        # A pod that can never start tells more than another one that has not started yet.
        worst = max(problems, key=lambda problem: problem.is_permanent)
        return worst.message, worst.is_permanent
    conditions = _conditions_by_type(deployment)
    failure = conditions.get("ReplicaFailure")
    if failure and failure["status"] == "True":
        message = f"no pod can be created: {failure.get('message')}"
        return message, "violates PodSecurity" in message
    progressing = conditions.get("Progressing")
    if progressing and progressing["status"] == "False" and progressing.get("reason") == "ProgressDeadlineExceeded":
        return f"no progress: {progressing.get('message')}", True
    return None, False


def _conditions_by_type(resource: Object) -> dict[str, Object]:
    """Return the status conditions of a Deployment or pod by type."""
    conditions = (resource.get("status") or {}).get("conditions") or []
    return {condition["type"]: condition for condition in conditions}


def _replica_status(pod: Object) -> ReplicaStatus:
    """Return the status of one replica from its pod."""
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
