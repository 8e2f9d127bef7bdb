"""Whether a version's pod has used up the time that `init()` may take, from the pod's status. Pure."""

from datetime import datetime, timedelta
from typing import Final

from controlled_rollout.cluster.api import Object
from controlled_rollout.cluster.pods import MAX_FAILED_STARTS, PodProblem

__all__ = ["is_startup_warning", "startup_problem"]

# In every message about it, on both targets.
LATE: Final = "init() has not returned within initial_delay_seconds"


def startup_problem(pod: Object, now: datetime | None) -> PodProblem | None:
    """Return that `init()` takes longer than it may; None if it does not, or the pod's status does not show it.

    The kubelet ends a container whose startup probe has not passed in time, and the container's exit code tells nothing
    of that: it may even be 0.

    Args:
        pod: A pod of a version.
        now: The time; None if that is not to count.
    """
    container = _first_or_empty((pod.get("status") or {}).get("containerStatuses"))
    limit = _startup_limit(pod)
    if limit is None or container.get("ready") or container.get("started"):
        return None
    name = pod["metadata"]["name"]
    within = f"{LATE} ({limit.total_seconds():g} s)"
    state = container.get("state") or {}
    ended = _ended_by_startup_probe(pod, container, limit)
    if ended:
        starts = container.get("restartCount", 0) + ("waiting" in state)
        times = f"; failed {starts} times" if starts > 1 else ""
        return PodProblem(f"pod {name} was ended, because {within}{times}", is_permanent=starts >= MAX_FAILED_STARTS)
    running = state.get("running") or {}
    if now and "startedAt" in running and now - datetime.fromisoformat(running["startedAt"]) > limit:
        return PodProblem(f"pod {name} is being ended, because {within}", is_permanent=False)
    return None


def is_startup_warning(cause: str | None, warning: str) -> bool:
    """Return whether a warning of Kubernetes only says with which error the startup probe of such a pod failed."""
    return LATE in (cause or "") and warning.startswith("Startup probe failed")


def _ended_by_startup_probe(pod: Object, container: Object, limit: timedelta) -> bool:
    """Return whether the container that ended last ran for as long as `init()` may take, and was never ready."""
    states = (container.get(state) or {} for state in ("state", "lastState"))
    ended = next((state["terminated"] for state in states if "terminated" in state), None)
    if not ended or ended.get("reason") == "OOMKilled" or not ended.get("startedAt") or not ended.get("finishedAt"):
        return False
    began, finished = (datetime.fromisoformat(ended[at]) for at in ("startedAt", "finishedAt"))
    ready = next((one for one in pod["status"].get("conditions") or [] if one["type"] == "Ready"), None)
    if ready is None or ready["status"] == "True" or datetime.fromisoformat(ready["lastTransitionTime"]) > began:
        return False  # it was ready in between, or may have been
    return finished - began >= limit


def _startup_limit(pod: Object) -> timedelta | None:
    """Return how long the startup probe of a pod's container waits; None if it has none."""
    probe = _first_or_empty((pod.get("spec") or {}).get("containers")).get("startupProbe")
    return timedelta(seconds=probe.get("periodSeconds", 10) * probe.get("failureThreshold", 3)) if probe else None


def _first_or_empty(items: list[Object] | None) -> Object:
    """Return the first object of a list; an empty one if there is none."""
    return items[0] if items else {}
