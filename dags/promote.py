"""Promote a version by hand: it becomes default and control with all the traffic, whichever run is rolling it out.

The control that it replaces is retired after a while. Use it to end a rollout that is on hold, or to go back after a
promotion: promote the former control.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param

from controlled_rollout import DeleteVersionOperator, PromoteToControlOperator

NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "minLength": 3, "maxLength": 32}
REASON: dict[str, Any] = {"type": "string", "pattern": r"\S", "$comment": "not empty, and not only spaces"}

with DAG(
    "promote",
    description="Promote a version to control, by hand.",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    params={
        "conn_id": Param(
            "controlled_rollout_default",
            type="string",
            pattern=r"^[\w#!()\-.:/\\]{1,250}$",
            title="Workspace",
            description="The connection of the workspace.",
        ),
        "endpoint": Param("digits", title="Endpoint", **NAME),
        "version": Param(title="Version", description="Gets all the traffic.", **NAME),
        "reason": Param(title="Reason", description="For the endpoint's history.", **REASON),
        "keep_warm": Param(
            "1 d", type="string", pattern=r"^(\d+(\.\d+)?\s*(s|min|h|d)|P.+)$", title="Keep the former control for"
        ),
    },
    default_args={
        "retries": 3,
        "conn_id": "{{ params.conn_id }}",
        "endpoint": "{{ params.endpoint }}",
        "own_rollout": False,
    },
    tags=["controlled-rollout"],
) as dag:
    BY = "{{ ' (' ~ dag_run.triggering_user_name ~ ')' if dag_run.triggering_user_name else '' }}"

    promote = PromoteToControlOperator(
        task_id="promote", version="{{ params.version }}", reason="{{ params.reason }}" + BY
    )
    retire_old = DeleteVersionOperator(
        task_id="retire_old", replaced_by="{{ params.version }}", keep_warm="{{ params.keep_warm }}", deferrable=True
    )
    promote >> retire_old
