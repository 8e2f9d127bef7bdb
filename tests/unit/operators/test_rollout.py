"""The tasks at both ends of a version's life: what they refuse when a DAG is parsed, and what they skip."""

from typing import Any, cast

import pytest
from airflow.sdk import DAG, Context, task
from airflow.sdk.exceptions import AirflowSkipException

from controlled_rollout import DeleteVersionOperator, RolloutVersionOperator


@pytest.mark.parametrize("argument", ["on_conflict", "auth"])
def test_unknown_choice_is_refused_when_the_dag_is_parsed(argument: str) -> None:
    arguments: dict[str, Any] = {"task_id": "deploy", "endpoint": "digits", "version": "v2a", "image": "a@sha256:1"}
    with pytest.raises(ValueError, match=f"{argument} .*: choose one of"):
        RolloutVersionOperator(**arguments, **{argument: "maybe"})
    assert getattr(RolloutVersionOperator(**arguments, **{argument: "{{ params.x }}"}), argument) == "{{ params.x }}"


class FailedBefore:
    """The task instance of a task before which the one that names the version has failed: there is no XCom."""

    def xcom_pull(self, *, default: Any = None, **_: Any) -> Any:
        return default


@pytest.mark.parametrize(
    "version",
    [
        lambda name: name,
        lambda name: name["version"],
        lambda name: "{{ ti.xcom_pull(task_ids='train') }}",
        lambda name: "{{ ti.xcom_pull(task_ids='train')['version'] }}",
    ],
    ids=["result", "part of the result", "template", "template of a part"],
)
def test_former_control_is_not_deleted_for_a_version_that_a_failed_task_was_to_name(version: Any) -> None:
    with DAG("weekly", schedule=None):

        @task
        def train() -> dict[str, str]:
            return {}

        retire = DeleteVersionOperator(task_id="retire_old", endpoint="digits", replaced_by=version(train()))
    context = cast("Context", {"ti": FailedBefore()})
    with pytest.raises(AirflowSkipException, match="no version is named"):
        retire.render_template_fields(context)
        retire.execute(context)
