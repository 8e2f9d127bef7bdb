"""The task that shifts traffic to a version."""

from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from controlled_rollout.arguments import duration, number
from controlled_rollout.defaults import SERVED_TIMEOUT
from controlled_rollout.operators.base import RolloutOperator, change_of, run_of
from controlled_rollout.operators.datasets import version_dataset
from controlled_rollout.operators.gate_before import last_look
from controlled_rollout.operators.lineage import EndpointLineage
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

__all__ = ["ShiftTrafficOperator"]


class ShiftTrafficOperator(EndpointLineage, RolloutOperator):
    """Sets a version's per cent of the traffic once it is ready, and waits until the router serves the new split.

    Behind a gate it looks once more before that, as the gate does, and fails if a claim has alarmed.

    In a rollout of this run the task is skipped if the version is the control already, as the first version of a new
    endpoint is.

    Args:
        version: The version.
        percentile: Per cent of the endpoint's requests, 0 to 100.
        reason: The reason, for the history.
        timeout: How long the version may take to be ready, and the router to serve the new split.
        **kwargs: `endpoint`, `own_rollout`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "version", "percentile", "reason", "timeout")
    ui_color = "#d6e9f8"
    lineage_step = "shift"

    def __init__(
        self,
        *,
        version: str,
        percentile: float | str,
        reason: str = "",
        timeout: timedelta | float | str = SERVED_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.version = version
        self.percentile = percentile
        self.reason = reason
        self.timeout = timeout

    async def step(self, context: "Context", workspace: Workspace) -> dict[str, float]:
        """Shift the traffic, and return the per cent of the traffic of each version."""
        from controlled_rollout import steps

        percentile = number("percentile", self.percentile)
        look = partial(
            last_look, self, context, workspace, endpoint=self.endpoint, version=self.version, percentile=percentile
        )
        async with self.skipped_without_rollout(context, workspace):
            stored = await steps.shift(
                workspace,
                self.endpoint,
                self.version,
                percentile=percentile,
                change=change_of(context, self.reason),
                owner=self.required_owner(context),
                run=run_of(context),
                timeout=duration("timeout", self.timeout),
                look=look if self.own_rollout else None,
                progress=self.log_progress,
            )
        self.changed(
            stored,
            self.version,
            outputs=[version_dataset(self.conn_id, stored.name, self.version, stored.versions[self.version].image)],
            reason=self.reason or None,
        )
        return stored.effective_traffic()
