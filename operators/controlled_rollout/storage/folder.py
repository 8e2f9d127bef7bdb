"""A storage in a folder of this machine, or in one that machines share."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from controlled_rollout.errors import StorageError, StoredFileNotFoundError
from controlled_rollout.storage.file_writing import UNFINISHED, written_whole
from controlled_rollout.storage.protocol import MAX_GET_BYTES, StoredFile, check_file_name, check_prefix

__all__ = ["FolderFiles"]


@dataclass(frozen=True)
class FolderFiles:
    """A storage whose files are files below a folder.

    Attributes:
        folder: The folder; created with the first file.
    """

    folder: Path

    @property
    def address(self) -> str:
        """The path of the folder."""
        return str(self.folder)

    def address_of(self, name: str) -> str:
        """Return the path of a file."""
        return str(self.folder / check_file_name(name))

    def put(self, name: str, content: bytes | Path) -> StoredFile:
        """Write a file beside its place, and rename it."""
        path = self.folder / check_file_name(name)
        with _as_storage_errors(path):
            with written_whole(path) as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 20)
            return _stored_file(name, path.stat())

    def get(self, name: str, *, limit: int = MAX_GET_BYTES) -> bytes:
        """Read a file into memory."""
        path = self.folder / check_file_name(name)
        with self._open_for_reading(path) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise StorageError(f"{path} has more than {limit:,} bytes, {limit:,} are allowed")
        return content

    def get_end(self, name: str, length: int) -> bytes:
        """Read the end of a file."""
        path = self.folder / check_file_name(name)
        with self._open_for_reading(path) as file, _as_storage_errors(path):
            file.seek(max(0, file.seek(0, os.SEEK_END) - length))
            return file.read(length)

    def download(self, name: str, path: Path) -> None:
        """Copy a file."""
        stored = self.folder / check_file_name(name)
        with self._open_for_reading(stored) as source, _as_storage_errors(path), written_whole(path) as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def list(self, prefix: str = "") -> Iterator[StoredFile]:
        """List the files below the folder, by name; of the folders above a prefix no other is read."""
        check_prefix(prefix)
        start = prefix.rpartition("/")[0]
        with _as_storage_errors(self.folder):
            for name in sorted(_names_below(self.folder / start, f"{start}/" if start else "")):
                if name.startswith(prefix):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        yield _stored_file(name, (self.folder / name).stat())

    def delete(self, name: str) -> None:
        """Delete a file, and the folders that are empty then."""
        path = self.folder / check_file_name(name)
        with _as_storage_errors(path):
            path.unlink(missing_ok=True)
        for folder in path.parents:
            if folder == self.folder:
                return
            try:
                folder.rmdir()
            except OSError:  # not empty, or another process was faster
                return

    @contextmanager
    def _open_for_reading(self, path: Path) -> "Iterator[IO[bytes]]":
        """Context manager: open a stored file for reading; a pipe or a device is refused."""
        with _as_storage_errors(path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise StoredFileNotFoundError(f"there is no {path}") from error
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise StorageError(f"{path} is not a regular file")
                yield file


def _names_below(folder: Path, above: str) -> Iterator[str]:
    """Yield the names of all files below a folder, each with `above` before it, without unfinished ones."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if entry.name.endswith(UNFINISHED):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _names_below(folder / entry.name, f"{above}{entry.name}/")
            elif entry.is_file():
                yield f"{above}{entry.name}"


def _stored_file(name: str, status: os.stat_result) -> StoredFile:
    """Return what the file system says of a file as a `StoredFile`."""
    return StoredFile(
        name=name,
        size=status.st_size,
        # Each writing makes a new file.
        etag=f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}",
        modified=datetime.fromtimestamp(status.st_mtime, UTC),
    )


@contextmanager
def _as_storage_errors(path: Path) -> Iterator[None]:
    """Context manager: turn an OSError into a `StorageError` that names the path."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or path} cannot be read or written: {error.strerror or error}; make it available again, "
            "and free disk space if it is full"
        ) from error
