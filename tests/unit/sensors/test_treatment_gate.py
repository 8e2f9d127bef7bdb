import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from airflow.sdk import DAG, BaseNotifier, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.serialization.serialized_objects import BaseSerialization, DagSerialization

from controlled_rollout import Gate, TreatmentGateSensor
from controlled_rollout.evaluation import hold
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.sensors import treatment_gate
from controlled_rollout.triggers.treatment_gate import TreatmentGateTrigger
from controlled_rollout.workspace import Workspace

HOLD = LookResult(NextAction.HOLD, "no decision in time", "not_enough_evidence")
TERMS = {"endpoint": "digits", "version": "v2a", "gate": {"alpha": 0.05, "warm_up": "PT5M"}}


def test_a_trigger_is_the_same_in_another_process() -> None:
    from airflow.sdk._shared.module_loading import import_string

    path, arguments = TreatmentGateTrigger("controlled_rollout_default", TERMS).serialize()
    json.dumps(arguments, allow_nan=False)
    carried = BaseSerialization.deserialize(BaseSerialization.serialize(arguments))
    again = import_string(path)(**carried)
    assert type(again) is TreatmentGateTrigger
    assert again.serialize() == (path, arguments)


@pytest.mark.parametrize("argument", ["soft_fail", "never_fail", "silent_fail"])
def test_argument_that_would_hide_a_failed_gate_is_refused(argument: str) -> None:
    arguments: dict[str, Any] = {argument: True}
    with pytest.raises(ValueError, match="would let a treatment go on"):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", **arguments)


@pytest.mark.parametrize("argument", ["soft_fail", "never_fail", "silent_fail"])
def test_default_argument_of_the_dag_that_would_hide_a_failed_gate_is_refused(argument: str) -> None:
    with (
        DAG("weekly", schedule=None, default_args={argument: True}),
        pytest.raises(ValueError, match="would let a treatment go on"),
    ):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a")


def test_default_arguments_of_the_dag_make_no_look_come_later() -> None:
    slow = {"exponential_backoff": True, "execution_timeout": timedelta(minutes=5)}
    with DAG("weekly", schedule=None, default_args=slow):
        task = TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a")
    assert not task.exponential_backoff
    assert task.execution_timeout is None


def test_gate_that_would_fail_because_time_has_passed_is_refused() -> None:
    with pytest.raises(ValueError, match="decision_timeout and on_deadline say how long"):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", execution_timeout=timedelta(minutes=5))


def test_gate_with_an_unknown_on_deadline_is_refused_when_its_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="on_deadline = 'rollback' is not known: choose one of hold, roll_back, ask"):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", on_deadline="rollback")
    template = "{{ params.on_deadline }}"
    assert TreatmentGateSensor(task_id="gate", endpoint="d", version="v", on_deadline=template).on_deadline == template


def test_timeout_of_a_sensor_is_refused_for_a_gate_and_that_of_the_dag_does_not_apply() -> None:
    with pytest.raises(ValueError, match=r"timeout=60 was given to a gate: .*decision_timeout says"):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", timeout=60)
    with DAG("weekly", schedule=None, default_args={"timeout": 60}):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a")


def test_a_dag_with_a_gate_is_stored_the_same_each_time_it_is_parsed() -> None:
    def parsed() -> dict[str, Any]:
        with DAG("weekly", schedule=None) as dag:
            TreatmentGateSensor(
                task_id="gate",
                endpoint="digits",
                version="{{ params.version }}",
                gate=Gate(warm_up=timedelta(minutes=5)),
                bake=timedelta(minutes=10),
            )
        return DagSerialization.to_dict(dag)

    assert json.dumps(parsed(), sort_keys=True) == json.dumps(parsed(), sort_keys=True)


@dataclass
class TaskInstance:
    """What a gate asks of its task instance."""

    dag_id: str = "weekly"
    run_id: str = "run-1"
    task_id: str = "gate"
    pushed: dict[str, Any] = field(default_factory=dict)
    rescheduled: datetime | None = None

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_first_reschedule_date(self, context: Context) -> datetime | None:
        return self.rescheduled


