"""What a storage can do, whatever it is made of: named files that are written whole, listed, read and deleted."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from controlled_rollout.errors import StorageError
from controlled_rollout.storage.file_writing import UNFINISHED

__all__ = ["MAX_GET_BYTES", "Storage", "StoredFile", "check_file_name", "check_prefix"]

# What `get` reads into memory; larger files are downloaded to the disk.
MAX_GET_BYTES: Final = 64 * 2**20
# The longest name that Azure Blob Storage allows, with room for the prefix of the workspace.
MAX_NAME_LENGTH: Final = 800


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in the storage.

    Attributes:
        name: Its name, with `/` between folders: `models/digits/v1/model.joblib`.
        size: Its length in bytes.
        etag: Changes whenever the file is written.
        modified: When it was written last.
    """

    name: str
    size: int
    etag: str
    modified: datetime


class Storage(Protocol):
    """Files by name. Names have `/` between folders, and no part of a name ends with a dot."""

    @property
    def address(self) -> str:
        """The storage's folder or address, for messages."""
        ...

    def address_of(self, name: str) -> str:
        """Return the path or address of a file, as `BuildImageOperator(models=…)` reads it."""
        ...

    def put(self, name: str, content: bytes | Path) -> StoredFile:
        """Write a file whole: a reader sees the old content, or the new one, never a part. Writing again replaces it.

        Args:
            name: The file's name in the storage.
            content: Its content, or a file of this machine that is sent in pieces.

        Raises:
            StorageError: The name is not allowed, the local file cannot be read, or the storage cannot be written.
        """
        ...

    def get(self, name: str, *, limit: int = MAX_GET_BYTES) -> bytes:
        """Return a file's content.

        Args:
            name: The file's name.
            limit: The largest content that is read into memory, in bytes.

        Raises:
            StoredFileNotFoundError: There is no such file.
            StorageError: It has more bytes than `limit`, or the storage cannot be read.
        """
        ...

    def get_end(self, name: str, length: int) -> bytes:
        """Return the last bytes of a file, at most so many.

        Raises:
            StoredFileNotFoundError: There is no such file.
            StorageError: The storage cannot be read.
        """
        ...

    def download(self, name: str, path: Path) -> None:
        """Copy a file to a path of this machine, in pieces; the path has the whole content or is as it was before.

        Raises:
            StoredFileNotFoundError: There is no such file.
            StorageError: The storage cannot be read, or the path cannot be written.
        """
        ...

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """Yield the files whose names begin with `prefix`, by name. A prefix may end within a name.

        Raises:
            StorageError: The storage cannot be read.
        """
        ...

    def delete(self, name: str) -> None:
        """Delete a file; nothing happens if there is none.

        Raises:
            StorageError: The storage cannot be written.
        """
        ...


def check_file_name(name: str) -> str:
    """Return a file name unchanged; raise StorageError if it could lead elsewhere or would not be kept so."""
    is_plain = len(name) <= MAX_NAME_LENGTH and name.isprintable() and "\\" not in name
    if not is_plain or any(map(_is_refused, name.split("/"))):
        raise StorageError(
            f"{name[:200]!r} is not the name of a file in the storage: give folders and a file name with / between, "
            f"each without a dot at its end and without \\, at most {MAX_NAME_LENGTH} characters"
        )
    return name


def check_prefix(prefix: str) -> str:
    """Return the prefix of names unchanged; raise StorageError if no name may begin with it."""
    if prefix:
        check_file_name(f"{prefix}x" if prefix.endswith("/") else prefix.rstrip("."))
    return prefix


def _is_refused(part: str) -> bool:
    """Return whether a part of a name is empty, leads elsewhere, or is not kept: Azure drops dots at the end."""
    return not part or part.endswith((".", UNFINISHED))
