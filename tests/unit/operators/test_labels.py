"""The task that judges by labels: what it does after a look, without the looks themselves."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG, Context
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException, TaskDeferred

from controlled_rollout import JudgeByLabelsOperator, Labels, record, steps
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.errors import ControlledRolloutError, EvidenceUnavailableError, RecordUnavailableError
from controlled_rollout.evaluation import judgements
from controlled_rollout.gate import Outcome, Verdict
from controlled_rollout.hooks.sql_labels import SqlLabels
from controlled_rollout.labels import look
from controlled_rollout.operators.new_control import NEW_CONTROL
from controlled_rollout.target import connect as connect_module
from controlled_rollout.target.protocol import Change
from controlled_rollout.workspace import Workspace
from tests.local.task_lab import CONNECTION, TaskInstance, context
from tests.unit.steps.memory_target import MemoryTarget

LABELS = {"metrics": ["accuracy"]}
FILES = {"prefix": "labels/"}
FIRST = Endpoint(name="digits").create_version("old", is_control=True, image="a@sha256:1")
CANARY = FIRST.create_version("new", image="a@sha256:2", traffic_percentile=10)
# What the next looks find: an outcome, or an error.
Found = list[Outcome | ControlledRolloutError]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv(CONNECTION, json.dumps({"conn_type": "controlled_rollout", "extra": {"root": str(tmp_path)}}))
    return Workspace.local(tmp_path)


@pytest.fixture
async def target(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> MemoryTarget:
    """An endpoint whose version `new` went live after a canary beside `old`."""
    target = MemoryTarget()
    monkeypatch.setattr(steps, "connect", target.open)
    monkeypatch.setattr(connect_module, "connect", target.open)
    for number, endpoint in enumerate((FIRST, CANARY, CANARY.promote("new"))):
        await target.apply(endpoint.model_copy(update={"revision": number}), Change(who="weekly/run-1/promote"))
    return target


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Say what looks find; return the arguments that they are called with."""

    def looks(*found: Outcome | ControlledRolloutError) -> list[dict[str, Any]]:
        left, asked = list(found), list[dict[str, Any]]()

        async def look_at_labels(*arguments: Any, **named: Any) -> Any:
            asked.append({"version": arguments[3], **named})
            answer = left.pop(0)
            if isinstance(answer, ControlledRolloutError):
                raise answer
            verdict = Verdict(outcome=answer, reason="accuracy 91 %", claims=())
            return SimpleNamespace(verdict=verdict)

        monkeypatch.setattr(look, "look_at_labels", look_at_labels)
        return asked

    return looks


def operator(**arguments: Any) -> JudgeByLabelsOperator:
    settings: dict[str, Any] = {"endpoint": "digits", "version": "new", "labels": LABELS, "source": FILES}
    return JudgeByLabelsOperator(task_id="judge", **{**settings, **arguments})


def run_context(began: datetime | None = None) -> Context:
    dag_run = SimpleNamespace(start_date=began or datetime.now(UTC))
    return cast("Context", {**context(TaskInstance("run-9", "judge")), "dag_run": dag_run})


def test_a_version_that_is_worse_is_replaced_by_the_control_before_it(
    target: MemoryTarget, workspace: Workspace, looks: Callable[..., Any]
) -> None:
    [asked] = [looks(Outcome.FAIL)]
    given = run_context()

    decision = operator().execute(given)

    assert (decision["decision"], decision["version"]) == ("rolled_back", "new")
    assert decision["reason"] == "accuracy 91 %"
    assert target.newest("digits").effective_traffic() == {"old": 100, "new": 0}
    assert [(line.step, line.version, line.reason) for line in record.read(workspace, "digits")][-1] == (
        "promote", "old", "labels: accuracy 91 %",
    )  # fmt: skip
    [event] = given["outlet_events"][NEW_CONTROL].asset_alias_events
    assert event.extra["version"] == "old"
    assert (asked[0]["who"], asked[0]["control"]) == ("weekly/run-9/judge", "old")
    assert asked[0]["since"] < asked[0]["until"]


def test_a_task_that_was_killed_after_the_roll_back_finds_it_done(
    target: MemoryTarget, looks: Callable[..., Any]
) -> None:
    looks(Outcome.FAIL)
    operator().execute(run_context())
    given = run_context()

    again = operator().execute(given)

    assert (again["decision"], again["reason"]) == ("rolled_back", "labels: accuracy 91 %")
    [event] = given["outlet_events"][NEW_CONTROL].asset_alias_events
    assert event.extra["version"] == "old"


