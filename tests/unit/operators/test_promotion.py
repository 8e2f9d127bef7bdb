import logging
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, Asset, Context
from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.sdk.execution_time.context import OutletEventAccessors

from controlled_rollout import PromoteToControlOperator, ShiftTrafficOperator, control_asset, record, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError, NothingToDoError, WorkspaceError
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.new_control import NEW_CONTROL, NewControl, announce
from controlled_rollout.operators.promotion import RollBackOperator
from controlled_rollout.record import Decision
from controlled_rollout.steps import Change, going_back, new_control
from controlled_rollout.workspace import Workspace
from tests.unit.steps.memory_target import MemoryTarget

DEFAULT = "controlled_rollout_default"


def test_an_endpoint_has_an_asset_of_its_own() -> None:
    assert control_asset("digits") == Asset("controlled-rollout://digits/control")
    assert control_asset("digits", "aks/prod") == Asset("controlled-rollout://digits/control/aks%2Fprod")


async def test_a_new_control_updates_the_endpoint_s_asset_with_digest_verdict_and_former_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = MemoryTarget()
    monkeypatch.setattr(new_control, "connect", target.open)
    workspace = Workspace.local(tmp_path)
    first = Endpoint(name="digits").create_version("old", is_control=True, image="a@sha256:1")
    held = first.create_version("v2a", image="a@sha256:2").claim("v2a", owner="weekly/run-1", at=datetime.now(UTC))
    stored = await target.apply(held, Change(who="setup"))
    gate = "weekly/run-1/gate_50"
    judged = Decision.about(stored, "v2a", step="go_on", who=gate, reason="no claim alarms", outcome="pass")
    record.append(workspace, judged)
    # Of another rollout of that version: not what this promotion rests on.
    record.append(workspace, judged.model_copy(update={"run": "weekly/run-0", "reason": "it was good last week"}))
    stored = await target.apply(stored.promote("v2a").release("v2a"), Change(who="weekly/run-1/promote"))

    def extra() -> dict[str, Any]:
        [event] = events[NEW_CONTROL].asset_alias_events
        assert event.dest_asset_key.uri == "controlled-rollout://digits/control"
        return dict(event.extra)

    ti = SimpleNamespace(dag_id="weekly", run_id="run-1", task_id="promote")
    events = OutletEventAccessors()
    told = await announce(cast("Context", {"ti": ti, "outlet_events": events}), DEFAULT, workspace, stored, None)
    known = extra()
    assert told == NewControl(former_control="old", verdict=known["verdict"])
    verdict = known.pop("verdict")
    assert known == {
        "endpoint": "digits", "workspace": DEFAULT, "version": "v2a", "who": "weekly/run-1/promote",
        "digest": "sha256:2", "former_control": "old",
    }  # fmt: skip
    assert verdict.pop("time")
    assert verdict == {"outcome": "pass", "reason": "no claim alarms", "who": "weekly/run-1/gate_50"}

    # An alias in MLflow's registry that no version's properties move any more is told.
    aliased = stored.update_version("old", properties={"mlflow_alias": "champion", "mlflow_model": "models:/digits/7"})
    events = OutletEventAccessors()
    context = cast("Context", {"ti": ti, "outlet_events": events})
    told = await announce(context, DEFAULT, workspace, aliased, logging.getLogger("test"))
    assert told.trouble == extra()["trouble"]
    assert "'champion' in MLflow's registry stays at models:/digits/7 of 'old'" in told.trouble

    # A record or a target that cannot be read takes these two from the event, and no more.
    events, target.failing_calls = OutletEventAccessors(), 1
    log = logging.getLogger("test")
    assert (
        await announce(cast("Context", {"ti": ti, "outlet_events": events}), DEFAULT, workspace, stored, log)
        == NewControl()
    )
    assert extra() == {name: value for name, value in known.items() if name != "former_control"}

    # A DAG that is scheduled on the control of production is not run by a promotion in staging.
    for conn_id in ("aks_prod", "aks_staging"):
        events = OutletEventAccessors()
        await announce(cast("Context", {"ti": ti, "outlet_events": events}), conn_id, workspace, stored, log)
        updated = [
            (event.dest_asset_key.uri, event.extra["workspace"]) for event in events[NEW_CONTROL].asset_alias_events
        ]
        assert updated == [(control_asset("digits").uri, conn_id), (control_asset("digits", conn_id).uri, conn_id)]


