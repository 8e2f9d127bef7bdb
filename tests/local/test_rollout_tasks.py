"""Every task of a `ControlledRollout`, executed one by one on a real local workspace: its log and its effect."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.providers.standard.operators import hitl
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred
from airflow.sdk.execution_time.context import OutletEventAccessors

import tests.airflow_home  # noqa: F401 - before anything of Airflow
from controlled_rollout import ControlledRollout, record, version_of_run
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.evaluation.next_action import GateTerms, LookResult, NextAction, take_look
from tests.local.empty_scanner import empty_scanner
from tests.local.local_target_lab import CRASHING, Lab, running, steady_load
from tests.registry.osv_service import osv_service

if TYPE_CHECKING:
    from airflow.sdk.types import Logger

ENDPOINT = "digits"
DAG_ID = "weekly"
# Of a connection that the version's environment variables name.
PASSWORD = "p4ssw0rd-of-the-store"
# Times short enough for a test; errors alone are judged, since a busy machine says little about latency.
QUICK: dict[str, Any] = {
    "endpoint": ENDPOINT,
    "scan": {"max_severity": "high"},
    "steps": (25, 50),
    "gate": {"latency_quantiles": [], "acceptable_error_rate": 0.05},
    "bake": "3 s",
    "min_requests": 5,
    "decision_timeout": "90 s",
    "on_deadline": "ask",
    "approval": True,
    "interval": "0.5 s",
    "bin_width": "1 s",
    "allowed_lag": "2 s",
    "baseline_length": "30 s",
    "keep_warm": "3 s",
    "settings": {
        "num_replicas": 1,
        # On a busy machine a request may wait long for its replica: only requests that are lost count as failed.
        "max_request_wait_time": 20_000,
        "environment_variables": {"TOKEN": {"connection": "feature_store", "field": "password"}},
    },
    "deferrable": False,
}
APPROVED = {
    "chosen_options": ["Approve"],
    "params_input": {},
    "responded_at": datetime(2026, 1, 5, tzinfo=UTC),
    "responded_by_user": {"id": "1", "name": "Ada"},
}


@dataclass
class Log:
    """Keeps the log lines of a task."""

    lines: list[str] = field(default_factory=list)

    def info(self, message: str, *arguments: object, **_: object) -> None:
        self.lines.append(message % arguments if arguments else message)

    warning = error = debug = info


@dataclass
class Run:
    """A DAG run with one `ControlledRollout`, whose tasks are executed one by one."""

    run_id: str
    image: str
    arguments: dict[str, Any] = field(default_factory=dict)
    xcoms: dict[tuple[str, str], Any] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    questions: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        with DAG(DAG_ID, schedule=None) as dag:
            self.rollout = ControlledRollout(**{**QUICK, "image": self.image, **self.arguments})
        dag.fileloc = __file__
        self.dag = dag
        self.dag_run = SimpleNamespace(
            dag_id=DAG_ID, run_id=self.run_id, run_after=datetime.now(UTC), triggering_user_name=None
        )
        self.version = version_of_run(self.dag_run)

    def task(self, name: str) -> BaseOperator:
        task = self.dag.get_task(f"rollout.{name}")
        assert isinstance(task, BaseOperator)
        return task

    def execute(self, name: str) -> str:
        """Execute a task as a worker would, keep its result, and return its log."""
        return self._log(name, lambda task, context: task.execute(context))

    def answer(self, name: str, event: dict[str, Any]) -> str:
        """Continue a task that has asked a person, with the answer."""
        return self._log(name, lambda task, context: task.execute_complete(context, event))

    def skip(self, name: str) -> str:
        """Execute a task that skips itself, and return why."""
        with pytest.raises(AirflowSkipException) as skipped:
            self.execute(name)
        return str(skipped.value)

    def _log(self, name: str, call: Any) -> str:
        task = self.task(name)
        log = Log()
        task._cached_logger = cast("Logger", log)
        context = self._context(task)
        task.render_template_fields(context)
        try:
            self.xcoms[task.task_id, "return_value"] = call(task, context)
        finally:
            self.logs[name] = "\n".join([*([self.logs[name]] if name in self.logs else []), *log.lines])
        return self.logs[name]

    def _context(self, task: BaseOperator) -> Any:
        def push(key: str, value: Any) -> None:
            self.xcoms[task.task_id, key] = value

        def pull(task_ids: str | list[str], key: str = "return_value", **_: Any) -> Any:
            if isinstance(task_ids, str):
                return self.xcoms.get((task_ids, key))
            return [self.xcoms.get((task_id, key)) for task_id in task_ids]

        ti = SimpleNamespace(
            dag_id=DAG_ID, run_id=self.run_id, task_id=task.task_id, id=task.task_id, xcom_push=push, xcom_pull=pull
        )
        self.events = OutletEventAccessors()
        return {
            "ti": ti, "task_instance": ti, "task": task, "dag": self.dag, "dag_run": self.dag_run, "params": {},
            "outlet_events": self.events,
        }  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A workspace that scans images, as the tasks' connection describes it."""
    with (
        pytest.MonkeyPatch.context() as monkeypatch,
        osv_service() as osv,
        running(tmp_path_factory.mktemp("tasks")) as lab,
    ):
        empty_scanner(lab.folder / "bin", monkeypatch, datetime.now(UTC))
        extra = {"root": str(lab.workspace.root), "scanner": "grype", "osv_url": osv.url}
        connection = json.dumps({"conn_type": "controlled_rollout", "extra": extra})
        monkeypatch.setenv("AIRFLOW_CONN_CONTROLLED_ROLLOUT_DEFAULT", connection)
        feature_store = {"conn_type": "http", "login": "ada", "password": PASSWORD}
        monkeypatch.setenv("AIRFLOW_CONN_FEATURE_STORE", json.dumps(feature_store))
        yield lab


