"""The state of a version, from the objects of the cluster."""

from datetime import UTC, datetime, timedelta
from typing import Any

from controlled_rollout.cluster.pods import newest_warning
from controlled_rollout.target.kubernetes.health import version_status
from controlled_rollout.target.protocol import ReplicaState, VersionStatus

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)


def deployment(*, replicas: int = 1, ready: int = 0, total: int | None = None, **status: Any) -> dict[str, Any]:
    deployment_status = {
        "observedGeneration": 3,
        "replicas": replicas if total is None else total,
        "updatedReplicas": replicas,
        "readyReplicas": ready,
        **status,
    }
    return {"metadata": {"name": "d", "generation": 3}, "spec": {"replicas": replicas}, "status": deployment_status}


def pod(*, age_s: int = 5, container: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    created = (NOW - timedelta(seconds=age_s)).isoformat()
    statuses = {"containerStatuses": [container]} if container else {}
    return {"metadata": {"name": "pod-a", "creationTimestamp": created}, "status": {**statuses, **status}}


def waiting(reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    return {"image": "i", "state": {"waiting": {"reason": reason, "message": message}}, **more}


def status(deployment: dict[str, Any] | None, *pods: dict[str, Any]) -> VersionStatus:
    return version_status("two", deployment, pods, at_start=1, now=NOW)


def test_ready_means_all_replicas_of_the_newest_definition_and_no_others() -> None:
    assert status(deployment(replicas=2, ready=2)).ready
    assert not status(deployment(replicas=2, ready=1)).ready
    assert not status(deployment(replicas=2, ready=2, total=3)).ready
    assert not status(deployment(replicas=1, ready=1, observedGeneration=2)).ready
    assert not status(deployment(replicas=0, ready=0)).ready
    assert not status(None).ready


def test_an_unschedulable_pod_says_why_and_waits_for_nodes() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient cpu"}

    version = status(deployment(), pod(conditions=[condition]))

    assert not version.failed
    assert version.cause == "pod pod-a cannot be scheduled: 0/3 nodes: Insufficient cpu"


def test_an_image_that_is_not_there_fails_at_once_and_a_silent_registry_only_after_a_minute() -> None:
    assert status(deployment(), pod(container=waiting("ErrImagePull", "manifest unknown: not found"))).failed
    refused = waiting("ImagePullBackOff", "connection refused")
    assert not status(deployment(), pod(age_s=30, container=refused)).failed
    assert status(deployment(), pod(age_s=90, container=refused)).failed


def test_a_container_that_ends_by_itself_fails_after_three_starts() -> None:
    ended = {"terminated": {"exitCode": 3, "reason": "Error"}}
    once = waiting("CrashLoopBackOff", restartCount=0, lastState=ended)
    thrice = waiting("CrashLoopBackOff", restartCount=2, lastState=ended)

    assert not status(deployment(), pod(container=once)).failed
    version = status(deployment(), pod(container=thrice))
    assert version.failed
    assert version.cause == "pod pod-a exited with code 3; failed 3 times"
    assert [replica.state for replica in version.replicas] == [ReplicaState.WAITING]


def test_time_without_enough_ready_replicas_is_read_from_the_deployment() -> None:
    since = {"type": "Available", "status": "False", "lastTransitionTime": "2026-05-01T11:58:00Z"}

    assert status(deployment(conditions=[since])).down_since == NOW - timedelta(minutes=2)
    assert status(deployment(conditions=[{**since, "status": "True"}])).down_since is None
    assert status(deployment()).down_since is None


def test_a_step_waits_for_what_it_has_asked_for_and_not_for_what_only_the_load_asks_for() -> None:
    def autoscaled(ready: int, floor: str = "", **counts: int) -> VersionStatus:
        """Return the status of a version that the load has given 5 replicas, one of which can never start."""
        grown = deployment(replicas=5, ready=ready, **counts)
        grown["metadata"]["annotations"] = {"controlled-rollout/autoscaled": "2 → 5 replicas"}
        if floor:
            grown["metadata"]["annotations"]["controlled-rollout/replicas-floor"] = floor
        return status(grown, pod(container=waiting("ErrImagePull", "manifest unknown: not found")))

    assert autoscaled(1).ready and not autoscaled(1).failed and autoscaled(1).wanted_replicas == 5
    assert not autoscaled(0).ready and autoscaled(0).failed
    assert autoscaled(3, "3 until 1.0").ready
    assert not autoscaled(2, "3 until 1.0").ready, "a shift was sized for three"
    assert not autoscaled(4, "9 until 1.0").ready
    assert not autoscaled(1, updatedReplicas=4).ready, "an older definition still runs"
    assert autoscaled(2, total=2, updatedReplicas=2).ready, "a quota allows no more pods"


def test_an_added_replica_that_finds_no_node_does_not_make_a_short_restart_of_the_other_one_a_long_failure() -> None:
    an_hour_ago, ten_seconds_ago = "2026-05-01T11:00:00Z", "2026-05-01T11:59:50Z"
    scaled = deployment(
        replicas=2, conditions=[{"type": "Available", "status": "False", "lastTransitionTime": an_hour_ago}]
    )

    def pod_with(ready_since: str, ready: str = "False") -> dict[str, Any]:
        """Return a pod that began an hour ago."""
        initialized = {"type": "Initialized", "status": "True", "lastTransitionTime": an_hour_ago}
        return pod(conditions=[initialized, {"type": "Ready", "status": ready, "lastTransitionTime": ready_since}])

    no_node = pod(conditions=[{"type": "PodScheduled", "status": "False", "lastTransitionTime": an_hour_ago}])
    assert status(scaled, no_node, pod_with(ten_seconds_ago)).down_since == NOW - timedelta(seconds=10)
    # Pods that never became ready do not make it shorter, however often they are replaced.
    assert status(scaled, no_node, pod_with(an_hour_ago)).down_since == NOW - timedelta(hours=1)
    assert status(scaled, no_node, pod_with(ten_seconds_ago, "True")).down_since == NOW - timedelta(hours=1)


def test_what_the_autoscaler_did_last_is_read_from_the_deployment() -> None:
    scaled = deployment()
    scaled["metadata"]["annotations"] = {"controlled-rollout/autoscaled": "1 → 2 replicas"}

    assert status(scaled).scaling == "1 → 2 replicas"
    assert status(deployment()).scaling is None


def test_a_container_that_runs_and_is_not_ready_names_the_probe() -> None:
    runs = {"image": "i", "state": {"running": {"startedAt": NOW.isoformat()}}, "ready": False}

    starts = status(deployment(), pod(container={**runs, "started": False}))
    assert (starts.cause, starts.failed) == ("pod pod-a runs and has not passed its startup probe yet", False)
    fails = status(deployment(), pod(container={**runs, "started": True}))
    assert (fails.cause, fails.failed) == ("pod pod-a runs and fails its readiness probe", False)


def test_newest_warning_of_a_pod_complements_its_status() -> None:
    def event(at: str, reason: str, message: str, kind: str = "Warning") -> dict[str, str]:
        return {"type": kind, "reason": reason, "message": message, "lastTimestamp": f"2026-05-01T{at}Z"}

    old = event("11:00:00", "FailedMount", "no secret")
    new = event("11:02:00", "Unhealthy", "Startup probe failed: HTTP probe failed with statuscode: 503\n")
    known = event("11:03:00", "BackOff", "Back-off restarting failed container")

    warning = newest_warning([new, old, known, event("11:04:00", "Pulled", "pulled", "Normal")])
    assert warning == "Startup probe failed: HTTP probe failed with statuscode: 503"
    assert newest_warning([known]) is None
    assert newest_warning([]) is None


def test_out_of_memory_is_reported() -> None:
    killed = {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, "ready": False}

    assert status(deployment(), pod(container=killed)).cause == "pod pod-a exited with code 137 (OOMKilled)"


def test_exhausted_quota_is_reported() -> None:
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: pods"}

    version = status(deployment(conditions=[failure]))

    assert (version.cause, version.failed) == ("no pod can be created: exceeded quota: pods", False)


def test_terminating_pod_does_not_delay_readiness() -> None:
    leaving = pod(container=waiting("CrashLoopBackOff", restartCount=5))
    leaving["metadata"]["deletionTimestamp"] = NOW.isoformat()

    version = status(deployment(), leaving)

    assert (version.failed, version.cause) == (False, None)
    assert [replica.state for replica in version.replicas] == [ReplicaState.STOPPING]


def test_a_version_that_somebody_has_scaled_to_0_fails_and_says_who_did_it() -> None:
    scaled = deployment(replicas=0)
    fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
    scaled["metadata"]["managedFields"] = [
        {"manager": "kubectl", "subresource": "scale", "time": "2026-05-01T11:00:00Z", "fieldsV1": fields}
    ]

    version = status(scaled)

    assert version.failed
    assert version.cause == (
        "it is scaled to 0 replicas, by 'kubectl' at 2026-05-01T11:00:00Z: scale its Deployment up again"
    )
