"""Where the buttons of tasks lead, and when that is pushed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import TaskDeferred
from airflow.sdk.execution_time.xcom import XCom
from airflow.serialization.serialized_objects import DagSerialization

from controlled_rollout import ControlledRollout, ShiftTrafficOperator, TreatmentGateSensor
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.links.task_links import EndpointLink, ReportLink, push_report
from controlled_rollout.operators.promotion import RollBackOperator
from controlled_rollout.provider_info import get_provider_info
from controlled_rollout.workspace import Workspace

PAGE = "plugin/controlled-rollout/controlled_rollout_default/digits"
RESOURCE = (
    "/subscriptions/11111111-2222-4333-8444-555555555555/resourceGroups/ml"
    "/providers/Microsoft.OperationalInsights/workspaces/telemetry"
)
IMAGE = "models/digits@sha256:" + "1" * 64


class Worker:
    """A task instance that keeps what is pushed, or refuses it."""

    dag_id, run_id, task_id = "weekly", "run-1", "step"

    def __init__(self, refuses: bool = False) -> None:
        self.pushed: dict[str, Any] = {}
        self.refuses = refuses

    def xcom_push(self, key: str, value: Any) -> None:
        if self.refuses:
            raise ConnectionError("the API server of Airflow does not answer")
        self.pushed[key] = value

    @property
    def context(self) -> Context:
        run = SimpleNamespace(start_date=datetime(2026, 11, 29, tzinfo=UTC))
        return cast("Context", {"ti": self, "dag_run": run})


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace.from_settings({"root": str(tmp_path), "telemetry_resource_id": RESOURCE})
    monkeypatch.setattr(WorkspaceHook, "get_workspace", lambda hook: workspace)


class Shift(ShiftTrafficOperator):
    """A shift that reaches no target."""

    async def step(self, context: Context, workspace: Workspace) -> dict[str, float]:
        assert "_link_EndpointLink" in cast("Any", context["ti"]).pushed or cast("Any", context["ti"]).refuses
        return {"v2": 10.0}


def shift() -> Shift:
    return Shift(task_id="shift", endpoint="digits", version="v2", percentile=10)


def test_a_task_says_where_its_buttons_lead_before_it_begins_its_work() -> None:
    worker = Worker()
    shift().execute(worker.context)
    assert worker.pushed.pop("_link_RequestsLink").startswith("https://portal.azure.com/#view/")
    assert worker.pushed == {"_link_EndpointLink": PAGE, "_link_VersionLogLink": f"{PAGE}?version=v2"}


def test_links_that_cannot_be_pushed_change_nothing() -> None:
    assert shift().execute(Worker(refuses=True).context) == {"v2": 10.0}


def test_a_gate_says_where_its_buttons_lead_before_it_is_deferred() -> None:
    worker = Worker()
    with DAG("weekly", schedule=None):
        gate = TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2", deferrable=True)
    with pytest.raises(TaskDeferred):
        gate.execute(worker.context)
    assert set(worker.pushed) == {"_link_EndpointLink", "_link_VersionLogLink", "_link_RequestsLink"}


def test_a_gate_whose_connection_cannot_be_read_is_deferred_with_the_links_that_need_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get_workspace(hook: WorkspaceHook) -> Workspace:
        raise ConnectionError("vault is sealed")

    monkeypatch.setattr(WorkspaceHook, "get_workspace", get_workspace)
    worker = Worker()
    with DAG("weekly", schedule=None):
        gate = TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2", deferrable=True)
    with pytest.raises(TaskDeferred):
        gate.execute(worker.context)
    assert set(worker.pushed) == {"_link_EndpointLink", "_link_VersionLogLink"}


def test_a_roll_back_goes_back_first_and_pushes_its_links_after_that() -> None:
    worker = Worker()

    class RollBack(RollBackOperator):
        """A roll-back that reaches no target."""

        async def step(self, context: Context, workspace: Workspace) -> None:
            assert worker.pushed == {}
            raise ValueError("nobody answers")

    with pytest.raises(ValueError, match="nobody answers"):
        RollBack(task_id="roll_back", endpoint="digits", version="v2").execute(worker.context)
    assert worker.pushed["_link_EndpointLink"] == PAGE


def test_a_button_reads_what_the_task_has_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = {"_link_EndpointLink": PAGE}
    monkeypatch.setattr(XCom, "get_value", lambda ti_key, key: stored.get(key))
    key: Any = SimpleNamespace()
    assert EndpointLink().get_link(shift(), ti_key=key) == PAGE
    assert ReportLink().get_link(shift(), ti_key=key) == ""


def test_a_report_in_a_folder_of_the_workers_gets_no_button() -> None:
    worker = Worker()
    push_report(worker.context, "/data/storage/reports/digits/v2/1.html", log=None)
    assert worker.pushed == {}
    address = "https://account.blob.core.windows.net/ml/reports/digits/v2/1.html"
    push_report(worker.context, address, log=None)
    assert worker.pushed == {"_link_ReportLink": address}


def test_every_task_of_a_rollout_has_the_buttons_in_the_stored_dag_and_airflow_knows_their_classes() -> None:
    with DAG("weekly", schedule=None) as dag:
        ControlledRollout(endpoint="digits", image=IMAGE, approval=True)
    stored = DagSerialization.from_dict(json.loads(json.dumps(DagSerialization.to_dict(dag))))
    for task in stored.tasks:
        assert {"Endpoint", "Log of the version", "Requests in Azure"} <= set(task.extra_links), task.task_id
    known = {path.rpartition(".")[2] for path in get_provider_info()["extra-links"]}
    assert {type(link).__name__ for task in dag.tasks for link in task.operator_extra_links} <= known
