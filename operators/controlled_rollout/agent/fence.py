"""A client of the cluster that sends nothing while its agent does not hold the Lease of its namespace.

A process may be stopped for a minute between a decision and its request, and another agent may have decided otherwise
meanwhile: so it is the request that has to ask.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from controlled_rollout.errors import TargetUnavailableError
from controlled_rollout.workspace import Workspace

__all__ = ["fenced"]


def fenced(workspace: Workspace, may_act: Callable[[], bool]) -> Workspace:
    """Return a workspace whose connections send nothing while `may_act` says no.

    Args:
        workspace: A workspace that says how its cluster's client is opened.
        may_act: Whether requests are allowed now.
    """
    open_client: Callable[[], AbstractAsyncContextManager[Any]] | None = workspace.open_cluster
    if open_client is None:
        raise ValueError("only the client that `open_cluster` opens can be fenced")

    @asynccontextmanager
    async def open_fenced() -> AsyncIterator[_FencedClient]:
        """Open a client that asks before each request."""
        async with open_client() as client:
            yield _FencedClient(client, may_act)

    return workspace.model_copy(update={"open_cluster": open_fenced})


class _FencedClient:
    """A client that sends a request only while that is allowed.

    Args:
        client: The client that sends.
        may_act: Whether requests are allowed now.
    """

    def __init__(self, client: Any, may_act: Callable[[], bool]) -> None:
        self.configuration = client.configuration
        self.update_params_for_auth = client.update_params_for_auth
        self._client = client
        self._may_act = may_act

    @property
    def rest_client(self) -> "_FencedClient":
        """The part that sends requests."""
        return self

    async def request(self, method: str, url: str, **options: Any) -> Any:
        """Send a request.

        Raises:
            TargetUnavailableError: It is not allowed now.
        """
        if not self._may_act():
            raise TargetUnavailableError(f"{method} {url} was not sent: this agent does not hold its Lease any more")
        return await self._client.rest_client.request(method, url, **options)
