from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TriggerRule, XComArg, task_group
from airflow.sdk.definitions.retry_policy import ExceptionRetryPolicy, RetryAction, RetryRule
from airflow.sdk.exceptions import AirflowSkipException
from airflow.serialization.definitions.taskgroup import SerializedTaskGroup
from airflow.serialization.serialized_objects import DagSerialization

from controlled_rollout import ControlledRollout, Gate
from controlled_rollout.operators.base import run_of
from controlled_rollout.operators.group_tasks import own_defaults
from controlled_rollout.rollout import Rollout
from controlled_rollout.version_name import version_of_run
from tests.invariants.simulated_airflow import State, next_state

MINIMUM: dict[str, Any] = {"endpoint": "digits", "version": "v2a", "image": "local/digits@sha256:" + "0" * 64}


def group(dag_arguments: dict[str, Any] | None = None, **arguments: Any) -> ControlledRollout:
    with DAG("weekly", schedule=None, default_args=dag_arguments or {}):
        return ControlledRollout(**{**MINIMUM, **arguments})


def skip_outside_of_office_hours(context: Any) -> None:
    raise AirflowSkipException


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
        "check": {"roll_out", "result"} | back,
        "roll_out": {"shift_10", "promote"} | back,
        "shift_10": {"gate_10"} | back,
        "gate_10": {"shift_50"} | back,
        "shift_50": {"gate_50"} | back,
        "gate_50": {"promote"} | back,
        "promote": {"retire_old"} | back,
        "retire_old": set(),
        "roll_back": {"retire_treatment", "result"},
        "retire_treatment": {"result"},
        "result": set(),
    }


def test_trigger_rules_choose_promotion_or_roll_back() -> None:
    rollout = group()
    assert rollout.roll_back.trigger_rule == TriggerRule.ONE_FAILED
    # A first version skips its gates, and only what the whole group is skipped with skips these two.
    assert rollout.promote.trigger_rule == rollout.result.trigger_rule == TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS
    assert [gate.require_pass for gate in rollout.gates] == [False, True]
    assert [gate.require_pass for gate in group(pass_every_step=True).gates] == [True, True]


def test_failed_treatment_may_be_kept() -> None:
    assert "retire_treatment" not in edges(group(keep_treatment=True))


def test_scan_comes_before_the_version_is_created() -> None:
    rollout = group(scan={"max_severity": "high"})
    downstream = edges(rollout)
    assert downstream["check"] == {"scan", "roll_back", "result"}
    assert downstream["scan"] == {"roll_out", "roll_back"}
    assert downstream["roll_out"] == {"shift_10", "promote", "roll_back"}
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


@pytest.mark.parametrize("steps", [(0.00005,), (1, 1.0000001), (1, 1.005), (99.995,), (0.001, 50)])
def test_steps_that_no_router_can_tell_apart_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"by 0\.01 or more"):
        group(steps=steps)
    assert len(group(steps=(0.01, 0.02, 99.98, 99.99, 100)).shifts) == 5


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
        "retry_exponential_backoff": 10,
        "retry_policy": ExceptionRetryPolicy([RetryRule("builtins.Exception", RetryAction.FAIL)]),
        "max_active_tis_per_dag": 1,
        "max_active_tis_per_dagrun": 1,
        "pre_execute": skip_outside_of_office_hours,
    }
    rollout = group(unfit) if level == "dag" else group(default_args=unfit)
    retirement = next(task for task in rollout if task.task_id.endswith("retire_treatment"))

    for task in (rollout.roll_back, retirement):
        assert (task.retries, task.retry_delay) == (3, timedelta(seconds=10))
        assert not task.depends_on_past
        assert not task.wait_for_downstream
        assert (task.retry_policy, task.retry_exponential_backoff) == (None, 0)
        assert (task.max_active_tis_per_dag, task.max_active_tis_per_dagrun) == (None, None)
        assert task._pre_execute_hook is None
    assert rollout.roll_back.execution_timeout == timedelta(hours=1, minutes=10)
    assert retirement.execution_timeout == timedelta(minutes=15)
    assert group(roll_back_timeout="{{ params.hours }} h").roll_back.execution_timeout is None


