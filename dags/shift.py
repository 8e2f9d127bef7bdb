"""Shift traffic to a version by hand: it gets so many per cent of the requests once it is ready.

A shift of a version that a run is rolling out ends that rollout, because the run's evidence is about another share.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param

from controlled_rollout import ShiftTrafficOperator

NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "minLength": 3, "maxLength": 32}
REASON: dict[str, Any] = {"type": "string", "pattern": r"\S", "$comment": "not empty, and not only spaces"}

with DAG(
    "shift",
    description="Shift traffic to a version, by hand.",
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
        "version": Param(title="Version", description="Gets the traffic; the default version has the rest.", **NAME),
        "percentile": Param(type="number", minimum=0, maximum=100, title="Per cent of the requests"),
        "reason": Param(title="Reason", description="For the endpoint's history.", **REASON),
    },
    default_args={"retries": 3},
    tags=["controlled-rollout"],
) as dag:
    BY = "{{ ' (' ~ dag_run.triggering_user_name ~ ')' if dag_run.triggering_user_name else '' }}"

    ShiftTrafficOperator(
        task_id="shift",
        conn_id="{{ params.conn_id }}",
        endpoint="{{ params.endpoint }}",
        version="{{ params.version }}",
        percentile="{{ params.percentile }}",
        reason="{{ params.reason }}" + BY,
        own_rollout=False,
    )
