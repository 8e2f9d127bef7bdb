import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from controlled_rollout import record
from controlled_rollout.endpoint import Endpoint
from tests.local.local_target_lab import CRASHING, Lab
from tests.local.task_lab import Task, run
from tests.polling import wait_until

SETTINGS = {"num_replicas": 1}


def image(lab: Lab, note: str, script: str | None = None) -> str:
    return asyncio.run(lab.image(note, script))


def endpoint(lab: Lab, name: str) -> Endpoint:
    return asyncio.run(lab.target.endpoint(name))


def control(lab: Lab, name: str) -> str:
    version = endpoint(lab, name).control
    assert version
    return version.name


def deploy(lab: Lab, name: str, version: str, run_id: str, **arguments: object) -> Task:
    task = {"endpoint": name, "version": version, "image": image(lab, version), "settings": SETTINGS, **arguments}
    return Task("RolloutVersionOperator", "deploy", task, run_id)


def approve(lab: Lab, name: str) -> None:
    """Record that a person approves version v2a at its present share: a run promotes only what was judged."""
    decision = record.Decision.about(endpoint(lab, name), "v2a", step="approve", who="Ada", reason="good enough")
    record.append(lab.workspace, decision)


# Early and late; test_steps_interrupted.py kills before and after every change.
@pytest.mark.parametrize("kill_after_s", [0.03, 0.3])
def test_rollout_with_killed_tasks_creates_the_same_revisions(lab: Lab, connection: str, kill_after_s: float) -> None:
    name = f"killed-{kill_after_s}".replace(".", "-").lower()
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    rollout = [
        deploy(lab, name, "v2a", "run-2"),
        Task("ShiftTrafficOperator", "shift_10", {"endpoint": name, "version": "v2a", "percentile": 10}, "run-2"),
        Task("PromoteToControlOperator", "promote", {"endpoint": name, "version": "v2a"}, "run-2"),
        Task("DeleteVersionOperator", "retire_old", {"endpoint": name, "replaced_by": "v2a", "keep_warm": 0}, "run-2"),
    ]

    killed = 0
    for task in rollout:
        if task.task_id == "promote":
            approve(lab, name)
        killed += run(task, connection, kill_after_s=kill_after_s) == "killed"
        assert run(task, connection) == "done"
    assert killed

    history = asyncio.run(lab.target.history(name))
    assert [revision.change.who for revision in history] == [
        "weekly/run-1/deploy",
        "weekly/run-2/deploy",
        "weekly/run-2/shift_10",
        "weekly/run-2/promote",
        "weekly/run-2/retire_old",
    ]
    end = history[-1].endpoint
    assert list(end.versions) == ["v2a"]
    assert end.control == end.default == end.versions["v2a"]
    assert end.rollout is None


def test_killed_roll_back_creates_the_same_revisions(lab: Lab, connection: str) -> None:
    name = "back"
    back = Task("RollBackOperator", "roll_back", {"endpoint": name, "version": "v2a"}, "run-2")
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    shift = {"endpoint": name, "version": "v2a", "percentile": 50}
    assert run(Task("ShiftTrafficOperator", "shift_50", shift, "run-2"), connection) == "done"

    run(back, connection, kill_after_s=0.05)
    assert run(back, connection) == "done"
    assert (
        run(Task("DeleteVersionOperator", "retire", {"endpoint": name, "version": "v2a"}, "run-2"), connection)
        == "done"
    )

    end = endpoint(lab, name)
    assert end.effective_traffic() == {"v1a": 100.0}
    assert end.rollout is None


