"""Put a rollout on hold by hand: its gate goes on looking, and a person decides.

An alarm still rolls the version back. Promote it, roll it back or clear its gate to end the hold.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param

from controlled_rollout import HoldRolloutOperator

NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "minLength": 3, "maxLength": 32}
REASON: dict[str, Any] = {"type": "string", "pattern": r"\S", "$comment": "not empty, and not only spaces"}

with DAG(
    "hold",
    description="Put a rollout on hold, by hand.",
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
        "version": Param(title="Version", description="The one that is being rolled out.", **NAME),
        "reason": Param(title="Reason", description="For the endpoint's history.", **REASON),
    },
    default_args={"retries": 3},
    tags=["controlled-rollout"],
) as dag:
    BY = "{{ ' (' ~ dag_run.triggering_user_name ~ ')' if dag_run.triggering_user_name else '' }}"

    HoldRolloutOperator(
        task_id="hold",
        conn_id="{{ params.conn_id }}",
        endpoint="{{ params.endpoint }}",
        version="{{ params.version }}",
        reason="{{ params.reason }}" + BY,
        own_rollout=False,
    )
