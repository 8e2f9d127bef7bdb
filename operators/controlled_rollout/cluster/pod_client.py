"""The client of a process that runs all the time in a pod: it signs in with the pod's ServiceAccount, by aiohttp alone.

`kubernetes_asyncio` takes 65 MB to be imported, for its classes of every kind of object; `Api` needs none of them.
"""

import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.errors import WorkspaceError

if TYPE_CHECKING:
    import aiohttp

__all__ = ["SERVICE_ACCOUNT_FOLDER", "PodClient", "open_pod_client"]

SERVICE_ACCOUNT_FOLDER: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOST_VARIABLE: Final = "KUBERNETES_SERVICE_HOST"
PORT_VARIABLE: Final = "KUBERNETES_SERVICE_PORT"
# The kubelet renews the token's file long before the token ends.
TOKEN_KEPT_S: Final = 60.0


@dataclass(frozen=True)
class PodClientConfiguration:
    """What `Api` asks a client for.

    Attributes:
        host: The API server's address.
    """

    host: str


class PodClient:
    """What `Api` needs of a client of `kubernetes_asyncio`, made of an open aiohttp session.

    Args:
        host: The API server's address.
        session: The session; whoever opened it closes it.
        token_file: The file with the ServiceAccount's token.
    """

    def __init__(self, host: str, session: "aiohttp.ClientSession", token_file: Path) -> None:
        self.configuration = PodClientConfiguration(host)
        self._session = session
        self._token_file = token_file
        self._token = ""
        self._read_at: float | None = None

    @property
    def rest_client(self) -> "PodClient":
        """The part that sends requests."""
        return self

    async def update_params_for_auth(self, headers: dict[str, str], _query: list[Any], _settings: list[str]) -> None:
        """Add the token to the headers of a request; its file is read again once a minute."""
        now = time.monotonic()
        if self._read_at is None or now - self._read_at > TOKEN_KEPT_S:
            # A small file in memory: reading it does not keep the event loop.
            self._token, self._read_at = self._token_file.read_text().strip(), now
        headers["Authorization"] = f"Bearer {self._token}"

    async def request(
        self,
        method: str,
        url: str,
        *,
        query_params: Mapping[str, str],
        headers: Mapping[str, str],
        body: Any,
        _preload_content: bool,
        _request_timeout: float,
    ) -> "aiohttp.ClientResponse":
        """Send a request and return the response, whose body is not read yet."""
        import aiohttp

        return await self._session.request(
            method,
            url,
            params=query_params,
            headers=headers,
            json=body,
            timeout=aiohttp.ClientTimeout(total=_request_timeout),
            allow_redirects=False,
        )


@asynccontextmanager
async def open_pod_client(folder: Path = SERVICE_ACCOUNT_FOLDER) -> AsyncIterator[PodClient]:
    """Context manager: yield the client of the cluster that this process's pod runs in; close it on exit.

    Args:
        folder: The folder with the ServiceAccount's `token` and the cluster's `ca.crt`.

    Raises:
        WorkspaceError: This process runs in no pod, or its pod has no ServiceAccount.
    """
    import aiohttp

    host, port = os.environ.get(HOST_VARIABLE), os.environ.get(PORT_VARIABLE, "443")
    if not host:
        raise WorkspaceError(f"${HOST_VARIABLE} is not set: run this in a pod of the cluster")
    try:
        context = ssl.create_default_context(cafile=folder / "ca.crt")
        (folder / "token").read_bytes()
    except OSError as error:
        raise WorkspaceError(
            f"the ServiceAccount in {folder} cannot be read ({error.strerror or error}): let the pod mount its token "
            "(automountServiceAccountToken)"
        ) from error
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, limit=0)) as session:
        yield PodClient(server, session, folder / "token")