def test_second_run_conflicts_and_its_roll_back_does_not_touch_the_first_rollout(lab: Lab, connection: str) -> None:
    name = "conflict"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    before = endpoint(lab, name)

    answer = run(deploy(lab, name, "v3a", "run-3"), connection)
    same_version = run(Task("RollBackOperator", "roll_back", {"endpoint": name, "version": "v2a"}, "run-3"), connection)
    own_version = run(Task("RollBackOperator", "roll_back", {"endpoint": name, "version": "v3a"}, "run-3"), connection)

    assert answer.startswith("AirflowFailException")
    assert "is held by weekly/run-2 rolling out 'v2a'" in answer
    assert same_version.startswith("AirflowSkipException")
    assert "in the rollout of weekly/run-2" in same_version
    assert own_version.startswith("AirflowSkipException")
    assert endpoint(lab, name) == before


def test_waiting_second_run_continues_after_the_first_has_ended(lab: Lab, connection: str) -> None:
    name = "waiting"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"

    impatient = deploy(lab, name, "v3a", "run-3", on_conflict="wait", conflict_timeout="0 s")
    assert "is held by weekly/run-2" in run(impatient, connection)
    back = Task("RollBackOperator", "roll_back", {"endpoint": name, "version": "v2a"}, "run-2")
    assert run(back, connection) == "done"
    assert run(deploy(lab, name, "v3a", "run-3", on_conflict="wait", conflict_timeout="30 s"), connection) == "done"

    rollout = endpoint(lab, name).rollout
    assert rollout and rollout.owner == "weekly/run-3"


def test_rollout_ended_by_a_person_is_not_continued(lab: Lab, connection: str) -> None:
    name = "ended"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    by_hand = {"endpoint": name, "version": "v2a", "own_rollout": False, "reason": "wrong model"}
    assert run(Task("RollBackOperator", "roll_back", by_hand, "by-hand"), connection) == "done"
    before = endpoint(lab, name)

    shift = Task("ShiftTrafficOperator", "shift_10", {"endpoint": name, "version": "v2a", "percentile": 10}, "run-2")
    promote = Task("PromoteToControlOperator", "promote", {"endpoint": name, "version": "v2a"}, "run-2")
    gate = Task("TreatmentGateSensor", "gate", {"endpoint": name, "version": "v2a", "deferrable": False}, "run-2")
    for task in (shift, promote, gate):
        answer = run(task, connection)
        assert answer.startswith("AirflowFailException")
        assert "weekly/run-2 no longer holds endpoint 'ended'" in answer
    assert endpoint(lab, name) == before
    assert asyncio.run(lab.target.history(name))[-1].change.reason == "wrong model"


def test_endpoint_whose_first_version_crashes_is_deleted_by_the_roll_back(lab: Lab, connection: str) -> None:
    name = "crash"
    crash = deploy(lab, name, "v1a", "run-1", image=image(lab, "crash", CRASHING))

    answer = run(crash, connection)
    assert answer.startswith("AirflowFailException")
    assert "no weights found in the model folder" in answer
    assert (
        run(Task("RollBackOperator", "roll_back", {"endpoint": name, "version": "v1a"}, "run-1"), connection) == "done"
    )

    assert name not in asyncio.run(lab.target.endpoints())
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    assert control(lab, name) == "v2a"


def test_a_rollout_on_hold_waits_for_a_person(lab: Lab, connection: str) -> None:
    name = "held"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    shift = {"endpoint": name, "version": "v2a", "percentile": 10}
    assert run(Task("ShiftTrafficOperator", "shift_10", shift, "run-2"), connection) == "done"
    times = {"decision_timeout": "0.5 s", "interval": "0.1 s"}
    waiting = {"endpoint": name, "version": "v2a", **times, "deferrable": False}

    def holds() -> list[record.Decision]:
        return list(record.read(lab.workspace, name, version="v2a", step="hold"))

    with ThreadPoolExecutor() as pool:
        gate = pool.submit(run, Task("TreatmentGateSensor", "gate_10", waiting, "run-2"), connection)
        [hold] = wait_until(holds, "the rollout is on hold", timeout_s=60)
        assert hold.reason.startswith("no decision")
        rollout = endpoint(lab, name).rollout
        assert rollout is not None and rollout.held is not None
        assert endpoint(lab, name).effective_traffic() == {"v1a": 90.0, "v2a": 10.0}

        by_hand = {"endpoint": name, "version": "v2a", "own_rollout": False, "reason": "good enough"}
        assert run(Task("PromoteToControlOperator", "promote", by_hand, "by-hand"), connection) == "done"
        assert "is the control" in gate.result(60)
    assert endpoint(lab, name).rollout is None


