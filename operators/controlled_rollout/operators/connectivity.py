"""The check before anything is changed, as a task: does everything that a rollout needs answer from this worker?"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from controlled_rollout.checks.connectivity import check, table
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.hooks.registry_users import registry_users
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import RolloutOperator
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials

__all__ = ["CheckConnectivityOperator"]


class CheckConnectivityOperator(RolloutOperator):
    """Checks that everything a rollout needs answers from this worker, and fails with a table of what does not.

    Args:
        plan: What is going to happen, in words; logged before the checks.
        **kwargs: `endpoint`, `conn_id` (see `RolloutOperator`), and what every operator takes.
    """

    template_fields = (*RolloutOperator.template_fields, "plan")
    ui_color = "#e6e6e6"

    def __init__(self, *, plan: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan

    def execute(self, context: "Context") -> None:
        """Check. What does not answer now may answer at the next try."""
        # The connections of the registries are read before the event loop runs.
        self.call(
            context, lambda workspace: self._check(workspace, registry_users(workspace, WorkspaceHook.get_connection))
        )

    async def _check(self, workspace: Workspace, users: "Mapping[str, Credentials]") -> None:
        if self.plan:
            self.say(self.plan)
        results = await check(workspace, users)
        self.say(f"workspace {workspace.name!r}\n{table(results)}")
        if missing := [result for result in results if not result.works]:
            raise TargetUnavailableError(
                f"workspace {workspace.name!r} cannot be used from here: "
                + "; ".join(f"{result.name}: {result.found}" for result in missing)
            )