def image(lab: Lab, note: str, script: str | None = None) -> str:
    return asyncio.run(lab.image(note, script))


def endpoint(lab: Lab) -> Endpoint:
    return asyncio.run(lab.target.endpoint(ENDPOINT))


@asynccontextmanager
async def load(lab: Lab) -> AsyncIterator[None]:
    """Send requests at a steady rate, of which the evidence has seen some before the block begins."""
    keys = await lab.target.keys(ENDPOINT)
    async with steady_load(await lab.url(ENDPOINT), keys.primary, rate=60) as sent:
        await sent.more(300)
        yield
    assert not sent.failed


def test_the_first_version_gets_all_the_traffic_and_the_gates_are_skipped(lab: Lab) -> None:
    run = Run("first", image(lab, "first"))

    check = run.execute("check")
    assert f"Plan for version {run.version} of endpoint {ENDPOINT}:" in check
    assert "Forecast: none, because the first version" in check
    assert "supervisor       worker  works" in check
    assert "scan: " in run.execute("scan")
    assert f"'{run.version}' is the control" in run.execute("roll_out")
    for name in ("shift_25", "gate_25", "shift_50", "gate_50"):
        assert "nothing to compare" in run.skip(name)
    assert "is default and control" in run.execute("promote")
    assert "first control" in run.skip("retire_old")
    assert "answers: it stays" in run.skip("roll_back")
    assert "is promoted" in run.execute("result")

    assert endpoint(lab).effective_traffic() == {run.version: 100.0}
    [secret] = lab.workspace.secrets_folder.iterdir()
    assert json.loads(secret.read_text()) == {"password": PASSWORD}
    assert PASSWORD not in str([run.logs, run.xcoms, endpoint(lab), run.task("roll_out").settings])  # type: ignore[attr-defined]
    assert [decision.step for decision in record.read(lab.workspace, ENDPOINT)] == ["deploy", "promote"]


