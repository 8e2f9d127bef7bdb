"""Retrain the digits model every week, build its image, and roll it out against the version that is in use.

The defaults below are for production. A run that is triggered by hand may change them in the form, or with `--conf`.
"""

import logging
import runpy
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow.sdk import DAG, Param, task

from controlled_rollout import BuildImageOperator, ControlledRollout, version_of_run

FOLDER = Path(__file__).parent
log = logging.getLogger(__name__)
DURATION: dict[str, Any] = {"type": "string", "pattern": r"^(\d+(\.\d+)?\s*(s|min|h|d)|P.+)$"}
NAME: dict[str, Any] = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "minLength": 3, "maxLength": 32}

PARAMS = {
    "endpoint": Param("digits", title="Endpoint", description="Created by the first run.", **NAME),
    "source": Param(
        "models/digits",
        type="string",
        title="Project folder",
        description="With score.py and environment.yml; relative to the DAG's folder.",
    ),
    "entry_script": Param("score.py", type="string", title="Entry script", description="In the project folder."),
    "part": Param("all", enum=["first", "all"], title="Training data", description="The first half, or all."),
    "settings": Param(
        {}, type="object", title="Settings of the version", description='For example {"cpu_cores": 0.5}.'
    ),
    "on_conflict": Param("wait", enum=["wait", "fail"], title="If another run is rolling out on this endpoint"),
    "bake": Param("10 min", title="Minimum time at each step", **DURATION),
    "min_requests": Param(500, type="integer", minimum=0, title="Minimum treatment requests at each step"),
    "decision_timeout": Param("1 d", title="Maximum time at each step", **DURATION),
    "on_deadline": Param("hold", enum=["hold", "roll_back"], title="If there is no decision by then"),
    "keep_warm": Param("1 d", title="Keep the former control for", **DURATION),
    "roll_back_timeout": Param("1 h", title="How long a roll-back goes on trying", **DURATION),
    "gate": Param(
        {"warm_up": "5 min"},
        type="object",
        title="Gate",
        description="The gate's settings: fields of controlled_rollout.Gate.",
    ),
    "interval": Param("1 min", title="Time between two looks", **DURATION),
    "bin_width": Param("1 min", title="Width of a time bin", **DURATION),
    "allowed_lag": Param("3 min", title="How late telemetry may be", **DURATION),
    "baseline_length": Param("1 h", title="Length of the latency baseline before the rollout", **DURATION),
}

with DAG(
    "retrain_and_deploy",
    description="Train, build, roll out with canary traffic and a gate; promote or roll back.",
    doc_md=__doc__,
    schedule="@weekly",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    # on_conflict, not this, serialises rollouts of an endpoint. A run lasts until its former control is retired, and a
    # next run must be possible before that.
    max_active_runs=3,
    params=PARAMS,
    tags=["controlled-rollout", "digits"],
) as dag:

    @task(retries=2)
    def train(endpoint: str, part: str, dag_run: Any = None) -> str:
        """Train the model, and return its address in the workspace's storage, where a retry writes it again."""
        from controlled_rollout.hooks.workspace import WorkspaceHook
        from controlled_rollout.storage import hand_over_model, open_storage

        code = runpy.run_path(str(FOLDER / "models" / "digits" / "train.py"))
        storage = open_storage(WorkspaceHook().get_workspace())
        with TemporaryDirectory() as folder:
            log.info("trained: %s", code["train"](folder, part=part))
            model = Path(folder) / "model.joblib"
            return hand_over_model(storage, model, endpoint=endpoint, version=version_of_run(dag_run))

    trained = train(endpoint="{{ params.endpoint }}", part="{{ params.part }}")

    build = BuildImageOperator(
        task_id="build_image",
        source_dir="{{ params.source }}",
        entry_script="{{ params.entry_script }}",
        name="{{ params.endpoint }}",
        models={"digits": trained},
        retries=2,
    )

    rollout = ControlledRollout(
        "rollout",
        endpoint="{{ params.endpoint }}",
        image=build.output,
        steps=(10, 50),
        settings="{{ params.settings | tojson }}",
        gate="{{ params.gate | tojson }}",
        bake="{{ params.bake }}",
        min_requests="{{ params.min_requests }}",
        decision_timeout="{{ params.decision_timeout }}",
        on_deadline="{{ params.on_deadline }}",
        keep_warm="{{ params.keep_warm }}",
        roll_back_timeout="{{ params.roll_back_timeout }}",
        on_conflict="{{ params.on_conflict }}",
        interval="{{ params.interval }}",
        bin_width="{{ params.bin_width }}",
        allowed_lag="{{ params.allowed_lag }}",
        baseline_length="{{ params.baseline_length }}",
    )

    build >> rollout
