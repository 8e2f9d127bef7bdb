"""The last look before a step that raises a share: as the gate before it looks."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, Context, task_group
from airflow.sdk.exceptions import AirflowFailException

from controlled_rollout import ControlledRollout, PromoteToControlOperator, ShiftTrafficOperator, steps
from controlled_rollout.errors import NotJudgedError
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction
from controlled_rollout.operators import gate_before as module
from controlled_rollout.operators.gate_before import gate_before, last_look, terms_of_alarms
from controlled_rollout.target import connect as connect_module
from controlled_rollout.workspace import Workspace
from tests.unit.evaluation.one_endpoint import OneEndpoint

NOW = datetime.now(UTC)
HOUR = timedelta(hours=1)
GROUP: dict[str, Any] = {"endpoint": "digits", "version": "v2a", "image": "local/digits@sha256:" + "0" * 64}


def context() -> Context:
    ti = SimpleNamespace(dag_id="weekly", run_id="run-1", task_id="promote", xcom_push=lambda key, value: None)
    return cast("Context", {"ti": ti, "task_instance": ti, "params": {"bin": "10 s"}})


def group(**arguments: Any) -> ControlledRollout:
    with DAG("weekly", schedule=None):
        return ControlledRollout(**{**GROUP, **arguments})


@pytest.mark.parametrize("asks", [{}, {"approval": True}, {"on_deadline": "ask"}])
def test_every_step_that_raises_a_share_has_its_gate_before_it(asks: dict[str, Any]) -> None:
    rollout = group(**asks)
    assert gate_before(rollout.promote) is rollout.gates[-1]
    assert gate_before(rollout.shifts[1]) is rollout.gates[0]
    assert gate_before(rollout.shifts[0]) is None


def look_before(task: Any, workspace: Workspace, *, version: str = "v2a", percentile: float | None = None) -> None:
    """Take the last look before a task."""
    asyncio.run(last_look(task, context(), workspace, endpoint="digits", version=version, percentile=percentile))


class Looks:
    """Looks with one result, and the terms that they were taken with."""

    def __init__(self, patch: pytest.MonkeyPatch, action: NextAction) -> None:
        self.terms: list[GateTerms] = []
        self._result = LookResult(action, "errors are higher", "fail", "claim  e-value")
        patch.setattr(module, "take_look", self.take)

    async def take(self, workspace: Workspace, terms: GateTerms, log: object) -> LookResult:
        self.terms.append(terms)
        return self._result


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with the endpoint digits, whose treatment v2a has half of the traffic."""
    monkeypatch.setenv("CONTROLLED_ROLLOUT_HOME", str(tmp_path))
    target = OneEndpoint(before=NOW - HOUR, created=NOW - HOUR, counted=dict)
    monkeypatch.setattr(connect_module, "connect", target.connect)
    return Workspace.local(tmp_path)


def test_last_look_is_the_gates_and_decides_nothing_but_an_alarm(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = group(bin_width="{{ params.bin }}", gate={"alpha": 0.01})
    for action in (NextAction.WAIT, NextAction.CONFLICT, NextAction.NOTHING_TO_COMPARE):
        looks = Looks(monkeypatch, action)
        look_before(rollout.promote, workspace)
        [terms] = looks.terms
        assert (terms.only_alarms, terms.gate.alpha, terms.window.bin_width) == (True, 0.01, timedelta(seconds=10))
        assert (terms.who, terms.owner) == ("weekly/run-1/promote", "weekly/run-1")


@pytest.mark.parametrize("name", ["promote", "shift_60"])
def test_alarm_between_the_gate_and_the_step_fails_the_step_before_anything_changes(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Looks(monkeypatch, NextAction.FAIL)
    monkeypatch.setattr(steps, "run_step", lambda *_, **__: pytest.fail("the step was taken"))
    task = group(steps=(25, 60)).dag.task_dict[f"rollout.{name}"]
    with pytest.raises(AirflowFailException, match="the last look before this step: errors are higher"):
        cast("PromoteToControlOperator | ShiftTrafficOperator", task).execute(context())


def test_task_outside_a_dag_has_no_gate_before_it() -> None:
    assert gate_before(PromoteToControlOperator(task_id="promote", endpoint="digits", version="v2a")) is None


@pytest.mark.parametrize(("map_index", "endpoint"), [(0, "alpha"), (1, "beta")])
def test_in_a_mapped_group_the_looks_are_those_of_the_same_instance(map_index: int, endpoint: str) -> None:
    with DAG("weekly", schedule=None) as dag:

        @task_group
        def each(endpoint: Any) -> None:
            ControlledRollout(**{**GROUP, "endpoint": endpoint}, on_deadline="ask")

        each.expand(endpoint=["alpha", "beta"])
    instance = context()
    instance["ti"].map_index = map_index
    for name in ("promote", "shift_50"):
        gate = gate_before(cast("PromoteToControlOperator", dag.task_dict[f"each.rollout.{name}"]))
        assert gate is not None
        assert terms_of_alarms(gate, instance).endpoint == endpoint


def test_step_of_a_person_and_the_first_shift_take_no_look(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch, NextAction.FAIL)
    with DAG("by_hand", schedule=None):
        by_hand = PromoteToControlOperator(task_id="promote", endpoint="digits", version="v2a", own_rollout=False)
    for task in (by_hand, group().shifts[0]):
        look_before(task, workspace)
    assert looks.terms == []


@pytest.mark.parametrize("percentile", [0, 10, 50])
def test_step_down_waits_for_no_look(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, percentile: float) -> None:
    looks = Looks(monkeypatch, NextAction.FAIL)
    look_before(group().shifts[1], workspace, percentile=percentile)
    assert looks.terms == []
    with pytest.raises(NotJudgedError):
        look_before(group().shifts[1], workspace, percentile=51)


def test_step_of_another_version_than_the_judged_one_waits_for_no_look(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch, NextAction.FAIL)
    look_before(group().promote, workspace, version="v1a")
    assert looks.terms == []
