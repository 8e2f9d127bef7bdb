"""The hook that makes a `Workspace` of an Airflow connection."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from controlled_rollout.defaults import DEFAULT_CONNECTION
from controlled_rollout.errors import WorkspaceError
from controlled_rollout.hooks.cluster import cluster_conn_id, with_cluster, with_own_cluster
from controlled_rollout.hooks.missing import acheck_is_missing, can_ask_asynchronously, check_is_missing
from controlled_rollout.tokens import DEFAULT_LIFETIME, Token, check_lifetime
from controlled_rollout.workspace import Workspace

if TYPE_CHECKING:
    from airflow.sdk import Connection

__all__ = ["WorkspaceHook", "quieten_clients", "workspace_from"]

# Settings for the command line; in Airflow a connection leads to the cluster.
COMMAND_LINE_ONLY = ("kubeconfig", "kube_context")

# Settings for whoever starts a local workspace: tasks find a running one.
UP_ONLY = ("tls_certificate", "tls_key")

# Logs all headers of each request, which would hide what the task itself logs.
CHATTY_LOGGER = "azure.core.pipeline.policies.http_logging_policy"


def quieten_clients() -> None:
    """Keep Azure's client from logging each of its requests in the task's log."""
    logging.getLogger(CHATTY_LOGGER).setLevel(logging.WARNING)


def workspace_from(conn_id: str, extras: Mapping[str, Any]) -> Workspace:
    """Return the workspace that a connection's extras describe; empty fields count as not set.

    Raises:
        WorkspaceError: A setting is unknown or not valid.
    """
    settings = {name: value for name, value in extras.items() if value not in (None, "")}
    if misplaced := [name for name in COMMAND_LINE_ONLY if name in settings]:
        raise WorkspaceError(
            f"the connection {conn_id!r} sets {' and '.join(misplaced)}, which are for the command line: give a "
            "connection of the type 'kubernetes' in kubernetes_conn_id instead"
        )
    if misplaced := [name for name in UP_ONLY if name in settings]:
        raise WorkspaceError(
            f"the connection {conn_id!r} sets {' and '.join(misplaced)}, which are for `controlled-rollout local up`, "
            "where the router is started: set tls here to ask for https"
        )
    return Workspace.from_settings({"name": conn_id, **settings})


class WorkspaceHook(BaseHook):
    """Returns the workspace of a connection.

    If the default connection does not exist, the hook returns the local workspace, so that a first run needs no
    configuration. Any other connection has to exist, so that a typing error does not deploy to the wrong place. A
    connection that cannot be read, because a secrets backend does not answer, is not taken for a missing one.

    Args:
        conn_id: The connection.
    """

    conn_name_attr = "conn_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "controlled_rollout"
    hook_name = "Controlled Rollout workspace"

    def __init__(self, conn_id: str = default_conn_name, **kwargs: Any) -> None:
        """Store the connection's id."""
        super().__init__(**kwargs)
        self.conn_id = conn_id

    def get_conn(self) -> Workspace:
        """Return `get_workspace()`: Airflow's standard name for what a hook opens."""
        return self.get_workspace()

    def get_workspace(self) -> Workspace:
        """Read the Airflow connection and return the workspace that it describes.

        On Kubernetes the connection `kubernetes_conn_id` is read too, for `open_cluster`.

        Raises:
            AirflowNotFoundException: There is no such connection, and it is not the default one.
            TargetUnavailableError: Whether there is one cannot be read now.
            WorkspaceError: Its settings are not valid, or its Kubernetes connection is missing.
        """
        try:
            connection = self.get_connection(self.conn_id)
        except AirflowNotFoundException:
            check_is_missing(self.conn_id)
            return self._local_workspace_or_raise()
        workspace = self._workspace_of(connection)
        if (cluster := cluster_conn_id(workspace)) is None:
            return workspace
        try:
            return with_cluster(workspace, self.get_connection(cluster))
        except AirflowNotFoundException:
            check_is_missing(cluster)
            return with_own_cluster(workspace)

    async def aget_workspace(self) -> Workspace:
        """Like `get_workspace`, but does not block the triggerer's event loop."""
        if not can_ask_asynchronously():
            # Airflow would take every connection for a missing one.
            return self.get_workspace()
        try:
            connection = await self.aget_connection(self.conn_id)
        except AirflowNotFoundException:
            await acheck_is_missing(self.conn_id)
            return self._local_workspace_or_raise()
        workspace = self._workspace_of(connection)
        if (cluster := cluster_conn_id(workspace)) is None:
            return workspace
        try:
            return with_cluster(workspace, await self.aget_connection(cluster))
        except AirflowNotFoundException:
            await acheck_is_missing(cluster)
            return with_own_cluster(workspace)

    def get_token(self, endpoint: str, lifetime: timedelta = DEFAULT_LIFETIME) -> tuple[str, datetime]:
        """Return a new token for callers of an endpoint whose `auth` is `token`, and when to get another one.

        Airflow's logs show asterisks in its place. Do not return it from a task: XComs are stored.

        Args:
            endpoint: The endpoint's name, the token's audience.
            lifetime: How long it is accepted: 1 minute to 24 hours.

        Raises:
            EndpointError: The endpoint issues no tokens, or the lifetime is not possible.
            EndpointNotFoundError: There is no such endpoint.
        """
        from airflow.sdk.log import mask_secret

        from controlled_rollout.target.connect import connect

        check_lifetime(lifetime)
        workspace = self.get_workspace()

        async def issue() -> Token:
            """Return a token from the workspace's target."""
            async with connect(workspace) as target:
                return await target.token(endpoint, lifetime=lifetime)

        issued = asyncio.run(issue())
        mask_secret(issued.token)
        return issued.token, issued.refresh_by

    def test_connection(self) -> tuple[bool, str]:
        """Run all connectivity checks for Airflow's Test button; return whether all passed, and a table of results."""
        from controlled_rollout.checks.connectivity import check_connectivity
        from controlled_rollout.checks.result import failures, results_table
        from controlled_rollout.hooks.registry_users import registry_users

        quieten_clients()
        workspace = self.get_workspace()
        results = asyncio.run(check_connectivity(workspace, registry_users(workspace, self.get_connection)))
        return not failures(results), results_table(results)

    def _workspace_of(self, connection: "Connection") -> Workspace:
        """Return the workspace that a connection describes; raise WorkspaceError if it is of another type.

        Without settings, any connection would mean the local workspace.
        """
        conn_type = (connection.conn_type or "").replace("-", "_")
        if conn_type not in ("", "generic", self.conn_type):
            raise WorkspaceError(
                f"connection {self.conn_id!r} has the type {connection.conn_type!r}, and a workspace's has the type "
                f"{self.conn_type!r}: correct conn_id, or the connection's type"
            )
        return workspace_from(self.conn_id, connection.extra_dejson)

    def _local_workspace_or_raise(self) -> Workspace:
        """Return the local workspace if the missing connection is the default one; raise for any other."""
        if self.conn_id != self.default_conn_name:
            raise AirflowNotFoundException(
                f"connection {self.conn_id!r} was asked for and does not exist: create it with the type "
                f"{self.conn_type!r}, or use {self.default_conn_name!r}, which means the local workspace when missing"
            )
        return Workspace.local()