def test_approval_that_would_not_be_looked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="needs_approval=True was given with own_rollout=False"):
        PromoteToControlOperator(
            task_id="promote", endpoint="digits", version="v2a", needs_approval=True, own_rollout=False
        )


@pytest.mark.parametrize(
    ("failures", "reason"),
    [
        ([None, "fail: errors are higher"], "fail: errors are higher"),
        (["one", "two"], "one; two"),
        ([None, None], "roll back v2a: a task before it failed"),
    ],
)
def test_a_roll_back_gives_the_reasons_of_the_failed_tasks_before_it(failures: list[Any], reason: str) -> None:
    with DAG("weekly", schedule=None):
        back = RollBackOperator(task_id="roll_back", endpoint="digits", version="v2a")
        for number in (1, 2):
            ShiftTrafficOperator(task_id=f"shift_{number}", endpoint="digits", version="v2a", percentile=number) >> back
    ti = SimpleNamespace(xcom_pull=lambda task_ids, key: failures if task_ids == ["shift_1", "shift_2"] else [])

    assert back._upstream_failure_reasons(cast("Context", {"ti": ti})) == reason


def no_answer(**_: Any) -> Any:
    raise ConnectionError("the API server of Airflow does not answer")


def test_a_roll_back_does_without_reasons_that_cannot_be_read() -> None:
    with DAG("weekly", schedule=None):
        back = RollBackOperator(task_id="roll_back", endpoint="digits", version="v2a")
        ShiftTrafficOperator(task_id="shift", endpoint="digits", version="v2a", percentile=1) >> back
    ti = SimpleNamespace(xcom_pull=no_answer)

    assert back._upstream_failure_reasons(cast("Context", {"ti": ti})) == "roll back v2a: a task before it failed"


def test_a_roll_back_reads_its_connection_again_while_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [ConnectionError("no answer"), TimeoutError("no answer"), Workspace.local("/somewhere")]

    def get_workspace(hook: WorkspaceHook) -> Workspace:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return cast("Workspace", answer)

    monkeypatch.setattr(WorkspaceHook, "get_workspace", get_workspace)
    monkeypatch.setattr(going_back, "FIRST_PAUSE_S", 0.001)
    back = RollBackOperator(task_id="roll_back", endpoint="digits", version="v2a")

    assert back.workspace() == Workspace.local("/somewhere")
    for lasting in (WorkspaceError("a wrong setting"), AirflowNotFoundException("no such connection")):
        answers.append(lasting)
        with pytest.raises(type(lasting)):
            back.workspace()


@pytest.mark.parametrize("operator", [PromoteToControlOperator, ShiftTrafficOperator])
@pytest.mark.parametrize(
    ("rule", "held", "there", "is_skipped"),
    [
        ("none_failed", False, False, True),
        ("none_failed", False, True, True),
        ("none_failed", True, True, False),
        ("all_success", False, True, False),
        ("all_success", False, False, False),
    ],
)
async def test_a_task_that_runs_after_skipped_ones_is_skipped_if_its_run_has_rolled_nothing_out(
    operator: Any, rule: str, held: bool, there: bool, is_skipped: bool,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    target = MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    if there:
        first = Endpoint(name="digits").create_version("old", is_control=True, image="a@sha256:1")
        stored = await target.apply(first, Change(who="setup"))
        if held:
            stored = await target.apply(
                stored.claim("old", owner="weekly/run-1", at=datetime.now(UTC)), Change(who="x")
            )
            await target.apply(stored.release("old"), Change(who="somebody"))
    more = {"percentile": 10} if operator is ShiftTrafficOperator else {}
    task = operator(task_id="task", endpoint="digits", version="new", trigger_rule=rule, timeout=0, **more)
    ti = SimpleNamespace(dag_id="weekly", run_id="run-1", task_id="task", map_index=-1)

    with pytest.raises(ControlledRolloutError) as refused:
        await task.step(cast("Context", {"ti": ti, "task": task}), Workspace.local(tmp_path))
    assert isinstance(refused.value, NothingToDoError) is is_skipped