class Notifier(BaseNotifier):
    """Counts the holds that it was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.notified = 0

    def notify(self, context: Context) -> None:
        self.notified += 1
        raise ConnectionError("the chat is away")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    ti = TaskInstance()
    return cast("Context", {"ti": ti, "task_instance": ti})


def gate(**arguments: Any) -> TreatmentGateSensor:
    with DAG("weekly", schedule=None):
        return TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", **arguments)


def deferred_terms(call: Callable[[], object]) -> GateTerms:
    """Return the terms of the trigger that a task defers with."""
    with pytest.raises(TaskDeferred) as deferred:
        call()
    assert isinstance(deferred.value.trigger, TreatmentGateTrigger)
    return GateTerms.model_validate(json.loads(json.dumps(deferred.value.trigger.terms)))


def test_gate_on_hold_tells_people_and_waits_on_although_nobody_can_be_told(context: Context) -> None:
    notifier = Notifier()
    task = gate(deferrable=True, unseen_timeout="2 d", on_hold=notifier)
    terms = deferred_terms(lambda: task.execute(context))
    assert (terms.held, terms.unseen_timeout) == (None, timedelta(days=2))

    event = {**HOLD.to_event(), "terms": terms.model_dump(mode="json")}
    held = deferred_terms(lambda: task.execute_complete(context, event))
    assert held.held is not None
    assert held == terms.model_copy(update={"held": held.held}), "a look on hold is the same look"
    assert notifier.notified == 1


def test_gate_in_a_worker_goes_on_looking_on_hold(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[GateTerms] = []
    results = [HOLD, LookResult(NextAction.WAIT, "on hold"), LookResult(NextAction.FAIL, "errors are higher")]

    async def take_look(workspace: Workspace, terms: GateTerms, log: object) -> LookResult:
        looked.append(terms)
        return results.pop(0)

    monkeypatch.setattr(treatment_gate, "take_look", take_look)
    task = gate(deferrable=False)
    assert not task.poke(context)
    assert not task.poke(context)
    with pytest.raises(AirflowFailException, match="errors are higher"):
        task.poke(context)
    assert [terms.held is None for terms in looked] == [True, False, False]


def test_rescheduled_gate_knows_since_when_it_waits(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    context["ti"].rescheduled = datetime(2026, 1, 5, tzinfo=UTC)  # type: ignore[attr-defined] # the test's own
    assert gate(mode="reschedule", deferrable=False)._own_terms(context).waiting_since == datetime(
        2026, 1, 5, tzinfo=UTC
    )


def test_a_gate_looks_first_once_airflow_knows_since_when_it_waits(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Airflow dates its begin at the end of its first process: a hold of that one would have ended for the next."""
    looked: list[GateTerms] = []

    async def take_look(workspace: Workspace, terms: GateTerms, log: object) -> LookResult:
        looked.append(terms)
        return HOLD

    monkeypatch.setattr(treatment_gate, "take_look", take_look)
    task = gate(mode="reschedule", deferrable=False, interval="1 min")
    assert not task.poke(context)
    assert (looked, task.poke_interval) == ([], 6)
    began = context["ti"].rescheduled = datetime.now(UTC)  # type: ignore[attr-defined] # the test's own
    assert not gate(mode="reschedule", deferrable=False).poke(context)
    assert [(terms.waiting_since, terms.forgets_hold) for terms in looked] == [(began, True)]


def test_rescheduled_gate_tells_people_once(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def take_look(workspace: Workspace, terms: GateTerms, log: object) -> LookResult:
        return HOLD

    monkeypatch.setattr(treatment_gate, "take_look", take_look)
    context["ti"].rescheduled = datetime(2026, 1, 5, tzinfo=UTC)  # type: ignore[attr-defined] # the test's own
    notifier = Notifier()
    for _ in range(3):  # a process for each
        assert not gate(mode="reschedule", deferrable=False, on_hold=notifier).poke(context)
    assert notifier.notified == 1


def test_connection_that_cannot_be_read_only_makes_a_gate_in_a_worker_wait(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get_workspace(self: WorkspaceHook) -> Workspace:
        raise ConnectionError("vault is sealed")

    monkeypatch.setattr(WorkspaceHook, "get_workspace", get_workspace)
    assert not gate(deferrable=False).poke(context)


def test_rescheduled_gate_goes_on_from_the_hold_that_is_recorded(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    since = datetime(2026, 1, 5, tzinfo=UTC)

    async def recorded_hold(workspace: Workspace, terms: GateTerms) -> datetime:
        return since

    monkeypatch.setattr(hold, "recorded_hold", recorded_hold)
    notifier = Notifier()
    task = gate(mode="reschedule", deferrable=False, on_hold=notifier)

    assert task._hold(context, HOLD, task._own_terms(context)).held == since
    assert notifier.notified == 0, "they were told when it was recorded"


def test_hold_that_cannot_be_written_ends_no_look(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    async def put_on_hold(*arguments: object) -> None:
        raise ConnectionError("the storage is away")

    monkeypatch.setattr(hold, "put_on_hold", put_on_hold)
    task = gate(deferrable=False)

    assert task._hold(context, HOLD, task._own_terms(context)).held is not None


@pytest.mark.parametrize(
    ("action", "expected"),
    [(NextAction.GO_ON, False), (NextAction.ASK, True)],
)
def test_what_a_gate_has_decided_is_the_tasks_value(context: Context, action: NextAction, expected: bool) -> None:
    task = gate(deferrable=True)
    event = LookResult(action, "as good as control", "pass", "the table").to_event()

    assert task.execute_complete(context, event) == {
        "outcome": "pass",
        "reason": "as good as control",
        "table": "the table",
        "asks": expected,
    }


def test_a_first_version_with_nothing_to_compare_skips_its_gate(context: Context) -> None:
    event = LookResult(NextAction.NOTHING_TO_COMPARE, "v2a is the first version").to_event()
    with pytest.raises(AirflowSkipException, match="v2a is the first version"):
        gate(deferrable=True).execute_complete(context, event)


def test_a_gate_that_asks_needs_a_task_that_asks(context: Context) -> None:
    with pytest.raises(AirflowFailException, match="no ApproveRolloutOperator comes directly after"):
        gate(on_deadline="ask").execute(context)


def test_wrong_argument_fails_a_gate_without_retries(context: Context) -> None:
    with pytest.raises(AirflowFailException, match="unseen_timeout"):
        gate(unseen_timeout="for a while").execute(context)


@pytest.mark.parametrize("given", ["me@example.com", ["me@example.com"], None])
def test_notifiers_that_could_tell_nobody_about_a_hold_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"on_hold=.*: give notifiers"):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", on_hold=given)
