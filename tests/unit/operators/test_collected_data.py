"""The check of what a version has collected, without a rollout: its result, its report, and its link."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

from controlled_rollout import CollectedDataGateOperator
from controlled_rollout.errors import ArgumentError, EvidenceUnavailableError
from controlled_rollout.evidence.collected import version_data
from controlled_rollout.expectations.result import ExpectationResult, Validation, ValidationRequest
from controlled_rollout.workspace import Workspace
from tests.local.task_lab import CONNECTION, TaskInstance, context
from tests.unit.evidence.collected_parts import T0, Exchange, write_part

SUITE = {
    "name": "nightly",
    "expectations": [
        {
            "type": "expect_column_values_to_be_between",
            "kwargs": {"column": "inputs.age", "min_value": 0, "max_value": 120, "mostly": 0.5},
        },
        {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "inputs.age", "max_value": 50}},
    ],
}
BETWEEN, MEAN = "inputs.age: values to be between (min_value=0, max_value=120, mostly=0.5)", "mean"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv(
        CONNECTION, json.dumps({"conn_type": "controlled_rollout", "extra": {"root": str(tmp_path / "root")}})
    )
    return Workspace.local(tmp_path / "root")


def operator(**arguments: Any) -> CollectedDataGateOperator:
    settings: dict[str, Any] = {"endpoint": "digits", "version": "v1", "expectations": SUITE, "since": "1 d"}
    return CollectedDataGateOperator(**({"task_id": "check"} | settings | arguments))


def execute(task: CollectedDataGateOperator) -> str:
    return task.execute(context(TaskInstance("scheduled__2026-03-01T00:00:00+00:00", "check")))


def validated(monkeypatch: pytest.MonkeyPatch, *results: ExpectationResult) -> list[ValidationRequest]:
    """Let the process that validates find these results; return what it is asked."""
    asked: list[ValidationRequest] = []

    def validate(request: ValidationRequest) -> Validation:
        asked.append(request)
        return Validation(rows=100, part=0.5, results=results)

    monkeypatch.setattr(version_data, "validate_in_process", validate)
    return asked


def test_rows_in_the_storage_are_evaluated_and_the_task_links_to_a_report(workspace: Workspace) -> None:
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    at = (an_hour_ago - T0).total_seconds()
    file = Path(workspace.storage_place) / f"collected/digits/v1/inputs/{an_hour_ago:%Y/%m/%d}/1-p.parquet"
    write_part(file, [Exchange(f"r{age}", at, [{"age": float(age)}]) for age in (20, 40, 300)], {"age": "DOUBLE"})
    task = operator()

    with pytest.raises(AirflowFailException, match=r"1 expectations of digits/v1 fail: .*observed 120"):
        execute(task)

    report = Path(task.report)
    assert report.parent == Path(workspace.storage_place) / "reports/digits/v1"
    for text in (report.read_text(), report.with_suffix(".md").read_text().replace("\\", "")):
        assert "1 fulfilled, 1 not fulfilled, 0 could not be evaluated" in text
        assert "1 of 3 rows are unexpected (33.3 %)" in text
        assert "r300: [300.0]" in text


def test_a_fulfilled_suite_returns_the_report_and_asks_for_the_time_that_was_given(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = validated(monkeypatch, ExpectationResult(name=BETWEEN, success=True, rows=100, unexpected=0))

    address = execute(operator(since="2 h", max_rows="1000"))

    [request] = asked
    assert request.until is not None
    assert (request.until - request.since, request.max_rows) == (timedelta(hours=2), 1_000)
    assert datetime.now(UTC) - request.until < timedelta(minutes=1)
    assert "of 50 % of the requests" in Path(address).read_text()


def test_what_could_not_be_evaluated_is_tried_again_and_reported(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, ExpectationResult(name=BETWEEN, success=None, fault="there is no <age>"))
    task = operator()

    with pytest.raises(EvidenceUnavailableError, match=r"could not be evaluated: .*there is no <age>"):
        execute(task)
    assert "there is no &lt;age&gt;" in Path(task.report).read_text()


def test_values_of_callers_are_text_in_the_report(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = '<script>alert("1")</script><img src=x onerror=alert(1)>|`[a](javascript:alert(1))\n# <b>\x1b[2J'
    found = ExpectationResult(name=evil, success=True, rows=1, unexpected=1, examples=((evil, [evil]),))
    validated(monkeypatch, found, ExpectationResult(name="whole", success=True, observed=[evil]))

    report = Path(execute(operator(expectations={**SUITE, "name": "<i>[a](javascript:alert(1))"})))

    for text in (report.read_text(), report.with_suffix(".md").read_text()):
        for tag in ("<script", "<img", "<b>", "<i>", "\x1b"):
            assert tag not in text
    markdown = report.with_suffix(".md").read_text()
    assert "](" not in markdown.replace("\\](", "")
    assert "\n# &lt;" not in markdown
    assert 'http-equiv="Content-Security-Policy"' in report.read_text()


def test_every_task_has_a_report_of_its_own_whatever_its_name_and_a_retry_replaces_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated(monkeypatch, ExpectationResult(name=BETWEEN, success=True))

    def report_of(task_id: str) -> str:
        return operator(task_id=task_id).execute(context(TaskInstance("scheduled__2026-03-01T00:00:00+00:00", task_id)))

    names = ["check", "check.it", "check-it", "ä" * 250]
    reports = {report_of(name) for name in names}
    assert len(reports) == len(names)
    assert report_of("check") in reports


def test_the_reason_of_a_failure_has_no_values_of_callers(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ExpectationResult(name="names", success=False, observed=["a caller's name"], examples=(("r", ["a name"]),))
    validated(monkeypatch, found)
    task = operator()

    with pytest.raises(AirflowFailException) as failure:
        execute(task)
    assert "names: observed 1 values" in str(failure.value)
    assert "name'" not in str(failure.value) and "a name" not in str(failure.value)
    assert "a name" in Path(task.report).read_text()


def test_a_suite_may_be_a_file_beside_the_dag_and_one_that_is_none_is_refused(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = validated(monkeypatch, ExpectationResult(name=BETWEEN, success=True))
    (tmp_path / "suite.json").write_text(json.dumps(SUITE))

    execute(operator(expectations=str(tmp_path / "suite.json")))
    assert asked[0].suite.name == "nightly"
    with pytest.raises(AirflowFailException, match="cannot be read as JSON"):
        execute(operator(expectations="absent.json"))
    with pytest.raises(AirflowFailException, match=r"since = .* is not a time up to 366 days"):
        execute(operator(since="367 d"))
    with pytest.raises(ArgumentError, match="are a suite"):
        operator(expectations=7)
