import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from controlled_rollout import ControlledRollout, TreatmentGateSensor, record
from controlled_rollout.errors import ArgumentError
from controlled_rollout.operators.approval import ApproveRolloutOperator, question_text, user_name
from controlled_rollout.workspace import Workspace

GROUP: dict[str, Any] = {"endpoint": "digits", "version": "v2a", "image": "local/digits@sha256:" + "0" * 64}


@dataclass
class TaskInstance:
    """What the task asks of its task instance; `result` is what the gate's task has returned."""

    result: dict[str, Any]
    dag_id: str = "weekly"
    run_id: str = "run-1"
    task_id: str = "ask_50"

    def xcom_push(self, key: str, value: object) -> None:
        pass

    def xcom_pull(self, task_ids: str) -> dict[str, Any]:
        return self.result


def context(result: dict[str, Any]) -> Context:
    ti = TaskInstance(result)
    return cast(Context, {"ti": ti, "task_instance": ti})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    return Workspace.local(tmp_path)


def operator() -> ApproveRolloutOperator:
    return ApproveRolloutOperator(task_id="ask_50", endpoint="digits", version="v2a", gate_task_id="gate_50")


def test_approval_is_skipped_when_the_gate_has_decided() -> None:
    with pytest.raises(AirflowSkipException, match="has decided: errors are fine"):
        operator().execute(context({"asks": False, "reason": "errors are fine"}))


def test_the_question_shows_why_and_the_evidence() -> None:
    body = question_text({"reason": "no decision after 1 h", "table": "claim  e-value"})
    assert body.startswith("no decision after 1 h")
    assert "```\nclaim  e-value\n```" in body


@pytest.mark.parametrize(
    ("user", "name"),
    [({"id": "1", "name": "Ada"}, "Ada"), (SimpleNamespace(id="2", name=""), "2"), (None, "somebody")],
)
def test_whoever_answered_is_named(user: object, name: str) -> None:
    assert user_name(user) == name


def test_a_no_fails_without_retries_and_is_in_the_record(home: Workspace) -> None:
    event = {
        "chosen_options": ["Reject"], "params_input": {}, "responded_at": datetime.now(UTC),
        "responded_by_user": {"id": "1", "name": "Ada"},
    }  # fmt: skip
    with pytest.raises(AirflowFailException, match="Ada rejected version 'v2a'"):
        operator().execute_complete(context({}), event)
    [line] = record.read(home, "digits")
    assert (line.step, line.who) == ("reject", "Ada")


def test_no_answer_in_time_fails_too(home: Workspace) -> None:
    with pytest.raises(AirflowFailException, match="nobody answered: timeout"):
        operator().execute_complete(context({}), {"error": "late", "error_type": "timeout"})


def test_gate_that_asks_a_person_needs_an_approval_task() -> None:

    with DAG("weekly", schedule=None):
        gate = TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", on_deadline="ask")

    with pytest.raises(ArgumentError, match="no ApproveRolloutOperator comes directly after"):
        asyncio.run(gate._gate_terms(context({}), Workspace.local("/nonexistent")))


def test_group_has_an_approval_after_each_gate_that_may_be_skipped() -> None:
    with DAG("weekly", schedule=None):
        rollout = ControlledRollout(**GROUP, on_deadline="ask")
    assert [task.task_id for task in rollout.approvals] == ["rollout.ask_10", "rollout.ask_50"]
    assert rollout.gates[0].downstream_task_ids == {"rollout.ask_10", "rollout.roll_back"}
    assert [shift.trigger_rule for shift in rollout.shifts] == ["all_success", "none_failed"]
    assert rollout.promote.upstream_task_ids == {"rollout.ask_50"}
    assert [task.gate_task_id for task in rollout.approvals] == ["rollout.gate_10", "rollout.gate_50"]


def test_an_approval_before_the_promotion_is_always_asked_for() -> None:
    with DAG("weekly", schedule=None):
        rollout = ControlledRollout(**GROUP, approval=True, approval_settings={"response_timeout": None})
    [ask] = rollout.approvals
    assert (ask.task_id, ask.always) == ("rollout.ask_50", True)
