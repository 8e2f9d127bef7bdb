"""Runs DAGs with `dag.test()` in a process of its own: a JSON request a line on stdin, a JSON answer a line on fd 3.

Airflow takes seconds to import and to set up, and takes over the logging of its process: one process serves all tests.
"""

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any


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
        print(json.dumps(_run(bag.dags[request["dag"]], request["conf"], request["done_by_hand"])), file=answers)


def _run(dag: Any, conf: dict[str, Any], done_by_hand: str | None) -> dict[str, Any]:
    run = dag.test(run_conf=conf, logical_date=datetime.now(UTC), mark_success_pattern=done_by_hand)
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
