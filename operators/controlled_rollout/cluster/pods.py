"""What keeps a pod from running, from its status and its events. Pure."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.cluster.api import Object

__all__ = ["is_leaving", "last_exit", "newest_warning", "pod_held_by"]

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
        ended = last_exit(container)
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


def last_exit(container: Object) -> str | None:
    """Return how a container ended last; None if it never did."""
    for state in ("state", "lastState"):
        if ended := (container.get(state) or {}).get("terminated"):
            reason = ended.get("reason", "Error")
            return f"exited with code {ended.get('exitCode')}" + (f" ({reason})" if reason != "Error" else "")
    return None


def is_leaving(pod: Object) -> bool:
    """Whether a pod is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def _age(pod: Object, now: datetime | None) -> timedelta:
    if now is None:
        return timedelta(0)
    return now - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
