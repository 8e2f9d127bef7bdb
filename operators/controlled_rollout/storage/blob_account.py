"""Addresses in Azure Blob Storage, and the one place where its clients are made: sign-in, retries, errors."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from controlled_rollout.addresses import azure_settings_for
from controlled_rollout.errors import WorkspaceError

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

__all__ = [
    "CONNECTION_STRING",
    "BlobAddress",
    "account_of_connection_string",
    "azure_error_code",
    "azure_errors",
    "blob_of_connection_string",
    "container_client",
]

# Read by Azure's own tools too: signs in without an identity, for tests on an emulator.
CONNECTION_STRING: Final = "AZURE_STORAGE_CONNECTION_STRING"
# Whoever asks tries again later: the client itself gives up after a few seconds (by itself after 84 s).
RETRIES: Final[dict[str, Any]] = {
    "retry_total": 2,
    "initial_backoff": 1,
    "increment_base": 1,
    "random_jitter_range": 0,
    "connection_timeout": 5,
    "read_timeout": 10,
}
# A piece that was not sent is sent again whole, so pieces of a large file are small.
PIECES: Final[dict[str, Any]] = {"max_single_put_size": 8 * 2**20, "max_block_size": 8 * 2**20}


@dataclass(frozen=True)
class BlobAddress:
    """A place in a container of blobs.

    Attributes:
        account: The URL of the account: `https://<account>.blob.core.windows.net`, or `https://<host>/<account>`.
        container: The container.
        prefix: What the names of all blobs begin with: empty, or with `/` at its end.
        is_azure: Whether the account is in the host's name, as at Azure: such a host may get an identity's token.
    """

    account: str
    container: str
    prefix: str
    is_azure: bool

    @classmethod
    def parse(cls, address: str) -> "BlobAddress":
        """Return the parts of an address that `Workspace` has accepted."""
        parts = urlsplit(address)
        names = parts.path.strip("/").split("/")
        is_azure = ".blob." in (parts.hostname or "")
        above = 0 if is_azure else 1
        account = f"{parts.scheme}://{'/'.join([parts.netloc, *names[:above]])}"
        return cls(account, names[above], "".join(f"{name}/" for name in names[above + 1 :]), is_azure)


@lru_cache(maxsize=8)
def container_client(address: str, process: int) -> "tuple[ContainerClient, str]":
    """Return the client of an address's container, and the prefix of the names below the address.

    Args:
        address: As `Workspace` accepts it.
        process: The id of this process: clients are cached and do not survive a fork.

    Raises:
        WorkspaceError: A package is missing, or there is no way to sign in that keeps credentials secret.
    """
    try:
        from azure.identity import DefaultAzureCredential
        from azure.storage.blob import ContainerClient
    except ImportError as error:
        raise WorkspaceError(
            f"{address} needs a package that is missing ({error.name}): install airflow-provider-controlled-rollout "
            "with the extra azure"
        ) from error
    place = BlobAddress.parse(address)
    settings = RETRIES | PIECES | azure_settings_for(place.account)
    if blob_of_connection_string(address, os.environ) is not None:
        connection_string = os.environ[CONNECTION_STRING]
        return ContainerClient.from_connection_string(connection_string, place.container, **settings), place.prefix
    if not place.is_azure:
        raise WorkspaceError(
            f"{address} cannot be used: an identity's token is sent to https://<account>.blob.… only; sign in to "
            f"{place.account} with {CONNECTION_STRING}"
        )
    credential = DefaultAzureCredential()
    return ContainerClient(place.account, place.container, credential=credential, **settings), place.prefix


def blob_of_connection_string(address: str, environment: Mapping[str, str]) -> str | None:
    """Return what follows the account in an address, `container/name`, if the connection string is for that account.

    None without a connection string, or with that of another account, whose key must not be tried here.
    """
    if urlsplit(address).scheme not in ("http", "https"):
        return None
    url, _ = account_of_connection_string(environment)
    return address.removeprefix(f"{url}/") if url and address.startswith(f"{url}/") else None


def account_of_connection_string(environment: Mapping[str, str]) -> tuple[str, str]:
    """Return the URL and the name of the storage account in the connection string; either may be empty.

    Both are empty without a connection string; the name is empty where the URL is one of the account's own domain.
    """
    if not (connection_string := environment.get(CONNECTION_STRING)):
        return "", ""
    from azure.storage.blob import BlobServiceClient

    with BlobServiceClient.from_connection_string(connection_string) as client:
        account = urlsplit(client.url)
        # A signature stands behind the URL.
        return f"{account.scheme}://{account.netloc}{account.path.rstrip('/')}", str(client.account_name or "")


@contextmanager
def azure_errors(address: str) -> Iterator[None]:
    """Context manager: turn errors of Azure's clients at an address into OSError, as a file system would raise."""
    from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

    try:
        yield
    except AzureError as error:
        message = str(getattr(error, "message", error)).partition("\n")[0]
        hint = ""
        if isinstance(error, ClientAuthenticationError) or getattr(error, "status_code", None) == 403:
            hint = "; this identity needs the role Storage Blob Data Contributor on the container"
            other, _ = account_of_connection_string(os.environ)
            if other and blob_of_connection_string(address, os.environ) is None:
                hint += f". {CONNECTION_STRING} is for another account, {other}, and was not used"
        elif isinstance(error, HttpResponseError) and azure_error_code(error) == "ContainerNotFound":
            hint = "; create the container first"
        elif azure_error_code(error) == "BlobNotFound":
            raise FileNotFoundError(message) from error
        raise OSError(f"{message}{hint}") from error


def azure_error_code(error: Any) -> str:
    """Return the error code that Azure Storage sent, as text; empty if there is none."""
    code = getattr(error, "error_code", "")
    return str(getattr(code, "value", code))
