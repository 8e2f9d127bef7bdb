"""What a look says of a treatment that cannot answer at all."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from controlled_rollout.evaluation.conclusion import MIN_DOWN_TIME, treatment_down
from controlled_rollout.target.protocol import EndpointStatus, ReplicaState, ReplicaStatus, VersionStatus

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def version(name: str, *states: ReplicaState, **more: Any) -> VersionStatus:
    replicas = tuple(ReplicaStatus(name=f"{name}-{n}", state=state) for n, state in enumerate(states))
    return VersionStatus(name=name, ready=False, replicas=replicas, **more)


def down(*versions: VersionStatus) -> str:
    status = EndpointStatus(
        name="digits", url="", revision=2, served_revision=2, versions={v.name: v for v in versions}
    )
    return treatment_down(status, control="old", treatment="new", now=NOW)


CONTROL = version("old", ReplicaState.READY, ReplicaState.WAITING)
FAILED = version("new", ReplicaState.WAITING, failed=True, cause="pod new-0 exited with code 1; failed 3 times")


def test_a_treatment_that_starts_again_and_again_beside_a_ready_control_is_down() -> None:
    assert down(CONTROL, FAILED) == (
        "version 'new' has no ready replica and cannot answer its share, and 'old' has: "
        "pod new-0 exited with code 1; failed 3 times"
    )


@pytest.mark.parametrize("states", [(), (ReplicaState.STARTING,), (ReplicaState.STOPPING, ReplicaState.WAITING)])
def test_a_treatment_without_ready_replicas_is_down_when_that_has_lasted(states: tuple[ReplicaState, ...]) -> None:
    lasting = version("new", *states, down_since=NOW - MIN_DOWN_TIME)
    assert "no ready replica since 11:58:00" in down(CONTROL, lasting)

    assert down(CONTROL, version("new", *states, down_since=NOW - MIN_DOWN_TIME + SECOND)) == ""
    assert down(CONTROL, version("new", *states)) == ""


def test_version_with_one_ready_replica_is_not_down() -> None:
    half = version("new", ReplicaState.READY, ReplicaState.WAITING, failed=True, down_since=NOW - 10 * MIN_DOWN_TIME)
    assert down(CONTROL, half) == ""


def test_when_control_has_no_ready_replica_either_it_is_not_the_treatments_fault() -> None:
    assert down(version("old", ReplicaState.STARTING), FAILED) == ""
    assert down(FAILED) == ""
    assert down(CONTROL) == ""
