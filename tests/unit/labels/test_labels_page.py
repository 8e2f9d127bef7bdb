"""The page of the documentation about labels: its DAG and its query work as they stand there."""

import re
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from controlled_rollout import JudgeByLabelsOperator, Labels, SqlLabels

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "labels.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return str(text)


def test_the_dag_of_the_page_is_a_dag() -> None:
    names: dict[str, Any] = {}
    exec(block("python"), names)  # noqa: S102 - this repository's own documentation
    [dag] = [value for value in names.values() if isinstance(value, DAG)]
    [task] = dag.tasks
    assert isinstance(task, JudgeByLabelsOperator)
    assert set(Labels.model_validate(task.labels).metrics) == {"accuracy", "log_loss"}
    assert SqlLabels.model_validate(task.source).conn_id == "warehouse"


def test_the_query_of_the_page_is_the_one_that_comes_with_the_dag_and_its_parameters_are_known() -> None:
    shipped = SqlLabels(conn_id="warehouse", query="labels/outcomes.sql").read_query(REPOSITORY / "dags")
    assert block("sql").strip() in shipped.query
    shipped.source("loans")


def test_the_page_names_every_metric() -> None:
    from controlled_rollout.labels.settings import ANSWERS, AUC, LOSSES

    for name in (*ANSWERS, *LOSSES, AUC):
        assert f"`{name}`" in PAGE