def test_no_default_args_end_the_wait_until_a_former_control_is_retired() -> None:
    rollout = group({"execution_timeout": timedelta(hours=1)}, keep_warm="1 d", deferrable=False)
    assert rollout.retire_old.execution_timeout is None
    assert rollout.promote.execution_timeout == timedelta(hours=1)


def test_retries_may_be_the_text_that_airflow_takes() -> None:
    assert group({"retries": "5"}).roll_back.retries == 5
    assert group(default_args={"retries": "1"}).roll_back.retries == 3


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("approval", "{{ params.approval }}"),
        ("approval", "False"),
        ("keep_treatment", "{{ params.keep }}"),
        ("deferrable", None),
        ("scan", "{{ params.scan }}"),
        ("approval_settings", "{{ params.approval }}"),
        ("on_hold", "me@example.com"),
        ("on_hold", ["me@example.com"]),
        ("on_promoted", "{{ params.people }}"),
        ("on_rolled_back", None),
        ("steps", "{{ params.steps }}"),
    ],
)
def test_arguments_that_decide_which_tasks_there_are_are_refused_as_templates(argument: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{argument}=.*: give "):
        group(**{argument: value})


@pytest.mark.parametrize("argument", ["approval", "keep_treatment", "scan", "approval_settings", "steps", "deferrable"])
def test_arguments_that_decide_which_tasks_there_are_are_refused_when_mapped(argument: str) -> None:
    with DAG("weekly", schedule=None):

        @task_group
        def one(value: Any) -> None:
            ControlledRollout(**{**MINIMUM, argument: value})

        with pytest.raises(ValueError, match=rf"{argument}=MappedArgument.*not mapped"):
            one.expand(value=[True, False])


def test_settings_of_a_question_that_nobody_is_asked_are_refused() -> None:
    settings = {"response_timeout": timedelta(hours=1)}
    with pytest.raises(ValueError, match="no task of this rollout asks a person: give approval=True"):
        group(approval_settings=settings)
    assert group(approval_settings=settings, approval=True).approvals
    assert group(approval_settings=settings, on_deadline="ask").approvals


def test_tasks_after_the_group_follow_its_result_alone() -> None:
    with DAG("weekly", schedule=None):
        build, notify = EmptyOperator(task_id="build"), EmptyOperator(task_id="notify")
        first = ControlledRollout(**MINIMUM, group_id="europe")
        second = ControlledRollout(**MINIMUM, group_id="america", keep_treatment=True)
        build >> first >> second >> notify
    assert first.leaves == [first.result]
    assert first.result.downstream_task_ids == {"america.check"}
    assert second.check.upstream_task_ids == {"europe.result"}
    assert build.downstream_task_ids == {"europe.check"}
    assert notify.upstream_task_ids == {"america.result"}
    # It waits for a roll-back, and for what that deletes, but not until a former control is deleted.
    assert first.result.upstream_task_ids == {"europe.check", "europe.roll_back", "europe.retire_treatment"}
    assert second.result.upstream_task_ids == {"america.check", "america.roll_back"}


# What tasks come to, and from that: `promote`, `roll_back`, and what becomes of `result`.
FIRST_VERSION: dict[str, State] = dict.fromkeys(("shift_10", "gate_10", "shift_50", "gate_50", "retire_old"), "skipped")
CASES: dict[str, tuple[dict[str, State], State, State, str]] = {
    "promoted": ({}, "success", "skipped", "run"),
    "first version": (FIRST_VERSION, "success", "skipped", "run"),
    "alarm": ({"gate_10": "failed"}, "upstream_failed", "success", "run"),
    "promotion refused": ({"promote": "failed"}, "failed", "success", "run"),
    "roll-out failed": ({"roll_out": "failed"}, "upstream_failed", "success", "run"),
    "roll-back failed": ({"gate_10": "failed", "roll_back": "failed"}, "upstream_failed", "failed", "upstream_failed"),
    "check failed": ({"check": "failed", "roll_back": "skipped"}, "upstream_failed", "skipped", "upstream_failed"),
    "task before it skipped": ({"before": "skipped"}, "skipped", "skipped", "skipped"),
    "task before it failed": ({"before": "failed"}, "upstream_failed", "success", "upstream_failed"),
}


@pytest.mark.parametrize("arguments", [{}, {"on_deadline": "ask"}, {"approval": True, "keep_treatment": True}])
@pytest.mark.parametrize(("states", "promote", "roll_back", "result"), CASES.values(), ids=CASES.keys())
def test_result_runs_once_all_is_settled_and_is_skipped_or_failed_with_what_comes_before(
    arguments: dict[str, Any], states: dict[str, State], promote: State, roll_back: State, result: str
) -> None:
    with DAG("weekly", schedule=None) as dag:
        EmptyOperator(task_id="before") >> ControlledRollout(**MINIMUM, **arguments)
    # Questions are skipped, because the gates have decided.
    forced: dict[str, State] = {"ask_10": "skipped", "ask_50": "skipped", **states}
    settled: dict[str, State] = {}
    for task in dag.topological_sort():  # type: ignore[no-untyped-call] # Airflow's
        upstream = [settled[task_id] for task_id in sorted(task.upstream_task_ids)]
        state = next_state(task.trigger_rule, upstream) if upstream else "run"
        name = task.task_id.removeprefix("rollout.")
        if name == "result":
            assert state == result
        assert state is not None
        settled[task.task_id] = forced.get(name, "success") if state == "run" else state
    assert (settled["rollout.promote"], settled["rollout.roll_back"]) == (promote, roll_back)


@pytest.mark.parametrize("level", ["dag", "group"])
@pytest.mark.parametrize("argument", ["soft_fail", "never_fail", "silent_fail", "trigger_rule"])
def test_default_arguments_that_would_let_a_stopped_treatment_go_on_are_refused(level: str, argument: str) -> None:
    unfit = {argument: "all_done" if argument == "trigger_rule" else True}
    with pytest.raises(
        ValueError, match=f"default_args of the {level if level == 'group' else 'DAG'} have {argument}="
    ):
        _ = group(unfit) if level == "dag" else group(default_args=unfit)
    unchanged = {argument: "all_success" if argument == "trigger_rule" else False}
    assert group(unchanged).roll_back.trigger_rule == TriggerRule.ONE_FAILED


def test_default_arguments_of_the_dag_for_other_operators_change_nothing_in_the_group() -> None:
    others = {
        "version": "x", "replaced_by": "x", "timeout": 1, "reason": "x", "to": "x", "own_rollout": False,
        "needs_approval": True, "deferrable": False, "do_xcom_push": False, "depends_on_past": True,
        "wait_for_downstream": True, "always": True, "conn_id": "sql", "percentile": 99, "on_hold": None,
    }  # fmt: skip
    for plain, changed in zip(group(), group(others), strict=True):
        names = own_defaults(type(plain)).keys() | {"trigger_rule", "version", "endpoint", "conn_id"}
        if not plain.task_id.endswith(".check"):
            names |= {"do_xcom_push"}
        for name in names:
            assert getattr(changed, name, None) == getattr(plain, name, None), (plain.task_id, name)
        # They keep the first task waiting, as their author wants; but no gate and no roll-back.
        assert changed.depends_on_past == changed.wait_for_downstream == plain.task_id.endswith(".check")


def test_arguments_of_the_rollout_in_the_groups_default_args_are_refused() -> None:
    with pytest.raises(ValueError, match="have bake, conn_id: give that to ControlledRollout itself"):
        group(default_args={"bake": "5 min", "conn_id": "other", "queue": "models"})
    assert group(default_args={"queue": "models"}).roll_back.queue == "models"


def test_arguments_that_a_task_sets_itself_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="task_id was given to the task 'ask_50'"):
        group(approval=True, approval_settings={"task_id": "mine"})
    with pytest.raises(ValueError, match="do_xcom_push was given to the task 'scan'"):
        group(scan={"do_xcom_push": False})


