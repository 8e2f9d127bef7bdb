"""The trigger of a question: whichever comes first, the person's answer or a look that ends the rollout."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from airflow.providers.standard.triggers import hitl
from airflow.triggers.base import TriggerEvent

from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction
from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.triggers import rollout_question, treatment_gate
from controlled_rollout.triggers.rollout_question import RolloutQuestionTrigger
from controlled_rollout.workspace import Workspace

TERMS = GateTerms(
    endpoint="digits", version="v2a", who="dag/run/ask", owner=None, gate=Gate(), bake=timedelta(0), min_requests=0,
    require_pass=True, decision_timeout=timedelta(days=1), on_deadline="ask", interval=timedelta(milliseconds=1),
    waiting_since=datetime.now(UTC), only_alarms=True,
)  # fmt: skip
QUESTION: dict[str, Any] = {
    "ti_id": str(UUID(int=7)), "options": ["Approve", "Reject"], "defaults": None, "params": {}, "multiple": False,
    "timeout_datetime": None,
}  # fmt: skip


def answered(option: str) -> SimpleNamespace:
    user = SimpleNamespace(id="1", name="Ada")
    return SimpleNamespace(
        response_received=True, chosen_options=[option], params_input={}, responded_at=datetime.now(UTC),
        responded_by_user=user,
    )  # fmt: skip


UNANSWERED = SimpleNamespace(response_received=False, chosen_options=None, responded_at=None)


class Airflow:
    """What Airflow's API and the looks say, one after another; the last of each is repeated."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.answers: list[Any] = [UNANSWERED]
        self.looks: list[NextAction] = [NextAction.WAIT]
        self.withdrawn: list[dict[str, Any]] = []
        self.withdrawal_error: Exception | None = None
        self._root = root
        patch.setattr(hitl, "get_hitl_detail_content_detail", self._detail)
        patch.setattr(rollout_question, "update_hitl_detail_response", self._withdraw)
        patch.setattr(rollout_question, "ANSWER_RETRY_S", 0.001)
        patch.setattr(WorkspaceHook, "aget_workspace", self._workspace)
        patch.setattr(treatment_gate, "take_look", self._look)

    def event(self, **question: Any) -> Any:
        """Run the trigger, and return its only event's payload."""

        async def only_event() -> TriggerEvent:
            path, arguments = RolloutQuestionTrigger(
                "models", TERMS.model_dump(mode="json"), {**QUESTION, **question}, "Reject"
            ).serialize()
            assert path == "controlled_rollout.triggers.rollout_question.RolloutQuestionTrigger"
            events = [event async for event in _run(json.loads(json.dumps(arguments)))]
            assert len(events) == 1
            return events[0]

        return asyncio.run(asyncio.wait_for(only_event(), 30)).payload

    def _detail(self, ti_id: UUID) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _withdraw(self, **response: Any) -> None:
        if self.withdrawal_error is not None:
            raise self.withdrawal_error
        self.withdrawn.append(response)

    async def _workspace(self) -> Workspace:
        return Workspace.local(self._root)

    async def _look(self, workspace: Workspace, terms: GateTerms, log: Any) -> LookResult:
        assert terms.only_alarms
        return LookResult(self.looks.pop(0) if len(self.looks) > 1 else self.looks[0], "because", "fail")


def _run(arguments: dict[str, Any]) -> AsyncIterator[TriggerEvent]:
    return RolloutQuestionTrigger(**arguments).run()


@pytest.fixture
def airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Airflow:
    return Airflow(tmp_path, monkeypatch)


def test_answer_ends_the_wait_and_the_question_stays_as_it_was_answered(airflow: Airflow) -> None:
    airflow.answers = [answered("Approve")]
    assert airflow.event()["chosen_options"] == ["Approve"]
    assert airflow.withdrawn == []


@pytest.mark.parametrize("action", [NextAction.FAIL, NextAction.CONFLICT, NextAction.NOTHING_TO_COMPARE])
def test_look_that_ends_the_rollout_withdraws_the_question(airflow: Airflow, action: NextAction) -> None:
    airflow.looks = [NextAction.WAIT, NextAction.WAIT, action]
    assert airflow.event() == {"look": LookResult(action, "because", "fail").to_event()}
    assert airflow.withdrawn == [{"ti_id": UUID(int=7), "chosen_options": ["Reject"], "params_input": {}}]


def test_alarm_is_reported_although_the_question_cannot_be_withdrawn(airflow: Airflow) -> None:
    airflow.looks = [NextAction.FAIL]
    airflow.withdrawal_error = RuntimeError("409: somebody has answered")
    assert airflow.event()["look"]["action"] == "fail"


def test_alarm_does_not_wait_for_an_api_that_hangs(airflow: Airflow, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(rollout_question, "update_hitl_detail_response", lambda **_: released.wait(20))
    monkeypatch.setattr(rollout_question, "WITHDRAWAL_TIMEOUT_S", 0.01)
    threading.Timer(0.5, released.set).start()
    airflow.looks = [NextAction.FAIL]
    assert airflow.event()["look"]["action"] == "fail"


def test_airflow_api_that_is_away_ends_neither_the_looks_nor_the_wait_for_the_answer(airflow: Airflow) -> None:
    airflow.answers = [ConnectionError("503"), RuntimeError("500"), answered("Reject")]
    assert airflow.event()["chosen_options"] == ["Reject"]
    airflow.answers, airflow.looks = [ConnectionError("503")], [NextAction.WAIT] * 5 + [NextAction.FAIL]
    assert airflow.event()["look"]["action"] == "fail"


def test_nobody_answers_in_time(airflow: Airflow) -> None:
    late = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    assert airflow.event(timeout_datetime=late)["error_type"] == "timeout"
