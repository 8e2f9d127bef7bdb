"""Names a version after the DAG run that rolls it out: all retries of a run give the same name, every run another."""

import hashlib
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["RunLike", "version_of_run"]


class RunLike(Protocol):
    """The fields of a DAG run that make the name; `dag_run` in a task's context has them."""

    dag_id: str
    run_id: str
    run_after: datetime


def version_of_run(dag_run: RunLike) -> str:
    """Return a DAG run's version name, such as `v20260105t020000-1f0c9ab3`: its logical time and a hash of its id.

    `ControlledRollout` gives this name to a version without one; in a task of your own, call it with the `dag_run` of
    the task's context.

    Args:
        dag_run: The DAG run.
    """
    due = dag_run.run_after.astimezone(UTC)
    digest = hashlib.sha256(f"{dag_run.dag_id}/{dag_run.run_id}".encode()).hexdigest()
    return f"v{due:%Y%m%dt%H%M%S}-{digest[:8]}"
