import json
from datetime import timedelta
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.serialization.serialized_objects import BaseSerialization, DagSerialization

from controlled_rollout import Gate, TreatmentGateSensor
from controlled_rollout.triggers.treatment_gate import TreatmentGateTrigger

TERMS = {"endpoint": "digits", "version": "v2a", "gate": {"alpha": 0.05, "warm_up": "PT5M"}}


def test_a_trigger_is_the_same_in_another_process() -> None:
    from airflow.sdk._shared.module_loading import import_string

    path, arguments = TreatmentGateTrigger("controlled_rollout_default", TERMS).serialize()
    json.dumps(arguments, allow_nan=False)
    carried = BaseSerialization.deserialize(BaseSerialization.serialize(arguments))
    again = import_string(path)(**carried)
    assert type(again) is TreatmentGateTrigger
    assert again.serialize() == (path, arguments)


@pytest.mark.parametrize("argument", ["soft_fail", "never_fail", "silent_fail"])
def test_argument_that_would_hide_a_failed_gate_is_refused(argument: str) -> None:
    arguments: dict[str, Any] = {argument: True}
    with pytest.raises(ValueError, match="would let a treatment go on"):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", **arguments)


@pytest.mark.parametrize("argument", ["soft_fail", "never_fail", "silent_fail"])
def test_default_argument_of_the_dag_that_would_hide_a_failed_gate_is_refused(argument: str) -> None:
    with (
        DAG("weekly", schedule=None, default_args={argument: True}),
        pytest.raises(ValueError, match="would let a treatment go on"),
    ):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a")


def test_gate_that_would_fail_because_time_has_passed_is_refused() -> None:
    with pytest.raises(ValueError, match="decision_timeout and on_deadline say how long"):
        TreatmentGateSensor(task_id="gate", endpoint="digits", version="v2a", execution_timeout=timedelta(minutes=5))


def test_a_dag_with_a_gate_is_stored_the_same_each_time_it_is_parsed() -> None:
    def parsed() -> dict[str, Any]:
        with DAG("weekly", schedule=None) as dag:
            TreatmentGateSensor(
                task_id="gate",
                endpoint="digits",
                version="{{ params.version }}",
                gate=Gate(warm_up=timedelta(minutes=5)),
                bake=timedelta(minutes=10),
            )
        return DagSerialization.to_dict(dag)

    assert json.dumps(parsed(), sort_keys=True) == json.dumps(parsed(), sort_keys=True)
