"""The cause of a version that does not start, from pods as a real API server has shown them."""

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout.target.kubernetes.health import version_status
from controlled_rollout.target.kubernetes.startup import is_startup_warning
from controlled_rollout.target.protocol import VersionStatus

# Recorded on Kubernetes 1.36: a version whose init() sleeps for 600 s and may take 4 s, and an image whose registry
# accepts connections and never answers.
PODS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("recorded_pods.json").read_text())


def status(pod: dict[str, Any], at: str) -> VersionStatus:
    deployment = {
        "metadata": {"name": "d", "generation": 1},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1},
    }
    now = datetime.fromisoformat(f"2026-11-28T{at}").replace(tzinfo=UTC)
    return version_status("one", deployment, [pod], at_start=1, now=now)


def name_of(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["name"])


@pytest.mark.parametrize(
    ("recorded", "at", "cause", "failed"),
    [
        ("init hangs, first start", "09:44:28", "runs and has not passed its startup probe yet", False),
        (
            "init hangs, first start",
            "09:44:31",
            "is being ended, because init() has not returned within initial_delay_seconds (4 s)",
            False,
        ),
        (
            "init hangs, ended once",
            "09:44:36",
            "was ended, because init() has not returned within initial_delay_seconds (4 s)",
            False,
        ),
        (
            "init hangs, ended three times",
            "09:44:55",
            "was ended, because init() has not returned within initial_delay_seconds (4 s); failed 3 times",
            True,
        ),
    ],
)
def test_an_init_that_never_ends_is_named_once_its_time_is_over(
    recorded: str, at: str, cause: str, failed: bool
) -> None:
    version = status(PODS[recorded], at)

    assert (version.cause, version.failed) == (f"pod {name_of(PODS[recorded])} {cause}", failed)


def changed(recorded: str, **ended: str | int) -> dict[str, Any]:
    """Return a recorded pod whose last container has ended otherwise."""
    pod = copy.deepcopy(PODS[recorded])
    pod["status"]["containerStatuses"][0]["lastState"]["terminated"] |= ended
    return pod


def test_a_crash_before_the_time_is_over_and_one_for_want_of_memory_keep_their_own_cause() -> None:
    early = changed("init hangs, ended once", finishedAt="2026-11-28T09:44:27Z", exitCode=1, reason="Error")
    memory = changed("init hangs, ended once", exitCode=137, reason="OOMKilled")

    assert status(early, "09:44:36").cause == f"pod {name_of(early)} exited with code 1"
    assert status(memory, "09:44:36").cause == f"pod {name_of(memory)} exited with code 137 (OOMKilled)"


def test_a_container_that_was_ready_before_it_ended_has_had_no_trouble_with_its_start() -> None:
    served = changed("init hangs, ended once", exitCode=1, reason="Error")
    ready = next(one for one in served["status"]["conditions"] if one["type"] == "Ready")
    ready["lastTransitionTime"] = "2026-11-28T09:44:34Z"

    assert status(served, "09:44:36").cause == f"pod {name_of(served)} exited with code 1"


def test_a_registry_that_never_answers_is_named_with_the_image_and_since_when() -> None:
    pod = PODS["registry silent"]
    image = pod["spec"]["containers"][0]["image"]

    version = status(pod, "09:45:30")

    assert version.cause == (
        f"pod {name_of(pod)} has been pulling its image {image} since 09:44:25 UTC: the registry has not answered yet, "
        "or the image is large"
    )
    assert not version.failed
    assert f"cannot pull its image {image}" in str(status(PODS["registry gave up"], "09:44:47").cause)


def test_a_pod_without_a_sandbox_yet_does_not_blame_the_registry() -> None:
    pod = copy.deepcopy(PODS["registry silent"])
    for condition in pod["status"]["conditions"]:
        if condition["type"] == "PodReadyToStartContainers":
            condition["status"] = "False"

    assert status(pod, "09:45:30").cause is None


def test_the_error_of_the_probe_is_left_out_once_the_cause_is_known() -> None:
    warning = "Startup probe failed: dial tcp 10.231.0.9:8081: connect: connection refused"
    late = status(PODS["init hangs, ended once"], "09:44:36").cause

    assert is_startup_warning(late, warning)
    assert not is_startup_warning(late, "Readiness probe failed: timeout")
    assert not is_startup_warning("pod p runs and has not passed its startup probe yet", warning)
