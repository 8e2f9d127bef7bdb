import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest
from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from controlled_rollout import ControlledRollout, Gate, TreatmentGateSensor, record
from controlled_rollout.defaults import LOOK_INTERVAL
from controlled_rollout.errors import RecordUnavailableError, TargetUnavailableError
from controlled_rollout.evaluation import judgements
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction
from controlled_rollout.operators import approval
from controlled_rollout.operators.approval import ApproveRolloutOperator, question_text, user_name
from controlled_rollout.steps import question as question_module
from controlled_rollout.steps.question import Question
from controlled_rollout.triggers.rollout_question import RolloutQuestionTrigger
from controlled_rollout.workspace import Workspace

REJECTED = {
    "chosen_options": ["Reject"], "params_input": {}, "responded_at": datetime(2026, 1, 5, tzinfo=UTC),
    "responded_by_user": {"id": "1", "name": "Ada"},
}  # fmt: skip
GROUP: dict[str, Any] = {"endpoint": "digits", "version": "v2a", "image": "local/digits@sha256:" + "0" * 64}


@dataclass
class TaskInstance:
    """What the task asks of its task instance."""

    dag_id: str = "weekly"
    run_id: str = "run-1"
    task_id: str = "ask_50"
    id: UUID = field(default_factory=lambda: UUID(int=7))

    def xcom_push(self, key: str, value: object) -> None:
        pass


def context() -> Context:
    ti = TaskInstance()
    return cast(Context, {"ti": ti, "task_instance": ti, "params": {"bin": "8 s"}})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    return Workspace.local(tmp_path)


def operator(**arguments: Any) -> ApproveRolloutOperator:
    """An approval behind a gate, in a DAG."""
    with DAG("weekly", schedule=None):
        gate = TreatmentGateSensor(
            task_id="gate_50", endpoint="digits", version="v2a", gate=Gate(alpha=0.01), bin_width="{{ params.bin }}"
        )
        ask = ApproveRolloutOperator(
            task_id="ask_50", endpoint="digits", version="v2a", **{"gate_task_id": "gate_50", **arguments}
        )
        gate >> ask
    return ask


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The questions that were stored in Airflow's database."""
    stored: list[dict[str, Any]] = []
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **question: stored.append(question))
    return stored


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Question | Exception]:
    """What endpoint and record say of the rollout: replace it to change it."""
    found: list[Question | Exception] = [Question("", "too few requests", "claim  e-value")]

    async def read_question(*_: object) -> Question:
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    monkeypatch.setattr(question_module, "read_question", read_question)
    return found


def trigger_of(call: Callable[[], object]) -> RolloutQuestionTrigger:
    """Execute the task, and return the trigger that it waits with."""
    with pytest.raises(TaskDeferred) as deferred:
        call()
    assert isinstance(deferred.value.trigger, RolloutQuestionTrigger)
    assert deferred.value.method_name == "execute_complete"
    return deferred.value.trigger


@pytest.mark.usefixtures("found")
def test_while_a_person_is_asked_the_looks_go_on_as_the_gates(home: Workspace, questions: list[dict[str, Any]]) -> None:
    trigger = trigger_of(lambda: operator(response_timeout=timedelta(hours=1)).execute(context()))

    terms = GateTerms.model_validate(json.loads(json.dumps(trigger.terms)))
    assert (terms.gate.alpha, terms.window.bin_width, terms.interval) == (0.01, timedelta(seconds=8), LOOK_INTERVAL)
    assert (terms.only_alarms, terms.who, terms.owner) == (True, "weekly/run-1/ask_50", "weekly/run-1")
    assert [question["body"].startswith("too few requests") for question in questions] == [True]
    assert questions[0]["subject"] == "Go on with version v2a of endpoint digits?"
    assert trigger.question["ti_id"] == str(UUID(int=7))
    assert datetime.fromisoformat(trigger.question["timeout_datetime"]) > datetime.now(UTC) + timedelta(minutes=59)
    assert [(line.step, line.reason) for line in record.read(home, "digits")] == [("ask", "too few requests")]


@pytest.mark.parametrize(
    "error", [RecordUnavailableError("the share is away"), TargetUnavailableError("503"), KeyError("x")]
)
def test_where_nobody_can_say_whether_the_gate_has_decided_a_person_is_asked(
    home: Workspace, questions: list[dict[str, Any]], found: list[Any], error: Exception
) -> None:
    found[0] = error
    home.records_folder.parent.mkdir(parents=True, exist_ok=True)
    home.records_folder.write_text("not a folder")
    trigger_of(lambda: operator().execute(context()))
    assert [f"cannot be read now: {error}" in question["body"] for question in questions] == [True]


