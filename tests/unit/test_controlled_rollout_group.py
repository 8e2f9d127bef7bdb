from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, TriggerRule, XComArg
from airflow.serialization.definitions.taskgroup import SerializedTaskGroup
from airflow.serialization.serialized_objects import DagSerialization

from controlled_rollout import ControlledRollout, Gate
from controlled_rollout.version_name import version_of_run

MINIMUM: dict[str, Any] = {"endpoint": "digits", "version": "v2a", "image": "local/digits@sha256:" + "0" * 64}


def group(dag_arguments: dict[str, Any] | None = None, **arguments: Any) -> ControlledRollout:
    with DAG("weekly", schedule=None, default_args=dag_arguments or {}):
        return ControlledRollout(**{**MINIMUM, **arguments})


def goes_back(task: Any) -> bool:
    return task.task_id in ("rollout.roll_back", "rollout.retire_treatment")


def edges(rollout: ControlledRollout) -> dict[str, set[str]]:
    return {
        task.task_id.removeprefix("rollout."): {t.removeprefix("rollout.") for t in task.downstream_task_ids}
        for task in rollout
    }


def test_tasks_and_their_order_forward_and_back() -> None:
    downstream = edges(group())
    back = {"roll_back"}
    assert downstream == {
        "check": {"roll_out"} | back,
        "roll_out": {"shift_10"} | back,
        "shift_10": {"gate_10"} | back,
        "gate_10": {"shift_50"} | back,
        "shift_50": {"gate_50"} | back,
        "gate_50": {"promote"} | back,
        "promote": {"retire_old"} | back,
        "retire_old": set(),
        "roll_back": {"retire_treatment"},
        "retire_treatment": set(),
    }


def test_trigger_rules_choose_promotion_or_roll_back() -> None:
    rollout = group()
    assert rollout.roll_back.trigger_rule == TriggerRule.ONE_FAILED
    assert rollout.promote.trigger_rule == TriggerRule.NONE_FAILED  # a first version skips its gates
    assert [gate.require_pass for gate in rollout.gates] == [False, True]
    assert [gate.require_pass for gate in group(pass_every_step=True).gates] == [True, True]


def test_failed_treatment_may_be_kept() -> None:
    assert "retire_treatment" not in edges(group(keep_treatment=True))


def test_scan_comes_before_the_version_is_created() -> None:
    rollout = group(scan={"max_severity": "high"})
    downstream = edges(rollout)
    assert downstream["check"] == {"scan", "roll_back"}
    assert downstream["scan"] == {"roll_out", "roll_back"}
    assert rollout.scan
    assert rollout.scan.max_severity == "high"
    assert rollout.scan.image == MINIMUM["image"]
    # What it rolls out is what the scan hands on: no other image gets there.
    image: object = rollout.roll_out.image
    assert isinstance(image, XComArg)
    assert [operator for operator, _ in image.iter_references()] == [rollout.scan]


def test_steps_may_be_fractions_of_a_per_cent() -> None:
    assert list(edges(group(steps=(0.5, 2.5, 100))))[2:8] == [
        "shift_0_5", "gate_0_5", "shift_2_5", "gate_2_5", "shift_100", "gate_100",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "steps", [None, 10, "10", (), (0, 10), (10, 10), (50, 10), (10, 101), (True,), ("10",), (float("nan"),)]
)
def test_steps_that_do_not_ascend_are_refused(steps: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="give ascending percentiles"):
        group(steps=steps)


def test_killed_tasks_are_retried_unless_the_author_says_otherwise() -> None:
    assert {task.retries for task in group()} == {3}
    assert {task.retries for task in group(dag_arguments={"retries": 7})} == {7}
    forward = [task for task in group(dag_arguments={"retries": 7}, default_args={"retries": 0}) if not goes_back(task)]
    assert {task.retries for task in forward} == {0}


@pytest.mark.parametrize("level", ["dag", "group"])
def test_no_default_args_take_a_roll_back_its_retries_or_its_time(level: str) -> None:
    unfit = {
        "retries": 0,
        "retry_delay": timedelta(days=1),
        "execution_timeout": timedelta(minutes=1),
        "depends_on_past": True,
        "wait_for_downstream": True,
    }
    rollout = group(unfit) if level == "dag" else group(default_args=unfit)
    retirement = next(task for task in rollout if task.task_id.endswith("retire_treatment"))

    for task in (rollout.roll_back, retirement):
        assert (task.retries, task.retry_delay) == (3, timedelta(seconds=10))
        assert not task.depends_on_past
        assert not task.wait_for_downstream
    assert rollout.roll_back.execution_timeout == timedelta(hours=1, minutes=10)
    assert retirement.execution_timeout == timedelta(minutes=15)
    assert group(roll_back_timeout="{{ params.hours }} h").roll_back.execution_timeout is None


def test_the_group_is_a_task_group_to_airflow() -> None:
    with DAG("weekly", schedule=None) as dag:
        ControlledRollout(**MINIMUM, gate=Gate(), group_id="digits_rollout")
    stored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    assert "digits_rollout.promote" in stored.task_dict
    stored_group = stored.task_group.children["digits_rollout"]
    assert isinstance(stored_group, SerializedTaskGroup)
    assert stored_group.children.keys() == {task.task_id for task in dag.tasks}


def test_a_version_without_a_name_has_that_of_the_dag_run() -> None:
    rollout = group(version=None)
    names = {task.task_id: str(getattr(task, "version", None) or task.replaced_by) for task in rollout}
    assert set(names.values()) == {"{{ task.version_of_run(dag_run) }}"}
    run = SimpleNamespace(dag_id="weekly", run_id="manual-1", run_after=datetime(2026, 1, 5, 2, tzinfo=UTC))
    for task in rollout:
        task.render_template_fields({"task": task, "dag_run": run})
        assert (getattr(task, "version", None) or task.replaced_by) == version_of_run(run)
