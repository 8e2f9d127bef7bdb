"""Waiting until a version has collected enough rows: in the triggerer, and in a worker."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from airflow.triggers.base import TriggerEvent

from controlled_rollout import CollectedDataSensor
from controlled_rollout.errors import ControlledRolloutError, EndpointError, StorageError
from controlled_rollout.target import connect as connect_module
from controlled_rollout.triggers import collected_data
from controlled_rollout.triggers.collected_data import CollectedDataTrigger
from controlled_rollout.workspace import Workspace
from tests.local.task_lab import CONNECTION, TaskInstance, context
from tests.unit.evaluation.one_endpoint import OneEndpoint
from tests.unit.evidence.collected_parts import T0, Exchange, write_part

CONTEXT = context(TaskInstance("run-1", "wait"))


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in which version v1 has three rows of inputs from an hour ago."""
    monkeypatch.setenv(CONNECTION, json.dumps({"conn_type": "controlled_rollout", "extra": {"root": str(tmp_path)}}))
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    at = (an_hour_ago - T0).total_seconds()
    file = tmp_path / f"storage/collected/digits/v1/inputs/{an_hour_ago:%Y/%m/%d}/1-p.parquet"
    write_part(file, [Exchange(f"r{number}", at, [{"age": 1.0}]) for number in range(3)], {"age": "DOUBLE"})
    return Workspace.local(tmp_path)


def sensor(**arguments: Any) -> CollectedDataSensor:
    settings = {"endpoint": "digits", "version": "v1", "collection": "inputs", "rows": 3, "interval": "0.01 s"}
    return CollectedDataSensor(task_id="wait", **{**settings, **arguments})


def deferred(**arguments: Any) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as deferral:
        sensor(deferrable=True, **arguments).execute(CONTEXT)
    return deferral.value


async def first_event(trigger: Any) -> dict[str, Any]:
    """Return the first event of a trigger as Airflow makes it again."""
    _, arguments = trigger.serialize()
    async for event in CollectedDataTrigger(**json.loads(json.dumps(arguments))).run():
        assert isinstance(event, TriggerEvent)
        payload: dict[str, Any] = event.payload
        return payload
    raise AssertionError("no event")


async def test_the_trigger_fires_when_there_are_enough_rows() -> None:
    assert await first_event(deferred(timeout=60).trigger) == {"rows": 3}


async def test_the_trigger_goes_on_while_there_are_too_few_or_the_storage_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[int | ControlledRolloutError] = [2, StorageError("away"), 3]

    async def counted(*_: Any, **__: Any) -> int:
        answer = answers.pop(0)
        if isinstance(answer, ControlledRolloutError):
            raise answer
        return answer

    monkeypatch.setattr(collected_data, "rows_collected", counted)

    assert await first_event(deferred().trigger) == {"rows": 3}
    assert answers == []


async def test_what_waiting_does_not_change_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_control(*_: Any) -> str:
        raise EndpointError("endpoint 'digits' has no control")

    monkeypatch.setattr(collected_data, "control_of", no_control)
    event = await first_event(deferred(version="").trigger)

    assert event == {"error": "endpoint 'digits' has no control"}
    with pytest.raises(AirflowFailException, match="has no control"):
        sensor().execute_complete(CONTEXT, event)


@pytest.mark.parametrize("version", [None, ""])
def test_without_a_version_the_data_of_the_endpoints_control_counts(
    version: str | None, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    target = OneEndpoint(before=now, created=now, counted=dict)
    monkeypatch.setattr(connect_module, "connect", target.connect)
    [part] = Path(workspace.storage_place).rglob("*.parquet")
    of_control = Path(str(part).replace("/v1/", "/v1a/"))
    of_control.parent.mkdir(parents=True)
    part.rename(of_control)

    assert sensor(version=version).poke(CONTEXT)
    target.newest = target.newest.update_version("v1a", is_control=False)
    with pytest.raises(AirflowFailException, match="endpoint 'digits' has no control: give the version"):
        sensor(version=version).poke(CONTEXT)


def test_the_sensor_waits_no_longer_than_its_timeout() -> None:
    assert deferred(timeout=90).timeout == timedelta(seconds=90)
    sensor().execute_complete(CONTEXT, {"rows": 3})


@pytest.mark.parametrize(("arguments", "enough"), [({}, True), ({"rows": "4"}, False)])
def test_a_worker_counts_as_well(arguments: dict[str, Any], enough: bool, workspace: Workspace) -> None:
    assert sensor(**arguments).poke(CONTEXT) is enough


def test_a_storage_that_is_away_is_not_enough(workspace: Workspace) -> None:
    [part] = Path(workspace.storage_place).rglob("*.parquet")
    part.write_bytes(b"half")

    assert sensor().poke(CONTEXT) is False


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"rows": 0}, "rows = 0"), ({"since": "400 d"}, "since = '400 d'"), ({"interval": 0}, "interval = 0")],
)
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(AirflowFailException, match=message):
        sensor(**wrong).execute(CONTEXT)
