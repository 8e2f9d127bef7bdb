"""What keeps a pod from running, read from its status and its events. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from controlled_rollout.cluster.api import Object

__all__ = ["MAX_FAILED_STARTS", "PodProblem", "is_terminating", "last_exit", "newest_warning", "pod_problem"]

# After so many failed starts waiting does not help.
MAX_FAILED_STARTS: Final = 3
# A registry may be unavailable for a moment; after this long a pull that fails will go on failing.
PULL_PATIENCE: Final = timedelta(minutes=1)
PULL_REASONS: Final = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "RegistryUnavailable",
)
PERMANENT_PULL_REASONS: Final = ("InvalidImageName", "ErrImageNeverPull")
PERMANENT_PULL_WORDS: Final = (
    "not found",
    "unauthorized",
    "denied",
    "forbidden",
    "invalid reference",
    "no match for platform",
)
NOT_CREATED_REASONS: Final = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
# Events whose cause the pod's status describes better.
COVERED_BY_STATUS: Final = ("BackOff", "Failed", "FailedScheduling")


@dataclass(frozen=True)
class PodProblem:
    """What keeps a pod from running.

    Attributes:
        message: A description that names the pod.
        is_permanent: Whether waiting does not help.
    """

    message: str
    is_permanent: bool


def pod_problem(pod: Object, now: datetime | None) -> PodProblem | None:
    """Return what keeps a pod from running, from its status; None if nothing does.

    Args:
        pod: The pod.
        now: The time, by which a problem may have lasted too long; None if that is not to count.
    """
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    since: str | None = None
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            # Nodes may be added: only the time-out ends this.
            why = condition.get("message") or condition.get("reason")
            return PodProblem(f"pod {name} cannot be scheduled: {why}", is_permanent=False)
        if condition["type"] == "PodReadyToStartContainers" and condition["status"] == "True":
            since = condition.get("lastTransitionTime")
    for container in (*_sidecar_statuses(pod), *(status.get("containerStatuses") or [])):
        if problem := _container_problem(name, container, _pod_age(pod, now)):
            return problem
        if since and _is_being_created(container):
            # Sandbox, network and volumes are there: what is left to do is to pull the image.
            pulling = f"has been pulling its image {container.get('image')} since {_clock_time(since)}"
            text = f"pod {name} {pulling}: the registry has not answered yet, or the image is large"
            return PodProblem(text, is_permanent=False)
    return None


def _sidecar_statuses(pod: Object) -> list[Object]:
    """Return the statuses of a pod's native sidecars, without which its other containers do not start."""
    init_containers = (pod.get("spec") or {}).get("initContainers") or []
    sidecars = {one["name"] for one in init_containers if one.get("restartPolicy") == "Always"}
    return [one for one in (pod.get("status") or {}).get("initContainerStatuses") or [] if one["name"] in sidecars]


def _container_problem(pod_name: str, container: Object, age: timedelta) -> PodProblem | None:
    """Return what keeps a pod's container from being ready; None if nothing does."""
    state = container.get("state") or {}
    waiting = state.get("waiting") or {}
    reason = waiting.get("reason", "")
    message = waiting.get("message") or reason
    if reason in PULL_REASONS:
        permanent = reason in PERMANENT_PULL_REASONS or any(word in message.lower() for word in PERMANENT_PULL_WORDS)
        return PodProblem(
            f"pod {pod_name} cannot pull its image {container.get('image')}: {message}",
            is_permanent=permanent or age > PULL_PATIENCE,
        )
    if reason in NOT_CREATED_REASONS:
        text = f"pod {pod_name} cannot start its container ({reason}): {message}"
        return PodProblem(text, is_permanent=age > PULL_PATIENCE)
    ready = container.get("ready")
    if (ended := last_exit(container)) and not ready:
        starts = container.get("restartCount", 0) + ("waiting" in state)
        times = f"; failed {starts} times" if starts > 1 else ""
        permanent = reason == "CrashLoopBackOff" and starts >= MAX_FAILED_STARTS
        return PodProblem(f"pod {pod_name} {ended}{times}", is_permanent=permanent)
    if "running" in state and not ready:
        probe = "fails its readiness probe" if container.get("started") else "has not passed its startup probe yet"
        return PodProblem(f"pod {pod_name} runs and {probe}", is_permanent=False)
    return None


def _is_being_created(container: Object) -> bool:
    """Return whether a container waits for its first start, for no reason that Kubernetes reports."""
    waiting = (container.get("state") or {}).get("waiting") or {}
    return waiting.get("reason") == "ContainerCreating" and not container.get("restartCount", 0)


def _clock_time(timestamp: str) -> str:
    """Return the time of day of a Kubernetes timestamp, which does not change from look to look as an age would."""
    return f"{datetime.fromisoformat(timestamp).astimezone(UTC):%H:%M:%S} UTC"


def newest_warning(events: Sequence[Object]) -> str | None:
    """Return the newest warning among events that says more than the pod's status; None if there is none."""
    warnings = [
        event for event in events if event.get("type") == "Warning" and event.get("reason") not in COVERED_BY_STATUS
    ]
    newest = max(
        warnings, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""), default={}
    )
    return str(newest.get("message", "")).strip() or None


def last_exit(container: Object) -> str | None:
    """Return how a container last ended, such as `exited with code 1`; None if it never ended."""
    for state in ("state", "lastState"):
        if terminated := (container.get(state) or {}).get("terminated"):
            reason = terminated.get("reason", "Error")
            return f"exited with code {terminated.get('exitCode')}" + (f" ({reason})" if reason != "Error" else "")
    return None


def is_terminating(pod: Object) -> bool:
    """Return whether a pod is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def _pod_age(pod: Object, now: datetime | None) -> timedelta:
    """Return a pod's age at the time `now`; 0 if `now` is None."""
    if now is None:
        return timedelta(0)
    return now - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
