"""Versions that went live, judged by labels that come later: real replicas and collected data, and a real database."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import duckdb
import pytest
from airflow.sdk import Context
from airflow.sdk.exceptions import TaskDeferred

from controlled_rollout import JudgeByLabelsOperator, record
from controlled_rollout.endpoint import Endpoint
from controlled_rollout.labels import periods
from tests.local.local_target_lab import Lab, steady_load
from tests.local.task_lab import CONNECTION, TaskInstance, context
from tests.polling import until

# Right is always 1; a version is right in every second answer, or in every eighth.
SCRIPT = """
import itertools

answers = itertools.cycle(ANSWERS)

def init():
    pass

def run(data):
    return [next(answers)]
"""
GOOD, BAD = (SCRIPT.replace("ANSWERS", answers) for answers in ("[1, 0]", "[1] + 7 * [0]"))
REQUESTS = 420
QUERY = """
SELECT correlation_id, label, arrived FROM outcomes
WHERE endpoint = :endpoint AND arrived >= :since AND arrived < :until
"""


@pytest.fixture(autouse=True)
def connections(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The connections of the workspace and of an empty database; return the database's file."""
    file = tmp_path / "outcomes.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE outcomes (endpoint TEXT, correlation_id TEXT, label INTEGER, arrived TEXT)")
    workspace = {"conn_type": "controlled_rollout", "extra": {"root": str(lab.workspace.root)}}
    monkeypatch.setenv(CONNECTION, json.dumps(workspace))
    monkeypatch.setenv("AIRFLOW_CONN_OUTCOMES", json.dumps({"conn_type": "sqlite", "host": str(file)}))
    # How long requests after a change of the split are left out: a real rollout lasts longer than this one.
    monkeypatch.setattr(periods, "SETTLES", timedelta(seconds=0.5))
    return file


def look(endpoint: str, began: datetime) -> dict[str, Any] | None:
    """Look as a task that was just started would, whatever ran before; return its decision, None if it waits."""
    task = JudgeByLabelsOperator(
        task_id="judge",
        endpoint=endpoint,
        version="v2a",
        labels={"metrics": {"accuracy": {"pass_ratio": 3}}, "bin_width": "1 s", "allowed_lag": "1 s"},
        source={"conn_id": "outcomes", "query": QUERY},
        interval="1 s",
    )
    given = {**context(TaskInstance("run-1", "judge")), "dag_run": SimpleNamespace(start_date=began)}
    try:
        decision: dict[str, Any] = task.execute_complete(cast("Context", given))
    except TaskDeferred:
        return None
    return decision


async def promoted(lab: Lab, name: str, treatment: str) -> None:
    """Roll a version out beside a good one, and promote it while callers go on."""
    settings: dict[str, Any] = {"num_replicas": 1, "collect_model_data": True}
    first = Endpoint(name=name).create_version("v1a", is_control=True, image=await lab.image(script=GOOD), **settings)
    stored, _ = await lab.serve(first.create_version("v2a", image=await lab.image(script=treatment), **settings))
    await asyncio.gather(lab.ready(name, "v1a"), lab.ready(name, "v2a"))
    key = (await lab.target.keys(name)).primary
    async with steady_load(await lab.url(name), key, rate=40) as load:
        stored, _ = await lab.serve(stored.shift("v2a", 50))
        await load.more(REQUESTS - 20)
        stored, _ = await lab.serve(stored.promote("v2a"))
        await load.more(20)


def collected(lab: Lab, name: str) -> list[str]:
    """Return the correlation ids of the requests that are in the storage."""
    parts = f"{lab.workspace.storage_place}/collected/{name}/*/predictions/**/*.parquet"
    found = duckdb.execute(f"SELECT DISTINCT \"$correlation_id\" FROM '{parts}'").fetchall()  # noqa: S608 - the test's own
    return [correlation_id for (correlation_id,) in found]


async def label_all(lab: Lab, name: str, database: Path) -> None:
    """Store that 1 was right for every request, once all of them are in the storage."""
    await until(lambda: len(collected(lab, name)) >= REQUESTS, "all requests in the storage", timeout_s=60)
    now = datetime.now(UTC).isoformat(sep=" ", timespec="microseconds")
    with closing(sqlite3.connect(database)) as connection:
        rows = [(name, correlation_id, now) for correlation_id in collected(lab, name)]
        connection.executemany("INSERT INTO outcomes VALUES (?, ?, 1, ?)", rows)
        connection.commit()


def look_until_decided(endpoint: str, began: datetime) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (decision := look(endpoint, began)) is None:
        assert time.monotonic() < deadline, "no decision"
    return decision


@pytest.mark.timeout(280)
def test_labels_take_a_promoted_version_back_or_confirm_it_whatever_was_restarted_in_between(
    lab: Lab, connections: Path
) -> None:
    async def roll_both_out() -> None:
        await asyncio.gather(promoted(lab, "worse", BAD), promoted(lab, "as-good", GOOD))

    async def label_both() -> None:
        await asyncio.gather(label_all(lab, "worse", connections), label_all(lab, "as-good", connections))

    asyncio.run(roll_both_out())
    began = datetime.now(UTC)

    assert look("worse", began) is None
    asyncio.run(label_both())
    worse, good = look_until_decided("worse", began), look_until_decided("as-good", began)

    assert (worse["decision"], good["decision"]) == ("rolled_back", "confirmed"), (worse, good)
    history = asyncio.run(lab.target.history("worse"))
    assert history[-1].endpoint.effective_traffic() == {"v1a": 100, "v2a": 0}
    assert history[-1].change.who == "weekly/run-1/judge"
    assert "wrong answers" in history[-1].change.reason
    assert asyncio.run(lab.target.endpoint("as-good")).effective_traffic() == {"v1a": 0, "v2a": 100}
    [confirmed] = [line for line in record.read(lab.workspace, "as-good") if line.step == "confirm"]
    assert confirmed.version == "v2a"
    assert confirmed.verdict is not None

    again = look("worse", began)
    assert again is not None and again["decision"] == "rolled_back"
    assert len(asyncio.run(lab.target.history("worse"))) == len(history)
