"""Names a version after the run that deploys it: the same for every retry, another one for every run."""

import hashlib
from datetime import UTC, datetime
from typing import Protocol

__all__ = ["RunLike", "version_of_run"]


class RunLike(Protocol):
    """What a template's `dag_run` offers."""

    dag_id: str
    run_id: str
    run_after: datetime


def version_of_run(dag_run: RunLike) -> str:
    """Return a version name such as `v20260105t020000-1f0c9ab3`: when the run was due, and a hash of its name.

    Hand it to a DAG's `user_defined_macros` and write `version="{{ version_of_run(dag_run) }}"`.

    Args:
        dag_run: The run.
    """
    due = dag_run.run_after.astimezone(UTC)
    digest = hashlib.sha256(f"{dag_run.dag_id}/{dag_run.run_id}".encode()).hexdigest()
    return f"v{due:%Y%m%dt%H%M%S}-{digest[:8]}"
