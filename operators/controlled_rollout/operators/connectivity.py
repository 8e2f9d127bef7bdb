"""The connectivity check as a task: does everything that a rollout needs answer, from this worker and from the pods?"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from controlled_rollout.checks.connectivity import CheckScope, check_connectivity
from controlled_rollout.checks.result import failures, results_table
from controlled_rollout.errors import ArgumentError, TargetUnavailableError
from controlled_rollout.hooks.workspace import WorkspaceHook
from controlled_rollout.operators.base import EngineCalls
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Context

    from controlled_rollout.image import Credentials

__all__ = ["CheckConnectivityOperator"]


class CheckConnectivityOperator(EngineCalls, BaseOperator):
    """Checks that everything a rollout needs answers, and fails with a table of what does not and what to open.

    It is asked from this worker; with an `endpoint`, on Kubernetes, also from a pod that has the network identity of
    one of its versions, which is deleted afterwards.

    Args:
        endpoint: The endpoint whose versions' network is checked too; None for this worker's alone.
        version: The version whose labels, node selector and account the pod gets; None, or one that does not exist yet,
            for control's.
        destinations: URLs that a script calls, `https://host/path` or `tcp://host:port`; all have to be reached.
        conn_id: The connection of the workspace; without the default one, the local workspace.
        **kwargs: What every operator takes.
    """

    template_fields: Sequence[str] = ("conn_id", "endpoint", "version", "destinations")
    ui_color = "#e6e6e6"
    # Whether the task fails where the pod cannot run.
    needs_pod = True

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        version: str | None = None,
        destinations: Sequence[str] = (),
        conn_id: str = WorkspaceHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        """Store the arguments; Airflow renders their templates before `execute`."""
        super().__init__(**kwargs)
        self.endpoint: str | None = endpoint
        self.version: str | None = version
        self.destinations = destinations
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
            ArgumentError: `destinations` is no list of texts.
            TargetUnavailableError: Something does not work.
        """
        results = await check_connectivity(workspace, users, self.check_scope())
        self.log_progress(f"workspace {workspace.name!r}\n{results_table(results)}")
        if failed := failures(results):
            raise TargetUnavailableError(
                f"workspace {workspace.name!r} cannot be used: "
                + "; ".join(f"{result.name} (from {result.origin}): {result.message}" for result in failed)
            )

    def check_scope(self) -> CheckScope:
        """Return what is checked besides the workspace, from this task's arguments.

        Raises:
            ArgumentError: `destinations` is no list of texts.
        """
        given = self.destinations
        if not isinstance(given, list | tuple) or not all(isinstance(each, str) for each in given):
            raise ArgumentError(f'destinations = {given!r} is no list of addresses: give ["https://host/path", …]')
        return CheckScope(self.endpoint or "", self.version or "", tuple(given), needs_pod=self.needs_pod)