def test_group_can_be_nested_and_mapped() -> None:
    with DAG("weekly", schedule=None) as dag:

        @task_group
        def one(endpoint: str) -> None:
            ControlledRollout(**{**MINIMUM, "endpoint": endpoint}, on_deadline="ask")

        EmptyOperator(task_id="build") >> one.expand(endpoint=["digits", "letters"]) >> EmptyOperator(task_id="notify")
    # Until Airflow knows the instances, these rules are taken for all of them together: one would stop the others.
    together = {TriggerRule.ONE_SUCCESS, TriggerRule.ONE_DONE, TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS}
    going_on = [task for task in dag.tasks if task.task_id.partition("rollout.")[2].startswith(("shift", "promote"))]
    assert len(going_on) == 3
    assert not together & {task.trigger_rule for task in going_on}
    stored = DagSerialization.deserialize_dag(DagSerialization.serialize_dag(dag))
    assert stored.get_task("notify").upstream_task_ids == {"one.rollout.result"}
    assert stored.get_task("build").downstream_task_ids == {"one.rollout.check"}


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


@pytest.mark.parametrize("native", [True, False])
def test_text_stays_text_and_the_rest_is_as_the_dag_renders_it(native: bool) -> None:
    params = {"endpoint": "1e5", "version": "1234", "image": "None", "settings": {"cpu_cores": 1}, "min_requests": 5}
    templates = {name: f"{{{{ params.{name} }}}}" for name in params}
    with DAG("weekly", schedule=None, render_template_as_native_obj=native):
        rollout = ControlledRollout(**templates)  # type: ignore[arg-type] # all are text
    for task in rollout:
        task.render_template_fields({"task": task, "params": params})
    assert (rollout.check.endpoint, rollout.check.version, rollout.roll_out.image) == ("1e5", "1234", "None")
    assert rollout.roll_back.version == rollout.retire_old.replaced_by == "1234"
    assert rollout.gates[0].min_requests == (5 if native else "5")
    assert rollout.roll_out.settings == ({"cpu_cores": 1} if native else "{'cpu_cores': 1}")


