"""Evidence from the store that a workspace names, or from the store of the local workspace's supervisor."""

import asyncio
import json
import time
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from controlled_rollout.addresses import is_this_machine
from controlled_rollout.errors import EvidenceUnavailableError, WorkspaceError
from controlled_rollout.evidence.log_analytics import LogAnalyticsEvidence
from controlled_rollout.evidence.query import Evidence, EvidenceQuery
from controlled_rollout.text_file import read_regular_file
from controlled_rollout.workspace import Workspace

__all__ = ["StateFileEvidence", "configured_log_analytics"]

# A store that was started without a token accepts any.
ANY_TOKEN: Final = "local"  # noqa: S105 - a placeholder, not a secret


@dataclass(frozen=True)
class FileToken:
    """A credential whose token is in a file; read for every query, so that it may change.

    Attributes:
        file: The file; None for a store that accepts any token.
    """

    file: Path | None

    def get_token(self, *scopes: str, **kwargs: Any) -> Any:
        """Return the file's content as an access token, as Azure's `TokenCredential` requires."""
        from azure.core.credentials import AccessToken

        return AccessToken(self._read_token(), int(time.time()) + 3_600)

    def _read_token(self) -> str:
        """Return the token from the file; raise EvidenceUnavailableError if it cannot be read."""
        if self.file is None:
            return ANY_TOKEN
        try:
            return read_regular_file(self.file.expanduser()).decode().strip()
        except (OSError, ValueError) as error:
            raise EvidenceUnavailableError(
                f"the telemetry store's token cannot be read from {self.file}: {error}"
            ) from error


class StateFileEvidence:
    """Evidence from the local supervisor's store; its state file is read at every look, because ports may change.

    Args:
        workspace: The local workspace.
    """

    def __init__(self, workspace: Workspace) -> None:
        """Store the workspace; its state file is read later, at every look."""
        self._workspace = workspace

    async def read(self, query: EvidenceQuery) -> Evidence:
        """Read the closed bins of a rollout; see `EvidenceSource.read`."""
        return await (await asyncio.to_thread(self._open_reader)).read(query)

    async def newest(self, endpoint: str) -> datetime | None:
        """Return the time of the endpoint's newest request of the last day; None if there is none."""
        return await (await asyncio.to_thread(self._open_reader)).newest(endpoint)

    def _open_reader(self) -> LogAnalyticsEvidence:
        """Return a reader of the store that the supervisor's state file names at this moment."""
        file = self._workspace.state_file
        try:
            state = json.loads(read_regular_file(file))
            url = _checked_local_url(str(state["telemetry_url"]))
            # None if the state was written before the store had started.
            workspace_id = state["telemetry_workspace_id"] or _workspace_id_at(url)
            token_file = state.get("telemetry_token_file")
        except FileNotFoundError as error:
            raise EvidenceUnavailableError(
                f"no local supervisor is running ({file} does not exist): start it with "
                f"`{self._workspace.local_command('up')}`"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EvidenceUnavailableError(
                f"{file} does not say where the telemetry store is ({error!r}): restart the supervisor with "
                f"`{self._workspace.local_command('down')}` and `{self._workspace.local_command('up')}`"
            ) from error
        return LogAnalyticsEvidence(
            endpoint=url,
            workspace_id=str(workspace_id),
            credential=FileToken(Path(token_file) if token_file else None),
            enforce_https=False,
        )


def _checked_local_url(url: str) -> str:
    """Return the URL if it leads to this machine; raise otherwise, so that the token is not sent elsewhere."""
    if not is_this_machine(url):
        raise EvidenceUnavailableError(
            f"the telemetry store at {url!r} is not on this machine: its token is not sent there"
        )
    return url


def _workspace_id_at(url: str) -> str:
    """Return the Log Analytics workspace id that the local telemetry store at a URL serves."""
    # Without the proxies of the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url}/healthz", timeout=2) as answer:
            return str(json.load(answer)["workspace_id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvidenceUnavailableError(
            f"the telemetry store at {url} does not answer ({error}): the gate waits until it does"
        ) from error


def configured_log_analytics(workspace: Workspace) -> LogAnalyticsEvidence:
    """Return the Log Analytics reader that the workspace's settings describe, with its credential.

    Raises:
        WorkspaceError: The settings do not say which Log Analytics workspace is queried, or a token would be sent in
            clear text, or a local store's token to another machine.
    """
    url, workspace_id = workspace.telemetry_endpoint, workspace.telemetry_workspace_id
    if not workspace_id:
        raise WorkspaceError(
            f"telemetry_workspace_id is missing from workspace {workspace.name!r} (its target is {workspace.target!r}, "
            f"telemetry_endpoint {url!r}): set it to the Log Analytics workspace that holds the requests"
        )
    if url and urlsplit(url).scheme == "http":
        if not is_this_machine(url):
            raise WorkspaceError(f"telemetry_endpoint {url!r} would send a token in clear text: use https")
        token_file = workspace.telemetry_token_file or _supervisor_token_file(workspace)
        return LogAnalyticsEvidence(
            endpoint=url, workspace_id=workspace_id, credential=FileToken(token_file), enforce_https=False
        )
    if workspace.telemetry_token_file:
        raise WorkspaceError(
            f"telemetry_token_file is for a store on this machine, which {url or 'Azure'} is not: leave it out, the "
            "worker's identity signs in"
        )
    try:
        credential = _azure_credential()
    except ImportError as error:
        raise WorkspaceError(
            f"telemetry in {url or 'Azure'} needs the package azure-identity: install the extra azure"
        ) from error
    return LogAnalyticsEvidence(endpoint=url, workspace_id=workspace_id, credential=credential)


@cache
def _azure_credential() -> Any:
    """Return this process's Azure identity, created once so that its token is cached."""
    from azure.identity import DefaultAzureCredential

    return DefaultAzureCredential()


def _supervisor_token_file(workspace: Workspace) -> Path | None:
    """Return the path of the telemetry store's token file, from the supervisor's state file; None without one."""
    try:
        file = json.loads(read_regular_file(workspace.state_file)).get("telemetry_token_file")
    except (OSError, ValueError, AttributeError):
        return None
    return Path(file) if file else None