def test_repeated_promotion_does_not_end_the_next_rollout(lab: Lab, connection: str) -> None:
    name = "again"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    before = endpoint(lab, name)

    assert (
        run(Task("PromoteToControlOperator", "promote", {"endpoint": name, "version": "v1a"}, "run-1"), connection)
        == "done"
    )

    assert endpoint(lab, name) == before


def test_the_rollout_after_a_promotion_can_shift(lab: Lab, connection: str) -> None:
    name = "next"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    promote = Task("PromoteToControlOperator", "promote", {"endpoint": name, "version": "v2a"}, "run-2")
    approve(lab, name)
    assert run(promote, connection) == "done"
    assert run(deploy(lab, name, "v3a", "run-3"), connection) == "done"

    shift = {"endpoint": name, "version": "v3a", "percentile": 10}
    assert run(Task("ShiftTrafficOperator", "shift_10", shift, "run-3"), connection) == "done"

    assert endpoint(lab, name).effective_traffic() == {"v1a": 0.0, "v2a": 90.0, "v3a": 10.0}


def test_former_control_that_serves_again_is_not_retired(lab: Lab, connection: str) -> None:
    name = "back-again"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    assert run(deploy(lab, name, "v2a", "run-2"), connection) == "done"
    promote = Task("PromoteToControlOperator", "promote", {"endpoint": name, "version": "v2a"}, "run-2")
    approve(lab, name)
    assert run(promote, connection) == "done"
    back = {"endpoint": name, "version": "v2a", "to": "v1a", "reason": "worse in the field", "own_rollout": False}
    assert run(Task("RollBackOperator", "roll_back", back, "by-hand"), connection) == "done"
    assert run(Task("RollBackOperator", "roll_back", back, "by-hand"), connection) == "done"

    retire = run(
        Task("DeleteVersionOperator", "retire_old", {"endpoint": name, "replaced_by": "v2a", "keep_warm": 0}, "run-2"),
        connection,
    )

    assert retire.startswith("AirflowSkipException")
    assert control(lab, name) == "v1a"


def test_failing_check_names_only_what_fails(lab: Lab, connection: str, tmp_path: Path) -> None:
    assert run(Task("CheckConnectivityOperator", "check", {}), connection) == "done"

    nowhere = json.dumps({"conn_type": "controlled_rollout", "extra": {"root": str(tmp_path / "nowhere")}})
    answer = run(Task("CheckConnectivityOperator", "check", {}), nowhere)
    assert answer.startswith("TargetUnavailableError")  # worth another try: Airflow retries it
    for what in ("supervisor", "router", "telemetry store"):
        assert what in answer
    assert "cache folder" not in answer


def test_invalid_arguments_fail_without_retries_and_change_nothing(lab: Lab, connection: str) -> None:
    name = "wrong"
    assert run(deploy(lab, name, "v1a", "run-1"), connection) == "done"
    before = endpoint(lab, name)
    invalid: tuple[tuple[dict[str, Any], str], ...] = (
        ({"image": "digits:latest"}, "deploy by digest"),
        ({"version": "V2"}, "not valid"),
        ({"settings": {"cpus": 1}}, "cpus"),
        ({"timeout": "soon"}, "not a length of time"),
    )
    for arguments, message in invalid:
        answer = run(deploy(lab, name, **{"version": "v2a", "run_id": "run-2", **arguments}), connection)
        assert answer.startswith("AirflowFailException")
        assert message in answer
    assert endpoint(lab, name) == before