async def test_a_task_that_was_killed_tells_nothing_of_a_control_that_was_replaced_meanwhile(
    target: MemoryTarget, workspace: Workspace, looks: Callable[..., Any]
) -> None:
    looks(Outcome.FAIL)
    assert await operator()._judge(run_context(), workspace) is not None
    later = target.newest("digits").create_version("third", image="ml/digits@sha256:" + "3" * 64)
    later = await target.apply(later, Change(who="ann@here"))
    await target.apply(later.promote("third"), Change(who="ann@here"))
    given = run_context()

    again = await operator()._judge(given, workspace)

    assert again is not None and again["decision"] == "rolled_back"
    assert given["outlet_events"][NEW_CONTROL].asset_alias_events == []


async def test_a_canary_that_is_worse_loses_its_traffic_and_the_control_stays(
    target: MemoryTarget, workspace: Workspace, looks: Callable[..., Any]
) -> None:
    target.drop("digits")
    for number, endpoint in enumerate((FIRST, CANARY)):
        await target.apply(endpoint.model_copy(update={"revision": number}), Change(who="weekly/run-1"))
    looks(Outcome.FAIL)
    task, given = operator(), run_context()

    decision = await task._judge(given, workspace)

    assert decision is not None and decision["decision"] == "rolled_back"
    assert target.newest("digits").effective_traffic() == {"old": 100, "new": 0}
    assert given["outlet_events"][NEW_CONTROL].asset_alias_events == []


def test_a_version_that_is_good_enough_is_confirmed_in_the_record_once_with_the_numbers(
    target: MemoryTarget, workspace: Workspace, looks: Callable[..., Any]
) -> None:
    looks(Outcome.PASS, Outcome.PASS)

    for _ in range(2):
        assert operator(version="").execute(run_context())["decision"] == "confirmed"

    [line] = [line for line in record.read(workspace, "digits") if line.step == "confirm"]
    assert (line.version, line.outcome, line.reason) == ("new", "pass", "accuracy 91 %")
    assert line.verdict is not None
    assert target.newest("digits").effective_traffic() == {"old": 0, "new": 100}


def test_between_two_looks_the_task_waits_in_the_triggerer(target: MemoryTarget, looks: Callable[..., Any]) -> None:
    looks(Outcome.NOT_ENOUGH_EVIDENCE, EvidenceUnavailableError("the database is away"), Outcome.PASS)
    before = datetime.now(UTC)

    with pytest.raises(TaskDeferred) as first:
        operator(interval="30 min").execute(run_context())
    with pytest.raises(TaskDeferred):
        operator().execute_complete(run_context(), event=None)
    assert operator().execute_complete(run_context())["decision"] == "confirmed"

    assert isinstance(first.value.trigger, DateTimeTrigger)
    assert before + timedelta(minutes=29) < first.value.trigger.moment < before + timedelta(minutes=31)
    assert first.value.method_name == "execute_complete"


def test_a_task_that_does_not_defer_is_called_again_as_a_sensor(
    target: MemoryTarget, looks: Callable[..., Any]
) -> None:
    looks(Outcome.NOT_ENOUGH_EVIDENCE, Outcome.PASS)
    decision = operator(deferrable=False, interval="0.01 s").execute(run_context())
    assert decision["decision"] == "confirmed"


@pytest.mark.parametrize(("on_deadline", "decided"), [("keep", "kept"), ("ask", "asks"), ("roll_back", "rolled_back")])
def test_without_a_decision_in_time_it_does_what_the_author_has_chosen(
    target: MemoryTarget, looks: Callable[..., Any], on_deadline: str, decided: str
) -> None:
    looks(Outcome.NOT_ENOUGH_EVIDENCE)
    decision = operator(decision_timeout="0 s", on_deadline=on_deadline).execute(run_context())
    assert decision["decision"] == decided
    assert decision["reason"].startswith("no decision after 0 s")


