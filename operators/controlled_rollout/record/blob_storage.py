"""A record in Azure Blob Storage, for workers and triggerers that share no disk: append blobs, no locks.

An append states the length that it expects the blob to have; the service refuses it when another writer was faster. So
each line can build on all lines before it, as in a locked file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

from controlled_rollout.record import storage
from controlled_rollout.record.storage import AppendConflict
from controlled_rollout.storage.blob_account import azure_error_code, azure_errors, container_client

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

__all__ = ["BlobPart", "BlobStorage"]

FIRST: Final = 1
# What is read of a long blob at once.
BLOCK: Final = 4 * 2**20
FULL: Final = "BlockCountExceedsLimit"
CONFLICTS: Final = ("AppendPositionConditionNotMet", "BlobNotFound")


@dataclass(frozen=True)
class BlobPart:
    """A blob of a record, as it was when the blobs were listed.

    Attributes:
        container: The client of its container.
        name: Its name.
        identity: Its name and when it was created.
        size: Its length in bytes.
    """

    container: "ContainerClient"
    name: str
    identity: str
    size: int

    def lines(self) -> Iterator[bytes]:
        """Yield the blob's lines, oldest first; none if the blob was deleted."""
        with azure_errors(self.container.url):
            content = _read_blob(self.container, self.name)
        yield from content.splitlines(keepends=True)

    def pieces_from(self, offset: int) -> Iterator[bytes]:
        """Yield the blob's bytes from one of them on, a line in one piece or in several; none if it was deleted."""
        for begin in range(offset, self.size, BLOCK):
            with azure_errors(self.container.url):
                content = BytesIO(_read_blob(self.container, self.name, begin, min(begin + BLOCK, self.size)))
            while piece := content.readline(storage.LONGEST_PIECE):
                yield piece


@dataclass(frozen=True)
class BlobStorage:
    """A record in a container: numbered blobs, of which the last is open.

    Attributes:
        address: Where a workspace's records are: `https://<account>.blob.core.windows.net/<container>/<prefix>`.
        endpoint: The endpoint's name.
    """

    address: str
    endpoint: str

    @property
    def name(self) -> str:
        """The address of the record's blobs."""
        return f"{self.address.rstrip('/')}/{self.endpoint}"

    def parts(self) -> list[BlobPart]:
        """Return the blobs, the oldest first."""
        with azure_errors(self.address):
            container, prefix = self._container_and_prefix()
            return [
                BlobPart(container, blob.name, f"{blob.name} {blob.creation_time}", int(blob.size))
                for blob in container.list_blobs(name_starts_with=prefix)
            ]

    @contextmanager
    def appending(self) -> "Iterator[_Appender]":
        """Context manager: open the last blob for one append. `write` raises if another writer was faster."""
        with azure_errors(self.address):
            container, prefix = self._container_and_prefix()
            last = max(container.list_blobs(name_starts_with=prefix), key=lambda blob: str(blob.name), default=None)
            if last is None:
                _create_blob(container, f"{prefix}{FIRST:06d}.jsonl")
                raise AppendConflict
            identity = f"{last.name} {last.creation_time}"
            yield _Appender(self.name, container, prefix, last.name, identity, int(last.size))

    def _container_and_prefix(self) -> "tuple[ContainerClient, str]":
        """Return the client of the container, and the prefix of the record's blob names."""
        container, prefix = container_client(self.address, os.getpid())
        return container, f"{prefix}{self.endpoint}/"


@dataclass(frozen=True)
class _Appender:
    """The last blob, as it was when it was opened."""

    name: str
    container: "ContainerClient"
    prefix: str
    blob: str
    identity: str
    size: int

    def read_from(self, offset: int) -> bytes:
        """Return the blob's bytes from `offset` to its size when it was opened."""
        return _read_blob(self.container, self.blob, offset, self.size) if offset < self.size else b""

    def write(self, line: bytes) -> int:
        """Append one line if the blob has not changed since; return its new size, raise AppendConflict otherwise."""
        from azure.core.exceptions import HttpResponseError

        try:
            # One block is appended whole or not at all: no crash cuts a line.
            self.container.get_blob_client(self.blob).append_block(line + b"\n", appendpos_condition=self.size)
        except HttpResponseError as error:
            if azure_error_code(error) == FULL:
                self.retire()
            if azure_error_code(error) in (FULL, *CONFLICTS):
                raise AppendConflict from error
            raise
        return self.size + len(line) + 1

    def retire(self) -> None:
        """Create the next numbered blob, and delete the oldest beyond `KEPT_PARTS`."""
        number = int(self.blob.removeprefix(self.prefix).partition(".")[0])
        _create_blob(self.container, f"{self.prefix}{number + 1:06d}.jsonl")
        names = sorted(blob.name for blob in self.container.list_blobs(name_starts_with=self.prefix))
        for oldest in names[: -storage.KEPT_PARTS - 1]:
            _none_if_deleted(lambda name=oldest: self.container.delete_blob(name))


def _create_blob(container: "ContainerClient", name: str) -> None:
    """Create an empty append blob unless a blob of that name exists."""
    from azure.core import MatchConditions
    from azure.core.exceptions import ResourceExistsError, ResourceModifiedError

    try:
        # Without the condition an existing blob would be emptied.
        container.get_blob_client(name).create_append_blob(match_condition=MatchConditions.IfMissing)
    except (ResourceExistsError, ResourceModifiedError):
        return


def _read_blob(container: "ContainerClient", name: str, offset: int = 0, end: int | None = None) -> bytes:
    """Return a blob's bytes from `offset` to `end` (None: all the rest); empty if the blob was deleted."""
    length = None if end is None else end - offset
    start = None if length is None else offset
    content = _none_if_deleted(lambda: container.download_blob(name, offset=start, length=length).readall())
    return bytes(content or b"")


def _none_if_deleted(call: Any) -> Any:
    """Call a function of the client and return its result; None if the blob was deleted meanwhile."""
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return call()
    except ResourceNotFoundError:
        return None