def test_a_good_version_goes_through_every_task_to_its_promotion(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    former = endpoint(lab).control
    assert former is not None
    run = Run("second", image(lab, "second"))
    # Airflow's own database is at the other end of this.
    monkeypatch.setattr(hitl, "upsert_hitl_detail", lambda **question: run.questions.append(question))

    def tasks() -> None:
        check = run.execute("check")
        assert "2. shift 25 % of the traffic to it; go on after 3 s and 5 requests of evidence, unless " in check
        assert "Forecast: what the steps can show at control's present" in check
        assert "25 % of" in check and "50 % of" in check
        assert "telemetry store  worker  works" in check

        assert "no vulnerabilities" in run.execute("scan")
        assert run.xcoms["rollout.scan", "return_value"] == run.image
        assert f"version '{run.version}' is ready" in run.execute("roll_out")
        assert f"{run.version} 25 %" in run.execute("shift_25")
        assert "go on: " in run.execute("gate_25")
        assert run.skip("ask_25").startswith("the gate has decided: ")
        assert f"{run.version} 50 %" in run.execute("shift_50")
        assert "errors are not worse" in run.execute("gate_50")
        assert run.xcoms["rollout.gate_50", "return_value"]["outcome"] == "pass"
        with pytest.raises(TaskDeferred):
            run.execute("ask_50")
        assert "errors are not worse" in run.questions[0]["body"]
        assert "pass" in run.answer("ask_50", APPROVED)
        promoted = run.execute("promote")
        assert "no alarm; pass: " in promoted, "it has looked once more"
        assert "is default and control" in promoted

    async def under_load() -> None:
        async with load(lab):
            await asyncio.to_thread(tasks)

    asyncio.run(under_load())
    assert "is promoted" in run.execute("result")
    assert "stays warm until" in run.execute("retire_old")
    assert endpoint(lab).effective_traffic() == {run.version: 100.0}
    assert list(endpoint(lab).versions) == [run.version]
    steps = [decision.step for decision in record.read(lab.workspace, ENDPOINT, version=run.version)]
    assert [step for step in steps if step != "look"] == [
        "deploy", "shift", "go_on", "shift", "go_on", "ask", "approve", "promote",
    ]  # fmt: skip
    executed = {f"rollout.{name}" for name in run.logs}
    assert executed | {"rollout.roll_back", "rollout.retire_treatment"} == set(run.dag.task_dict)


def test_a_version_that_crashes_is_rolled_back_and_retired(lab: Lab) -> None:
    before = endpoint(lab)
    run = Run("third", image(lab, "third", CRASHING))
    run.execute("check")
    run.execute("scan")

    with pytest.raises(AirflowFailException) as failed:
        run.execute("roll_out")
    assert "no weights found" in str(failed.value)
    assert failed.value.__cause__ is not None, "the log shows where an engine failure came from"
    assert "is rolled back" in run.execute("roll_back")
    assert "is deleted" in run.execute("retire_treatment")
    with pytest.raises(AirflowFailException, match=r"weekly/third/rollout\.roll_back ended the rollout"):
        run.execute("result")

    assert dict(endpoint(lab).versions) == dict(before.versions)
    history = asyncio.run(lab.target.history(ENDPOINT))
    assert "did not become ready" in history[-2].change.reason
    assert history[-1].change.reason == "rolled back"


def test_a_gate_on_hold_waits_and_looks_until_an_alarm_fails_it_without_a_cause_in_the_log(lab: Lab) -> None:
    run = Run(
        "fourth",
        image(lab, "fourth"),
        {"decision_timeout": "0 s", "on_deadline": "hold", "approval": False, "deferrable": True},
    )
    run.execute("scan")
    run.execute("roll_out")
    run.execute("shift_25")

    with pytest.raises(TaskDeferred) as deferred:
        run.execute("gate_25")
    look = next_event(deferred.value.trigger)
    assert look["action"] == "hold"
    with pytest.raises(TaskDeferred) as deferred:
        run.answer("gate_25", look)
    rollout = endpoint(lab).rollout
    assert rollout is not None and rollout.held is not None
    assert "on hold: no decision" in run.logs["gate_25"]
    assert [line.reason[:11] for line in record.read(lab.workspace, ENDPOINT, version=run.version, step="hold")] == [
        "no decision"
    ]
    terms = deferred.value.trigger.serialize()[1]["terms"]
    looked = asyncio.run(take_look(lab.workspace, GateTerms.model_validate(terms), lambda line: None))
    assert (looked.action, looked.reason[:13]) == (NextAction.WAIT, "on hold since")

    alarm = LookResult(NextAction.FAIL, "errors are higher", "fail")
    with pytest.raises(AirflowFailException, match="errors are higher") as failed:
        run.answer("gate_25", alarm.to_event())
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__
    assert "is rolled back" in run.execute("roll_back")
    run.execute("retire_treatment")


def next_event(trigger: Any) -> Any:
    """Run a trigger until its first event; return what it says."""

    async def first() -> Any:
        return await anext(trigger.run())

    return asyncio.run(first()).payload


def test_wrong_arguments_are_refused_before_anything_is_changed(lab: Lab) -> None:
    before = endpoint(lab)
    wrong = {"min_requests": "a few", "keep_warm": "10m", "bin_width": "7 s"}
    run = Run("fifth", image(lab, "second"), wrong)

    with pytest.raises(AirflowFailException) as refused:
        run.execute("check")

    for name in wrong:
        assert name in str(refused.value)
    assert endpoint(lab) == before