@pytest.mark.usefixtures("found")
def test_approval_that_cannot_be_recorded_is_asked_for_again(
    home: Workspace, questions: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take_look(*_: object) -> LookResult:
        return LookResult(NextAction.WAIT, "a person is asked")

    async def record_answer(*_: object, **__: object) -> None:
        raise RecordUnavailableError("the share is away")

    monkeypatch.setattr(approval, "take_look", take_look)
    monkeypatch.setattr(judgements, "record_answer", record_answer)
    trigger_of(lambda: operator().execute_complete(context(), {**REJECTED, "chosen_options": ["Approve"]}))
    assert questions[0]["body"].startswith("Ada has approved, and it cannot be recorded (the share is away).")


def test_approval_without_its_gate_is_an_error_and_asks_nobody(home: Workspace, questions: list[Any]) -> None:
    with pytest.raises(AirflowFailException, match="the DAG has no TreatmentGateSensor of that name"):
        operator(gate_task_id="gate_10").execute(context())
    assert questions == []


@pytest.mark.parametrize("arguments", [{"defaults": "Approve"}, {"execution_timeout": timedelta(hours=1)}])
def test_passing_time_is_no_answer(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="was given to an approval"):
        operator(**arguments)


def test_execution_timeout_of_the_dag_ends_neither_a_gate_nor_a_question() -> None:
    with DAG("weekly", schedule=None, default_args={"execution_timeout": timedelta(minutes=5)}):
        rollout = ControlledRollout(**GROUP, approval=True, deferrable=False)
    assert rollout.promote.execution_timeout == timedelta(minutes=5)
    for task in (*rollout.gates, *rollout.approvals):
        assert task.execution_timeout is None
    assert rollout.approvals[0].response_timeout is None


@pytest.mark.parametrize(("action", "reason"), [("fail", "errors are higher"), ("conflict", "Ada holds it")])
def test_look_that_ends_the_rollout_withdraws_the_question_and_fails_the_task(
    home: Workspace, action: str, reason: str
) -> None:
    event = {"look": LookResult(NextAction(action), reason, "fail", "claim").to_event()}
    with pytest.raises(AirflowFailException, match=f"{action}: {reason}"):
        operator().execute_complete(context(), event)
    [line] = record.read(home, "digits")
    assert (line.step, line.who) == ("reject", "weekly/run-1/ask_50")
    assert line.reason == f"the question is withdrawn: {reason}"


def test_withdrawal_that_cannot_be_recorded_still_fails_the_task(home: Workspace) -> None:
    home.records_folder.parent.mkdir(parents=True, exist_ok=True)
    home.records_folder.write_text("not a folder")
    event = {"look": LookResult(NextAction.FAIL, "errors are higher", "fail").to_event()}
    with pytest.raises(AirflowFailException, match="errors are higher"):
        operator().execute_complete(context(), event)


def test_version_that_a_person_has_promoted_needs_no_answer(home: Workspace) -> None:
    event = {"look": LookResult(NextAction.NOTHING_TO_COMPARE, "v2a is the control already").to_event()}
    with pytest.raises(AirflowSkipException, match="the question is withdrawn: v2a is the control already"):
        operator().execute_complete(context(), event)


def test_approval_is_skipped_when_the_gate_has_decided_unless_it_is_always_asked_for(
    home: Workspace, questions: list[Any], found: list[Any]
) -> None:
    found[0] = Question("pass: errors are fine", "")
    with pytest.raises(AirflowSkipException, match="has decided: pass: errors are fine"):
        operator().execute(context())
    assert questions == []
    trigger_of(lambda: operator(always=True).execute(context()))


def test_the_question_shows_why_and_the_evidence() -> None:
    body = question_text(Question("", "no decision after 1 h", "claim  e-value"))
    assert body.startswith("no decision after 1 h")
    assert "```\nclaim  e-value\n```" in body


@pytest.mark.parametrize(
    ("user", "name"),
    [({"id": "1", "name": "Ada"}, "Ada"), (SimpleNamespace(id="2", name=""), "2"), (None, "somebody")],
)
def test_whoever_answered_is_named(user: object, name: str) -> None:
    assert user_name(user) == name


def test_a_no_fails_without_retries_and_is_in_the_record(home: Workspace) -> None:
    with pytest.raises(AirflowFailException, match="Ada rejected version 'v2a'"):
        operator().execute_complete(context(), REJECTED)
    [line] = record.read(home, "digits")
    assert (line.step, line.who) == ("reject", "Ada")


def test_no_answer_in_time_fails_too(home: Workspace) -> None:
    with pytest.raises(AirflowFailException, match="nobody answered: timeout"):
        operator().execute_complete(context(), {"error": "late", "error_type": "timeout"})


def test_gate_that_asks_a_person_needs_an_approval_task() -> None:

    with DAG("weekly", schedule=None):
        gate = TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", on_deadline="ask")

    with pytest.raises(AirflowFailException, match="no ApproveRolloutOperator comes directly after"):
        gate.execute(context())


def test_group_has_an_approval_after_each_gate_that_may_be_skipped() -> None:
    with DAG("weekly", schedule=None):
        rollout = ControlledRollout(**GROUP, on_deadline="ask")
    assert [task.task_id for task in rollout.approvals] == ["rollout.ask_10", "rollout.ask_50"]
    assert rollout.gates[0].downstream_task_ids == {"rollout.ask_10", "rollout.shift_50", "rollout.roll_back"}
    assert [shift.trigger_rule for shift in rollout.shifts] == ["all_success", "none_failed_min_one_success"]
    assert rollout.promote.upstream_task_ids == {"rollout.roll_out", "rollout.ask_50"}
    assert [task.gate_task_id for task in rollout.approvals] == ["rollout.gate_10", "rollout.gate_50"]


def test_an_approval_before_the_promotion_is_always_asked_for() -> None:
    with DAG("weekly", schedule=None):
        rollout = ControlledRollout(**GROUP, approval=True, approval_settings={"response_timeout": None})
    [ask] = rollout.approvals
    assert (ask.task_id, ask.always) == ("rollout.ask_50", True)
