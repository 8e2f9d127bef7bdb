"""A record in files on this machine: many processes append, lines are never rewritten, the size is bounded."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from controlled_rollout.record import storage
from controlled_rollout.target.local.atomic_files import create_private_folder, sync_folder

__all__ = ["FilePart", "FileStorage"]


@dataclass(frozen=True)
class FilePart:
    """A file of a record."""

    path: Path

    @property
    def identity(self) -> str:
        """The file's inode number, which it keeps when it is renamed; empty if it was deleted."""
        status = self._status()
        return str(status.st_ino) if status else ""

    @property
    def size(self) -> int:
        """The file's length in bytes; 0 if it was deleted."""
        status = self._status()
        return status.st_size if status else 0

    def lines(self) -> Iterator[bytes]:
        """Yield the file's lines, oldest first; none if the file was deleted."""
        with self._opened() as file:
            yield from file

    def pieces_from(self, offset: int) -> Iterator[bytes]:
        """Yield the file's bytes from one of them on, a line in one piece or in several; none if it was deleted."""
        with self._opened() as file:
            file.seek(offset)
            while piece := file.readline(storage.LONGEST_PIECE):
                yield piece

    def _opened(self) -> BinaryIO:
        """Return the file, open; an empty one if it was retired and deleted meanwhile."""
        try:
            return self.path.open("rb")
        except FileNotFoundError:
            return BytesIO()

    def _status(self) -> os.stat_result | None:
        """Return what the file system says of the file; None if it was deleted."""
        try:
            return self.path.stat()
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class FileStorage:
    """A record in a folder: the open file, and full files beside it, named by the time at which they became full.

    Attributes:
        file: The open file.
    """

    file: Path

    @property
    def name(self) -> str:
        """The path of the open file."""
        return str(self.file)

    def parts(self) -> list[FilePart]:
        """Return the existing files, oldest first."""
        full = _full_files(self.file)
        return [FilePart(path) for path in ([*full, self.file] if self.file.exists() else full)]

    @contextmanager
    def appending(self) -> "Iterator[_Appender]":
        """Context manager: open and lock the newest file for one append; other writers wait for the lock."""
        create_private_folder(self.file.parent)
        while True:
            descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_open_file(self.file, descriptor):
                    yield _Appender(self.file, descriptor)
                    return
            finally:
                os.close(descriptor)


@dataclass(frozen=True)
class _Appender:
    """The open file, locked for one writer."""

    file: Path
    descriptor: int

    @property
    def name(self) -> str:
        """The path of the file."""
        return str(self.file)

    @property
    def identity(self) -> str:
        """The file's inode number, which changes when the file is replaced."""
        return str(os.fstat(self.descriptor).st_ino)

    @property
    def size(self) -> int:
        """The file's length in bytes."""
        return os.fstat(self.descriptor).st_size

    def read_from(self, offset: int) -> bytes:
        """Return the file's bytes from `offset` to its end."""
        parts = []
        while part := os.pread(self.descriptor, 1 << 20, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def write(self, line: bytes) -> int:
        """Append lines and flush them to disk; return the file's new length. A torn last line is closed first."""
        size = self.size
        # A crash may have cut the previous line short: this one must not become part of it.
        torn = size > 0 and os.pread(self.descriptor, 1, size - 1) != b"\n"
        rest = memoryview(b"\n" + line + b"\n" if torn else line + b"\n")
        while rest:
            rest = rest[os.write(self.descriptor, rest) :]
        os.fsync(self.descriptor)
        if size == 0:
            sync_folder(self.file.parent)  # after a power cut the file itself would not be there
        return self.size

    def retire(self) -> None:
        """Rename the open file to a name with the time, and delete the oldest beyond `KEPT_PARTS`."""
        self.file.rename(self.file.with_name(f"{self.file.stem}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}.jsonl"))
        sync_folder(self.file.parent)
        for oldest in _full_files(self.file)[: -storage.KEPT_PARTS]:
            oldest.unlink(missing_ok=True)


def _full_files(file: Path) -> list[Path]:
    """Return the files that are no longer appended to, oldest first."""
    return sorted(file.parent.glob(f"{file.stem}.*.jsonl"))


def _is_open_file(file: Path, descriptor: int) -> bool:
    """Return whether a path still names the locked file, which another writer may have renamed."""
    try:
        return file.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
