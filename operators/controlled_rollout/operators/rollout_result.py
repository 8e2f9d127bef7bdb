"""The last task of a rollout: its state is the rollout's, for the tasks that come after it and for the run."""

from typing import TYPE_CHECKING, Any

from controlled_rollout.operators.base import RolloutOperator, run_of
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["RolloutResultOperator"]


class RolloutResultOperator(RolloutOperator):
    """Succeeds if this DAG run's version has become control; fails, with what ended its rollout, otherwise.

    It asks the endpoint, so it does not matter which tasks were skipped or marked.

    Args:
        version: The version that was rolled out.
        **kwargs: `endpoint`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version")
    ui_color = "#eeeeee"

    def __init__(self, *, version: str, **kwargs: Any) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.version = version

    async def step(self, context: "Context", workspace: Workspace) -> None:
        """Log that the version is promoted; raise AirflowFailException if it is not."""
        from controlled_rollout import steps

        owner = run_of(context)
        reason = await steps.reason_not_promoted(workspace, self.endpoint, self.version, owner, self.log_progress)
        if reason is not None:
            self.fail(context, reason)
        self.log_progress(f"version {self.version!r} of endpoint {self.endpoint!r} is promoted")
