"""The task that puts a rollout on hold, for a DAG that a person triggers."""

from typing import TYPE_CHECKING, Any

from controlled_rollout.operators.base import RolloutOperator, change_of
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["HoldRolloutOperator"]


class HoldRolloutOperator(RolloutOperator):
    """Puts the rollout of a version on hold: its gate goes on looking, an alarm still rolls it back, a person decides.

    Args:
        version: The treatment.
        reason: The reason, for history and record.
        **kwargs: `endpoint`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version", "reason")
    ui_color = "#fdebd0"

    def __init__(self, *, version: str, reason: str = "", **kwargs: Any) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.version = version
        self.reason = reason

    async def step(self, context: "Context", workspace: Workspace) -> str:
        """Put it on hold, and return since when it is."""
        from controlled_rollout import steps

        change = change_of(context, self.reason)
        stored = await steps.hold(workspace, self.endpoint, self.version, change=change, progress=self.log_progress)
        held = stored.rollout.held if stored.rollout else None
        return held.isoformat() if held else ""
