"""The DAGs that people trigger by hand, also from the page: what they take, and what they refuse."""

import runpy
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import ParamValidationError

from controlled_rollout.provider_info import get_provider_info
from tests.airflow_home import DAGS

MANUAL = {"promote": {}, "roll_back": {}, "hold": {}, "shift": {"percentile": 25}}


def dag_of(name: str) -> DAG:
    found: DAG = runpy.run_path(str(DAGS / f"{name}.py"))["dag"]
    return found


def validate(dag: DAG, conf: dict[str, Any]) -> dict[str, Any]:
    """Return the params of a run that is triggered with a conf."""
    for name, value in conf.items():
        dag.params[name] = value
    return dict(dag.params.validate())


@pytest.mark.parametrize("name", MANUAL)
def test_what_the_page_sends_is_what_the_dag_takes(name: str) -> None:
    dag = dag_of(name)
    conf = {"conn_id": "models_prod", "endpoint": "digits", "version": "v2a", "reason": "I have looked", **MANUAL[name]}
    params = validate(dag, conf)
    assert conf.items() <= params.items()
    assert dag.dag_id == name
    first: Any = dag.tasks[0]
    assert first.conn_id == "{{ params.conn_id }}"
    assert first.endpoint == "{{ params.endpoint }}"
    assert first.own_rollout is False


@pytest.mark.parametrize("name", MANUAL)
@pytest.mark.parametrize(
    "wrong",
    [{"reason": ""}, {"version": "V2 a"}, {"conn_id": "a b"}, {"endpoint": "x"}],
    ids=["reason", "version", "workspace", "endpoint"],
)
def test_what_is_missing_or_no_name_is_refused_before_anything_runs(name: str, wrong: dict[str, Any]) -> None:
    conf = {"endpoint": "digits", "version": "v2a", "reason": "because", **MANUAL[name], **wrong}
    with pytest.raises(ParamValidationError):
        validate(dag_of(name), conf)


@pytest.mark.parametrize("name", MANUAL)
def test_a_reason_without_a_word_is_refused_with_what_it_should_be(name: str) -> None:
    conf = {"endpoint": "digits", "version": "v2a", **MANUAL[name], "reason": " \t "}
    with pytest.raises(ParamValidationError, match="not empty, and not only spaces"):
        validate(dag_of(name), conf)


@pytest.mark.parametrize("percentile", [-1, 101, "10"])
def test_a_share_that_is_none_is_refused(percentile: object) -> None:
    conf = {"endpoint": "digits", "version": "v2a", "reason": "because", "percentile": percentile}
    with pytest.raises(ParamValidationError):
        validate(dag_of("shift"), conf)


def test_the_settings_of_the_page_name_these_dags_unless_they_say_others() -> None:
    options = get_provider_info()["config"]["controlled_rollout"]["options"]
    assert {name: options[f"{name}_dag_id"]["default"] for name in MANUAL} == {name: name for name in MANUAL}
