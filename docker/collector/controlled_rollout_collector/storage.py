"""A workspace's storage, written to: a folder, or a container of Azure Blob Storage."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from controlled_rollout_collector.atomic_files import write_atomically

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

__all__ = ["BlobStorage", "FolderStorage", "Storage", "StorageError", "StorageSettingError", "open_storage"]

CONNECTION_STRING: Final = "AZURE_STORAGE_CONNECTION_STRING"
SAS_TOKEN: Final = "AZURE_STORAGE_SAS_TOKEN"  # noqa: S105 - the name of a variable
# How long one attempt may take to connect, and to get an answer.
CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 10.0
# The client itself gives up soon: each round tries again, with longer and longer pauses.
CLIENT_SETTINGS: Final[dict[str, Any]] = {
    "retry_total": 2,
    "initial_backoff": 1,
    "increment_base": 1,
    "random_jitter_range": 0,
    # A part is one request to the service, so that nobody ever reads half of it.
    "max_single_put_size": 256 * 1024 * 1024,
}
# The certificates of the authority that the storage's own certificate is of, if it is no public one.
CA_FILE: Final = "AZURE_STORAGE_CA_FILE"
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
FORBIDDEN: Final = (401, 403)


class StorageError(Exception):
    """The storage did not take a file; it may take it later."""


class StorageSettingError(Exception):
    """The storage's address or credential cannot be used as it is."""


class Storage(Protocol):
    """Where parts are written."""

    def put(self, name: str, content: bytes) -> None:
        """Write a file, in place of the one that there may be.

        Args:
            name: Its path in the storage.
            content: Its bytes.

        Raises:
            StorageError: It is not written; what was there before still is.
        """
        ...


