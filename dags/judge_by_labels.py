"""Judge a version by labels that came late: what was right is known hours or weeks after the answer.

Looks every `interval`, for days if need be, and compares the version with the control that it shared the traffic with.
A version that is worse is taken back: the control before it gets all the traffic again. One that is good enough is
confirmed in the record. Without a decision in time it is kept, taken back, or a person is asked.

Labels are in a database (a connection, and a query in the folder `labels` beside this file) or in files below a prefix
of the workspace's storage.
"""

from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.hitl import HITLBranchOperator
from airflow.sdk import DAG, Param, task
from airflow.sdk.exceptions import AirflowFailException

from controlled_rollout import JudgeByLabelsOperator, RollBackOperator

NAME: dict[str, Any] = {"pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "minLength": 3, "maxLength": 32}
DURATION: dict[str, Any] = {"type": "string", "pattern": r"^(\d+(\.\d+)?\s*(s|min|h|d)|P.+)$"}

with DAG(
    "judge_by_labels",
    description="Judge a version by labels that come late; confirm it or take it back.",
    doc_md=__doc__,
    schedule=None,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    params={
        "endpoint": Param("digits", type="string", title="Endpoint", **NAME),
        "version": Param(
            None, type=["null", "string"], title="Version", description="Empty: what is control now.", **NAME
        ),
        "labels": Param(
            {"metrics": ["accuracy"]},
            type="object",
            title="What the labels have to show",
            description="Fields of controlled_rollout.Labels.",
        ),
        "conn_id": Param(None, type=["null", "string"], title="Database", description="An Airflow connection."),
        # A file, not a text: who may start a run may not read whatever the connection's user may.
        "query": Param(
            None,
            type=["null", "string"],
            pattern=r"^labels/[a-z0-9_]+\.sql$",
            title="Query",
            description="A file in this DAG's folder, such as labels/outcomes.sql.",
        ),
        "prefix": Param(
            None,
            type=["null", "string"],
            title="Prefix of files",
            description="Instead of a database: files in the workspace's storage, such as labels/digits/.",
        ),
        "decision_timeout": Param("14 d", title="Maximum time for a decision", **DURATION),
        "on_deadline": Param("keep", enum=["keep", "roll_back", "ask"], title="If there is no decision by then"),
        "interval": Param("1 h", title="Time between two looks", **DURATION),
    },
    default_args={"retries": 3},
    tags=["controlled-rollout"],
) as dag:
    judge = JudgeByLabelsOperator(
        task_id="judge",
        endpoint="{{ params.endpoint }}",
        version="{{ params.version or '' }}",
        labels="{{ params.labels | tojson }}",
        source={
            "conn_id": "{{ params.conn_id or '' }}",
            "query": "{{ params.query or '' }}",
            "prefix": "{{ params.prefix or '' }}",
        },
        decision_timeout="{{ params.decision_timeout }}",
        on_deadline="{{ params.on_deadline }}",
        interval="{{ params.interval }}",
    )

    @task(retries=0)
    def result(judged: Any) -> str:
        """Fail if the version was taken back, so that somebody looks at it; else return what was decided."""
        if judged["decision"] == "rolled_back":
            raise AirflowFailException(f"version {judged['version']} was taken back: {judged['reason']}")
        return f"{judged['version']} is {judged['decision']}: {judged['reason']}"

    @task.short_circuit
    def is_undecided(judged: Any) -> bool:
        """Go on to the question only if a person is to be asked."""
        return bool(judged["decision"] == "asks")

    ask = HITLBranchOperator(
        task_id="ask",
        subject="Keep version {{ ti.xcom_pull('judge')['version'] }} of endpoint {{ params.endpoint }}?",
        body="{{ ti.xcom_pull('judge')['reason'] }}\n\n```\n{{ ti.xcom_pull('judge')['table'] }}\n```",
        options=["Keep", "Roll back"],
        options_mapping={"Keep": "keep", "Roll back": "roll_back"},
    )
    keep = EmptyOperator(task_id="keep")
    roll_back = RollBackOperator(
        task_id="roll_back",
        endpoint="{{ params.endpoint }}",
        version="{{ ti.xcom_pull('judge')['version'] }}",
        to_former_control=True,
        own_rollout=False,
        reason="the labels have decided nothing, and a person has: {{ ti.xcom_pull('judge')['reason'] }}",
    )

    result(judge.output)
    is_undecided(judge.output) >> ask >> [keep, roll_back]
