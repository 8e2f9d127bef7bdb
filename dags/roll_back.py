"""Roll a version back by hand: it loses its traffic at once, whichever run is rolling it out.

A treatment goes to 0 % and its rollout ends. To roll back the control, name the version that takes its place: it
becomes default and control with all the traffic.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.sdk import DAG, Param

from controlled_rollout import RollBackOperator

NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "minLength": 3, "maxLength": 32}
REASON: dict[str, Any] = {"type": "string", "pattern": r"\S", "$comment": "not empty, and not only spaces"}

with DAG(
    "roll_back",
    description="Roll a version back, by hand.",
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
        "version": Param(title="Version", description="Goes to 0 %; its replicas stay, for inspection.", **NAME),
        "to": Param(
            None,
            title="Replacement",
            description="Only to roll back the control: the version that gets all the traffic.",
            **{**NAME, "type": ["null", "string"]},
        ),
        "roll_back_timeout": Param("1 h", type="string", title="How long it goes on trying"),
        "reason": Param(title="Reason", description="For the endpoint's history.", **REASON),
    },
    default_args={"retries": 3},
    tags=["controlled-rollout"],
) as dag:
    BY = "{{ ' (' ~ dag_run.triggering_user_name ~ ')' if dag_run.triggering_user_name else '' }}"

    RollBackOperator(
        task_id="roll_back",
        conn_id="{{ params.conn_id }}",
        endpoint="{{ params.endpoint }}",
        version="{{ params.version }}",
        to="{{ params.to or '' }}",
        reason="{{ params.reason }}" + BY,
        roll_back_timeout="{{ params.roll_back_timeout }}",
        own_rollout=False,
    )
