"""Runs DAGs with `dag.test()` in a process of its own: a JSON request a line on stdin, a JSON answer a line on fd 3.

Airflow takes seconds to import and to set up, and takes over the logging of its process: one process serves all tests.
"""

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any
from unittest.mock import patch


def main() -> None:
    """Run a DAG for each line of stdin until it ends."""
    from airflow.dag_processing.dagbag import DagBag

    answers = os.fdopen(3, "w", buffering=1)
    bag = DagBag(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    dags = {dag_id: sorted(task.task_id for task in dag.tasks) for dag_id, dag in bag.dags.items()}
    print(json.dumps({"import_errors": dict(bag.import_errors), "dags": dags}), file=answers)
    for line in sys.stdin:
        request = json.loads(line)
        os.environ.update(request["environment"])
        dag = bag.dags[request["dag"]]
        run = _go_on(dag, request["run_id"]) if request.get("run_id") else _run(dag, request)
        print(json.dumps(_answer(run)), file=answers)


def _run(dag: Any, request: dict[str, Any]) -> Any:
    """Run a DAG to its end."""
    done_by_hand = request["done_by_hand"]
    return dag.test(run_conf=request["conf"], logical_date=datetime.now(UTC), mark_success_pattern=done_by_hand)


def _go_on(dag: Any, run_id: str) -> Any:
    """Let a run go on that a killed process has left: what was at work then begins anew, as a scheduler lets it."""
    from airflow.models import dagrun
    from airflow.serialization.definitions.dag import SerializedDAG
    from airflow.utils.session import create_session
    from airflow.utils.state import State
    from sqlalchemy import select

    def find(session: Any) -> Any:
        """Return the run."""
        return session.scalar(select(dagrun.DagRun).where(dagrun.DagRun.run_id == run_id))

    def found(*, dag: Any, session: Any, **_created: Any) -> Any:
        """Return the run in the place of a new one."""
        run = find(session)
        run.dag = dag
        return run

    with create_session() as session:
        run = find(session)
        logical_date = run.logical_date
        for task in run.get_task_instances(session=session):
            if task.state not in State.finished:
                task.state = task.next_method = task.next_kwargs = None
    with patch.object(dagrun, "get_or_create_dagrun", found), patch.object(SerializedDAG, "clear_dags"):
        return dag.test(logical_date=logical_date)


def _answer(run: Any) -> dict[str, Any]:
    """Return how a run has ended."""
    return {
        "run_id": run.run_id,
        "state": str(run.state),
        "tasks": {ti.task_id: str(ti.state) for ti in run.get_task_instances()},
        "tries": {ti.task_id: ti.try_number for ti in run.get_task_instances()},
        "links": _links(run),
        "assets": _asset_events(run),
    }


def _links(run: Any) -> dict[str, dict[str, str]]:
    """Return where the buttons of each task that has some lead, by their classes."""
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        wanted = select(XComModel).where(XComModel.run_id == run.run_id, XComModel.key.startswith("_link_"))
        links: dict[str, dict[str, str]] = {}
        for link in session.scalars(wanted):
            links.setdefault(link.task_id, {})[link.key.removeprefix("_link_")] = str(XComModel.deserialize_value(link))
        return links


def _asset_events(run: Any) -> list[dict[str, Any]]:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        events = session.scalars(select(AssetEvent).where(AssetEvent.source_run_id == run.run_id)).all()
        return [{"uri": event.uri, "extra": event.extra} for event in events]


if __name__ == "__main__":
    main()
