"""The gate's trigger: what it does when it cannot even begin to look."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.triggers.base import TriggerEvent

from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction
from controlled_rollout.gate import Gate
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.triggers import treatment_gate
from controlled_rollout.triggers.treatment_gate import TreatmentGateTrigger
from controlled_rollout.workspace import Workspace

TERMS = GateTerms(
    endpoint="digits", version="v2a", who="dag/run/gate", owner=None, gate=Gate(), bake=timedelta(0), min_requests=0,
    require_pass=True, decision_timeout=timedelta(days=1), on_deadline="hold", interval=timedelta(milliseconds=1),
    waiting_since=datetime.now(UTC),
)  # fmt: skip


def test_connection_that_cannot_be_read_for_a_while_only_makes_the_gate_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = [ConnectionError("vault is sealed"), KeyError("token"), Workspace.local(tmp_path)]

    async def workspace_of_connection(self: WorkspaceHook) -> Workspace:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Workspace.local(tmp_path)

    async def take_look(workspace: Workspace, terms: GateTerms, log: Any) -> LookResult:
        return LookResult(NextAction.GO_ON, "good", "pass")

    async def first_event() -> TriggerEvent:
        return await anext(TreatmentGateTrigger("models", TERMS.model_dump(mode="json")).run())

    monkeypatch.setattr(WorkspaceHook, "aget_workspace", workspace_of_connection)
    monkeypatch.setattr(treatment_gate, "take_look", take_look)
    event = asyncio.run(first_event())

    assert event.payload["action"] == "go_on"
    assert answers == []
