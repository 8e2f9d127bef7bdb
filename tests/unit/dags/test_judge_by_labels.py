"""What the DAG that judges by labels does with the decision of its first task."""

import runpy
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowFailException

from tests.airflow_home import DAGS


@pytest.fixture(scope="module")
def dag() -> DAG:
    found: DAG = runpy.run_path(str(DAGS / "judge_by_labels.py"))["dag"]
    return found


def decision(what: str) -> dict[str, Any]:
    return {"decision": what, "version": "v2a", "reason": "accuracy is worse", "table": ""}


def test_a_version_that_was_taken_back_fails_the_run_and_any_other_decision_is_its_result(dag: DAG) -> None:
    result: Any = dag.get_task("result")
    with pytest.raises(AirflowFailException, match="version v2a was taken back: accuracy is worse"):
        result.python_callable(decision("rolled_back"))
    for what in ("confirmed", "kept", "asks"):
        assert result.python_callable(decision(what)) == f"v2a is {what}: accuracy is worse"


def test_a_person_is_asked_only_where_the_labels_left_it_open(dag: DAG) -> None:
    is_undecided: Any = dag.get_task("is_undecided")
    assert [is_undecided.python_callable(decision(what)) for what in ("asks", "confirmed", "kept", "rolled_back")] == [
        True, False, False, False,
    ]  # fmt: skip
    ask: Any = dag.get_task("ask")
    assert set(ask.options_mapping.values()) == ask.downstream_task_ids == {"keep", "roll_back"}