class FolderStorage:
    """A folder on a disk.

    Args:
        folder: The folder; it is made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return f"the folder {self._folder}"

    def put(self, name: str, content: bytes) -> None:
        """Write a file, in place of the one that there may be; on disk when this returns."""
        path = self._folder / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, content)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = "free space on its disk" if full else "check that this user may write there"
            raise StorageError(f"{self} cannot be written to ({error.strerror or error}): {advice}") from error


class BlobStorage:
    """A container of Azure Blob Storage.

    Credentials come from the environment, and are read again once one is refused: `AZURE_STORAGE_CONNECTION_STRING`,
    `AZURE_STORAGE_SAS_TOKEN`, or the same with `_FILE`, which names a file; else whatever `DefaultAzureCredential`
    finds, such as a workload identity, whose token no other host than `<account>.blob.…` gets.

    Args:
        address: `https://<account>.blob.core.windows.net/<container>[/<prefix>]`, or
            `https://<host>/<account>/<container>[/<prefix>]`.
        environment: The environment variables.
        connect_timeout_s: How long one attempt may take to connect, in seconds.
        read_timeout_s: How long it may then take to get an answer, in seconds.

    Raises:
        StorageSettingError: The address is of another form.
    """

    def __init__(
        self,
        address: str,
        environment: Mapping[str, str],
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
    ) -> None:
        parts = urlsplit(address)
        path = [element for element in parts.path.split("/") if element]
        self._is_azure = ".blob." in (parts.hostname or "")
        self._is_here = parts.hostname in LOOPBACK
        account_elements = 0 if self._is_azure else 1
        is_private = parts.scheme == "https" or self._is_here
        if parts.query or parts.username or not is_private or len(path) < account_elements + 1:
            shown = f"{parts.scheme}://{parts.hostname}{parts.path}"
            raise StorageSettingError(
                f"the storage {shown!r} is no address of a container: it has to be "
                "https://<account>.blob.core.windows.net/<container>/<prefix>, or "
                "https://<host>/<account>/<container>/<prefix>; a credential does not belong there"
            )
        self._account_url = "/".join([f"{parts.scheme}://{parts.netloc}", *path[:account_elements]])
        self._container = path[account_elements]
        self._prefix = "".join(f"{element}/" for element in path[account_elements + 1 :])
        self._environment = environment
        self._timeouts = {"connection_timeout": connect_timeout_s, "read_timeout": read_timeout_s}
        self._client: ContainerClient | None = None
        # The URL of the account that the connection string is for, if it is not this one.
        self._other_account = ""

    def __str__(self) -> str:
        return f"the container {self._container} of {self._account_url}"

    def put(self, name: str, content: bytes) -> None:
        """Write a blob, in place of the one that there may be."""
        from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError

        try:
            if self._client is None:
                self._client = self._connect()
            self._client.upload_blob(self._prefix + name, content, overwrite=True)
        except ClientAuthenticationError as error:
            self._forget_client()
            raise StorageError(self._refused_credential_message(_error_code(error))) from error
        except HttpResponseError as error:
            if error.status_code in FORBIDDEN:
                self._forget_client()
                raise StorageError(self._refused_credential_message(_error_code(error))) from error
            if _error_code(error) == "ContainerNotFound":
                raise StorageError(f"{self} does not exist: create the container") from error
            raise StorageError(f"{self} answers {error.status_code} {_error_code(error)}".rstrip()) from error
        except (AzureError, OSError, ValueError) as error:
            # The credential's files may be missing or be no credential, a name may not be resolved.
            self._forget_client()
            raise StorageError(f"{self} cannot be reached: {_first_line(error)}{self._unused_credential()}") from error

    def _connect(self) -> "ContainerClient":
        """Return a client of the container with the credential that the environment has now."""
        from azure.identity import DefaultAzureCredential
        from azure.storage.blob import ContainerClient

        settings = CLIENT_SETTINGS | self._timeouts
        self._other_account = ""
        if self._is_here:
            # An emulator on this machine, without the environment's proxies.
            settings |= {"use_env_settings": False}
        if (authority := self._environment.get(CA_FILE)) and Path(authority).exists():
            settings |= {"connection_verify": authority}
        if connection_string := _variable_or_file(self._environment, CONNECTION_STRING):
            client = ContainerClient.from_connection_string(connection_string, self._container, **settings)
            if client.url.startswith(f"{self._account_url}/"):
                return client
            # The key of another account must not be tried here.
            client.close()
            self._other_account = client.url.partition("?")[0].rpartition("/")[0]
        sas_token = _variable_or_file(self._environment, SAS_TOKEN)
        if not sas_token and not self._is_azure:
            raise StorageError(
                f"{self} gets no identity's token, which is sent to https://<account>.blob.… only: give the collector "
                "a connection string of that account, or a SAS token"
            )
        credential = sas_token or DefaultAzureCredential()
        return ContainerClient(self._account_url, self._container, credential=credential, **settings)

    def _forget_client(self) -> None:
        """Close the client, so that the next attempt reads the credential again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _refused_credential_message(self, code: str) -> str:
        """Return the message for a credential that the service does not accept."""
        return (
            f"{self} refuses the credential ({code or 'no token'}): it needs the role Storage Blob Data Contributor, "
            f"or a SAS with create and write{self._unused_credential()}"
        )

    def _unused_credential(self) -> str:
        """Return the end of a message that says which credential is not for this account; nothing if there is none."""
        if not self._other_account:
            return ""
        return f". {CONNECTION_STRING} is for another account, {self._other_account}, and was not used"


def _variable_or_file(environment: Mapping[str, str], name: str) -> str:
    """Return the value of a variable, or the content of the file that the variable with `_FILE` names, if it is there.

    A secret that is mounted has one of the two kinds of credential.
    """
    if file := environment.get(f"{name}_FILE"):
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""
    return environment.get(name, "").strip()


def _error_code(error: Any) -> str:
    """Return the service's own code of an error."""
    code = getattr(error, "error_code", None)
    return str(getattr(code, "value", code) or "")


def _first_line(error: Exception) -> str:
    """Return the first line of an error, without signatures that its addresses may have."""
    lines = str(error).splitlines() or [type(error).__name__]
    return re.sub(r"(?i)(sig|accountkey)=[^&;\s]+", r"\1=***", lines[0])


def open_storage(address: str, environment: Mapping[str, str]) -> Storage:
    """Return the storage of an address.

    Args:
        address: A folder, or the address of a container and a prefix.
        environment: The environment variables, which have the credential.

    Raises:
        StorageSettingError: It is neither.
    """
    if re.match(r"(?i)https?://", address):
        return BlobStorage(address, environment)
    if "://" in address or not Path(address).is_absolute():
        raise StorageSettingError(f"the storage {address!r} is neither an absolute folder nor an address with https://")
    return FolderStorage(Path(address))
