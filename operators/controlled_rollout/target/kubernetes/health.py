"""How a version is, from what the cluster says of its Deployment and its pods. Pure."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.target import ReplicaState, ReplicaStatus, VersionStatus
from controlled_rollout.target.kubernetes.api import Object

__all__ = ["newest_warning", "pod_held_by", "version_status"]

# As many starts that end by themselves, and waiting will not help.
MOST_FAILED_STARTS: Final = 3
# A registry may be away for a moment; what it says of an image that is not there it will say again.
PULL_PATIENCE: Final = timedelta(minutes=1)
NOT_PULLED: Final = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
HOPELESS_PULL: Final = ("InvalidImageName", "ErrImageNeverPull")
HOPELESS_WORDS: Final = (
    "not found",
    "unauthorized",
    "denied",
    "forbidden",
    "invalid reference",
    "no match for platform",
)
# What these events say, the pod's own status says better.
SAID_BETTER: Final = ("BackOff", "Failed", "FailedScheduling")
NOT_CREATED: Final = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


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
    found = [held for pod in pods if not _leaving(pod) if (held := pod_held_by(pod, now))]
    # A pod that cannot start says more than the one beside it that only has not yet.
    found.sort(key=lambda held: not held[1])
    if found:
        return found[0]
    conditions = {one["type"]: one for one in (deployment.get("status") or {}).get("conditions") or []}
    failure = conditions.get("ReplicaFailure")
    if failure and failure["status"] == "True":
        message = f"no pod can be created: {failure.get('message')}"
        return message, "violates PodSecurity" in message
    progressing = conditions.get("Progressing")
    if progressing and progressing["status"] == "False" and progressing.get("reason") == "ProgressDeadlineExceeded":
        return f"no progress: {progressing.get('message')}", True
    return None, False


def pod_held_by(pod: Object, now: datetime | None) -> tuple[str, bool] | None:
    """Return what keeps a pod from running, and whether waiting cannot help; None if nothing does."""
    name = pod["metadata"]["name"]
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            # More nodes may come: only the time-out ends this.
            return f"pod {name} cannot be scheduled: {condition.get('message') or condition.get('reason')}", False
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message") or waiting.get("reason", "")
        if reason in NOT_PULLED:
            hopeless = reason in HOPELESS_PULL or any(word in message.lower() for word in HOPELESS_WORDS)
            return (
                f"pod {name} cannot pull its image {container.get('image')}: {message}",
                hopeless or _age(pod, now) > PULL_PATIENCE,
            )
        if reason in NOT_CREATED:
            return f"pod {name} cannot start its container ({reason}): {message}", _age(pod, now) > PULL_PATIENCE
        ended = _last_exit(container)
        if ended and not container.get("ready"):
            starts = container.get("restartCount", 0) + ("waiting" in (container.get("state") or {}))
            times = f"; failed {starts} times" if starts > 1 else ""
            return f"pod {name} {ended}{times}", reason == "CrashLoopBackOff" and starts >= MOST_FAILED_STARTS
        if "running" in (container.get("state") or {}) and not container.get("ready"):
            probe = "fails its readiness probe" if container.get("started") else "has not passed its startup probe yet"
            return f"pod {name} runs and {probe}", False
    return None


def newest_warning(events: Sequence[Object]) -> str | None:
    """Return what the newest warning among a pod's events says that its status does not; None if there is none."""
    warnings = [one for one in events if one.get("type") == "Warning" and one.get("reason") not in SAID_BETTER]
    newest = max(warnings, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""), default=None)
    return str(newest.get("message", "")).strip() or None if newest else None


def _replica(pod: Object) -> ReplicaStatus:
    containers = (pod.get("status") or {}).get("containerStatuses") or [{}]
    waiting = (containers[0].get("state") or {}).get("waiting") or {}
    if _leaving(pod):
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
        last_exit=_last_exit(containers[0]),
    )


def _last_exit(container: Object) -> str | None:
    for state in ("state", "lastState"):
        if ended := (container.get(state) or {}).get("terminated"):
            reason = ended.get("reason", "Error")
            return f"exited with code {ended.get('exitCode')}" + (f" ({reason})" if reason != "Error" else "")
    return None


def _leaving(pod: Object) -> bool:
    return "deletionTimestamp" in pod["metadata"]


def _age(pod: Object, now: datetime | None) -> timedelta:
    if now is None:
        return timedelta(0)
    return now - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