def test_a_confirmation_that_cannot_be_recorded_is_tried_again_at_the_next_look(
    target: MemoryTarget, looks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise RecordUnavailableError("the record is away")

    looks(Outcome.PASS)
    monkeypatch.setattr(judgements, "record_confirmation", away)
    with pytest.raises(TaskDeferred):
        operator().execute(run_context())


def test_a_former_control_that_was_deleted_fails_the_task_and_the_version_keeps_its_traffic(
    target: MemoryTarget, looks: Callable[..., Any]
) -> None:
    target.store(target.newest("digits").delete_version("old"), Change(who="weekly/run-1/retire_old"))
    looks(Outcome.FAIL)
    with pytest.raises(AirflowFailException, match=r"'old', has been deleted\. Roll the image 'a@sha256:1' out again"):
        operator().execute(run_context())
    assert target.newest("digits").effective_traffic() == {"new": 100}


def test_a_version_that_somebody_has_replaced_is_skipped(target: MemoryTarget, looks: Callable[..., Any]) -> None:
    newest = target.newest("digits").create_version("third", image="a@sha256:3")
    target.store(newest.promote("third"), Change(who="somebody"))
    looks()
    with pytest.raises(AirflowSkipException, match="has no traffic any more"):
        operator().execute(run_context())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"labels": {"metrics": ["accurracy"]}}, "labels is not valid: labels"),
        ({"source": {}}, "source has to say where the labels are"),
        ({"source": {"prefix": "a", "query": "b"}}, "the fields prefix, query were given"),
        ({"source": {"query": "SELECT 1", "conn_id": None}}, "source is not valid: source.conn_id: Field required"),
        ({"source": {"query": "SELECT :x", "conn_id": "a"}}, "has the parameters :x"),
        ({"interval": "0 s"}, "interval = '0 s' is no time between two looks"),
    ],
)
def test_arguments_that_cannot_be_used_fail_the_task_and_change_nothing(
    target: MemoryTarget, looks: Callable[..., Any], arguments: dict[str, Any], problem: str
) -> None:
    looks()
    with pytest.raises(AirflowFailException, match=problem):
        operator(**arguments).execute(run_context())
    assert target.newest("digits").effective_traffic() == {"old": 0, "new": 100}


def test_arguments_may_be_objects_or_text(
    target: MemoryTarget, looks: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = looks(Outcome.PASS, Outcome.PASS)
    monkeypatch.setenv("AIRFLOW_CONN_OUTCOMES", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "a.db")}))
    query = SqlLabels(conn_id="outcomes", query="SELECT 1 WHERE 1 = 0")
    operator(labels=Labels.model_validate(LABELS), source=query).execute(run_context())
    operator(labels=json.dumps(LABELS), source=json.dumps({**FILES, "query": ""})).execute(run_context())

    assert asked[0]["labels"] == asked[1]["labels"] == Labels.model_validate(LABELS)
    assert asked[0]["source"].description == "the query on connection 'outcomes'"


@pytest.mark.parametrize(
    "source",
    [
        {"conn_id": "a", "query": "SELECT {{ params.column }}"},
        {"conn_id": "a", "query": "{{ params.query }}"},
        '{{ {"conn_id": "a", "query": params.query} | tojson }}',
    ],
)
def test_what_a_run_is_given_becomes_no_sql_but_may_choose_a_file(
    source: Any, target: MemoryTarget, looks: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_A", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "a.db")}))
    (tmp_path / "none.sql").write_text("SELECT 1 WHERE 1 = 0")
    given = {**run_context(), "dag": SimpleNamespace(folder=str(tmp_path))}
    looks(Outcome.PASS)

    def rendered(query: str) -> JudgeByLabelsOperator:
        with DAG("weekly", schedule=None):
            task = operator(source=source)
        task.render_template_fields(cast("Context", {"params": {"query": query, "column": query}}))
        return task

    with pytest.raises(AirflowFailException, match=r"source\.query comes from a template"):
        rendered("SELECT 1").execute(cast("Context", given))
    if "column" not in str(source):
        assert rendered("none.sql").execute(cast("Context", given))["decision"] == "confirmed"


def test_what_a_run_is_given_chooses_no_function(target: MemoryTarget, looks: Callable[..., Any]) -> None:
    own = {"metrics": {"cost": {"function": "os.path:join"}}}
    looks(Outcome.PASS)
    with DAG("weekly", schedule=None):
        task = operator(labels="{{ params.labels | tojson }}")
    task.render_template_fields(cast("Context", {"params": {"labels": own}}))

    with pytest.raises(AirflowFailException, match="function that comes from a template"):
        task.execute(run_context())
    assert operator(labels=own).execute(run_context())["decision"] == "confirmed"


def test_a_query_that_does_not_work_fails_when_the_task_begins_and_is_waited_for_later(
    target: MemoryTarget, looks: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_OUTCOMES", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "a.db")}))
    task = operator(source={"conn_id": "outcomes", "query": "SELECT * FROM absent"})
    looks(Outcome.CANNOT_SEE)

    with pytest.raises(EvidenceUnavailableError, match="connection 'outcomes' cannot be read: no such table: absent"):
        task.execute(run_context())
    with pytest.raises(TaskDeferred):
        task.execute_complete(run_context())


def test_a_timeout_that_would_end_the_wait_is_refused() -> None:
    with pytest.raises(ValueError, match="timeout=60 was given: leave it out"):
        operator(timeout=60)
    with pytest.raises(ValueError, match="on_deadline = 'hold' is not known"):
        operator(on_deadline="hold")