def owner_of(task: Any, map_index: int = -1) -> str:
    ti = SimpleNamespace(dag_id="weekly", run_id="run-1", task_id=task.task_id, map_index=map_index)
    return run_of(cast("Any", {"ti": ti, "task": task}))


def test_two_groups_of_a_dag_that_deploy_the_same_version_are_two_owners() -> None:
    with DAG("weekly", schedule=None):
        one, two, other = (
            ControlledRollout(**{**MINIMUM, "endpoint": endpoint}, group_id=name)
            for name, endpoint in (("one", "digits"), ("two", "digits"), ("other", "letters"))
        )

    assert {owner_of(task) for task in one} == {"weekly/run-1[one]"}
    assert {owner_of(task) for task in two} == {"weekly/run-1[two]"}
    assert {owner_of(task) for task in other} == {"weekly/run-1"}
    assert owner_of(two.promote, map_index=3) == "weekly/run-1[two 3]"
    rollout = Rollout(version="v2a", owner=owner_of(one.promote), started=datetime(2026, 1, 5, tzinfo=UTC))
    assert rollout.is_of_run(owner_of(two.promote, map_index=3)) and rollout.is_of_run("weekly/run-1")
    assert not rollout.is_of_run("weekly/run-2[one]")


def test_a_dag_whose_runs_end_after_a_time_is_refused() -> None:
    with (
        DAG("weekly", schedule=None, dagrun_timeout=timedelta(days=1)),
        pytest.raises(ValueError, match=r"dagrun_timeout=1 day.* would end a rollout without its roll-back"),
    ):
        ControlledRollout(**MINIMUM)
