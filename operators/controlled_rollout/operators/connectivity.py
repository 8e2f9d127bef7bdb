"""The connectivity check as a task: does everything that a rollout needs answer from this worker?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from controlled_rollout.checks.connectivity import check_connectivity, results_table
from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import EngineCalls
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials

__all__ = ["CheckConnectivityOperator"]


class CheckConnectivityOperator(EngineCalls, BaseOperator):
    """Checks that everything a rollout needs answers from this worker, and fails with a table of what does not.

    Args:
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What every operator takes.
    """

    template_fields: Sequence[str] = ("conn_id",)
    ui_color = "#e6e6e6"

    def __init__(self, *, conn_id: str = WorkspaceHook.default_conn_name, **kwargs: Any) -> None:
        """Store the connection's id."""
        super().__init__(**kwargs)
        self.conn_id = conn_id

    def execute(self, context: "Context") -> None:
        """Run all checks and log their results; raise an error that Airflow retries if one fails."""
        self.run_with_registry_users(context, self.check)

    async def check(self, workspace: Workspace, users: "Mapping[str, Credentials]") -> None:
        """Run the connectivity checks of a workspace and log a table of the results; raise if one failed.

        Args:
            workspace: The workspace.
            users: The user of each registry, by host.

        Raises:
            TargetUnavailableError: Something does not work.
        """
        results = await check_connectivity(workspace, users)
        self.log_progress(f"workspace {workspace.name!r}\n{results_table(results)}")
        if failed := [result for result in results if not result.works]:
            raise TargetUnavailableError(
                f"workspace {workspace.name!r} cannot be used from this worker: "
                + "; ".join(f"{result.name}: {result.message}" for result in failed)
            )
