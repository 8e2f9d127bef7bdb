"""The DAG run behind the author of a change, who is written as `dag/run/task`. Pure."""

import re
from typing import Final

from controlled_rollout.rollout import PART_OF_RUN
from controlled_rollout.view.models import RunReference

__all__ = ["run_of_author", "run_of_owner"]

DAG_ID: Final = re.compile(r"[A-Za-z0-9_.-]+")


def run_of_author(who: str) -> RunReference | None:
    """Return the run of a task that has changed an endpoint; None for a person.

    Args:
        who: The author: a person, or a task as `dag/run/task`.
    """
    run, _, task_id = who.rpartition("/")
    reference = run_of_owner(run)
    return reference.model_copy(update={"task_id": task_id}) if reference is not None else None


def run_of_owner(owner: str) -> RunReference | None:
    """Return the run that holds an endpoint; None for a person.

    Args:
        owner: The owner of a rollout: a person, or a run as `dag/run`, with its part after it such as `[0]`.
    """
    dag_id, _, run_id = PART_OF_RUN.sub("", owner).partition("/")
    return RunReference(dag_id=dag_id, run_id=run_id) if run_id and DAG_ID.fullmatch(dag_id) else None
