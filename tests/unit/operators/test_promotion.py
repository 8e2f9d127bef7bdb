from types import SimpleNamespace
from typing import Any, cast

import pytest
from airflow.sdk import DAG, Asset, Context
from airflow.sdk.execution_time.context import OutletEventAccessors

from controlled_rollout import ShiftTrafficOperator, control_asset
from controlled_rollout.operators.promotion import NEW_CONTROL, RollBackOperator, add_asset_event


def test_an_endpoint_has_an_asset_of_its_own() -> None:
    assert control_asset("digits") == Asset("controlled-rollout://digits/control")


def test_a_new_control_updates_the_endpoint_s_asset_with_version_and_author() -> None:
    events = OutletEventAccessors()
    ti = SimpleNamespace(dag_id="weekly", run_id="run-1", task_id="promote")

    add_asset_event(cast("Context", {"ti": ti, "outlet_events": events}), "digits", "v2a")

    [event] = events[NEW_CONTROL].asset_alias_events
    assert event.dest_asset_key.uri == "controlled-rollout://digits/control"
    assert event.extra == {"endpoint": "digits", "version": "v2a", "who": "weekly/run-1/promote"}


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
